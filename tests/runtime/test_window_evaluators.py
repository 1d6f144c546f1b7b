"""What stands in for onnx's own operators over windows and images, against ONNX Runtime in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from gradcut.runtime.widen import reference, runtime

SEED = 11
Case = tuple[str, list[np.ndarray | None], int, dict[str, Any]]
KERNEL = {"kernel_shape": [3, 2]}
WINDOWS: list[dict[str, Any]] = [
    {},
    {"strides": [2, 1], "pads": [1, 0, 2, 1]},
    {"strides": [2, 3], "ceil_mode": 1},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"dilations": [2, 3], "pads": [1, 1, 1, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2], "dilations": [1, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [4, 4]},
    {"auto_pad": "VALID", "strides": [2, 2], "ceil_mode": 1},
]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape).astype(np.float32)


def cases() -> Iterator[Case]:
    for window in WINDOWS:
        for include in (0, 1):
            yield "AveragePool", [random(2, 3, 9, 8)], 1, {**KERNEL, **window, "count_include_pad": include}
        for p in (1, 2, 3):
            yield "LpPool", [random(2, 3, 9, 8)], 1, {**KERNEL, **window, "p": p}
        for order in (0, 1):
            yield "MaxPool", [random(2, 3, 9, 8)], 2, {**KERNEL, **window, "storage_order": order}
    for size in (1, 3, 5):
        yield "LRN", [random(2, 4, 3, 3)], 1, {"size": size, "alpha": 0.5, "beta": 0.6, "bias": 1.2}
    yield "GlobalLpPool", [random(2, 3, 4, 5)], 1, {"p": 3}
    yield from transposed()
    yield from unpooled()
    yield from deformed()
    yield from regions()


def transposed() -> Iterator[Case]:
    for group in (1, 2):
        operands = [random(2, 4, 3, 4), random(4, 3, 3, 2), random(3 * group)]
        for attributes in (
            {},
            {"strides": [2, 3], "pads": [1, 0, 1, 0], "output_padding": [1, 2]},
            {"dilations": [2, 1], "strides": [1, 2]},
            {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
            {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
            {"auto_pad": "SAME_LOWER", "strides": [4, 4]},
            {"output_shape": [6, 9], "strides": [2, 2]},
            {"output_shape": [5, 6], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        ):
            yield "ConvTranspose", operands, 1, {"group": group, **attributes}
    yield "ConvTranspose", [random(2, 3, 5), random(3, 2, 2)], 1, {"strides": [3]}
    yield "ConvTranspose", [random(1, 2, 2, 3, 2), random(2, 2, 2, 2, 2)], 1, {"strides": [2, 1, 2]}


def unpooled() -> Iterator[Case]:
    places = np.arange(12).reshape(1, 2, 2, 3) * 3
    halves = {"kernel_shape": [2, 2], "strides": [2, 2]}
    yield "MaxUnpool", [random(1, 2, 2, 3), places], 1, halves
    yield "MaxUnpool", [random(1, 2, 2, 3), places, np.array([1, 2, 5, 7])], 1, halves


def deformed() -> Iterator[Case]:
    for group, parts in ((1, 1), (2, 1), (1, 2), (2, 4)):
        X, W = random(2, 4, 6, 5), random(6, 4 // group, 2, 3)
        shape = {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 1, 2]}
        offset, mask = 1.5 * random(2, parts * 12, 4, 3), random(2, parts * 6, 4, 3)
        shared = {"group": group, "offset_group": parts, **shape}
        yield "DeformConv", [X, W, offset], 1, shared
        yield "DeformConv", [X, W, offset, random(6), mask], 1, shared


def regions() -> Iterator[Case]:
    rois = np.float32([[0, 0, 0, 4, 3], [1, 1, 2, 6, 5], [0, -3, -2, 12, 9], [1, 5, 5, 2, 2]])
    for scale in (1.0, 0.6):
        yield "MaxRoiPool", [random(2, 3, 7, 6), rois], 1, {"pooled_shape": [2, 3], "spatial_scale": scale}


def model(case: Case, opset: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    op, operands, outputs, attributes = case
    names = [f"i{at}" if array is not None else "" for at, array in enumerate(operands)]
    feeds = {name: array for name, array in zip(names, operands, strict=True) if array is not None}
    node = helper.make_node(op, names, [f"o{at}" for at in range(outputs)], **attributes)
    ports = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in feeds.items()]  # fmt: skip
    kinds = [helper.make_tensor_value_info("o0", 1, None), helper.make_tensor_value_info("o1", 7, None)]
    graph = helper.make_graph([node], "g", ports, kinds[:outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), feeds


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case[0]}-{case[3]}")
def test_as_onnx_runtime(case: Case) -> None:
    proto, feeds = model(case, 21)
    for ours, theirs in zip(reference(proto)(feeds), runtime(proto)(feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
