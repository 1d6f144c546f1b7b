"""Resize, GridSample and AffineGrid of the gradient check, against ONNX Runtime on random configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from gradcut.runtime.evaluators import EVALUATORS
from gradcut.runtime.widen import Array, runtime

GRIDS = [
    (mode, padding, aligned, sizes)
    for mode in ("linear", "nearest", "cubic")
    for padding in ("zeros", "border", "reflection")
    for aligned in (0, 1)
    for sizes in ((4, 5), (1, 3), (2, 3, 4))
    if mode != "cubic" or len(sizes) == 2
]
PLACES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
CROP = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 5.0}


def both(op: str, operands: dict[str, Array | None], **attributes: Any) -> tuple[Array, Array]:
    """By ONNX Runtime, and by the evaluator."""
    feeds = {name: array for name, array in operands.items() if array is not None}
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    node = helper.make_node(op, [name if name in feeds else "" for name in operands], ["y"], **attributes)
    graph = helper.make_graph([node], "g", ports, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return runtime(model)(feeds)[0], ReferenceEvaluator(model, new_ops=EVALUATORS).run(None, feeds)[0]


@pytest.mark.parametrize(("mode", "padding", "aligned", "sizes"), GRIDS, ids=str)
def test_grid_sample(mode: str, padding: str, aligned: int, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((2, 3, *sizes)).astype(np.float32)
    grid = rng.uniform(-2.5, 2.5, (2, *(3, 4, 2)[: len(sizes)], len(sizes))).astype(np.float32)
    theirs, ours = both("GridSample", {"X": X, "grid": grid}, mode=mode, padding_mode=padding, align_corners=aligned)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("scales", [[2.0, 3.0], [0.57, 0.71], [2.3, 1.4], [0.34, 1.0]], ids=str)
def test_resize_by_scales(mode: str, places: str, scales: list[float]) -> None:
    X = np.random.default_rng(6).standard_normal((1, 1, 7, 6)).astype(np.float32)
    operands = {"X": X, "roi": None, "scales": np.array([1, 1, *scales], np.float32)}
    antialias = {} if mode == "nearest" or min(scales) >= 1 else {"antialias": 1}
    theirs, ours = both("Resize", operands, mode=mode, coordinate_transformation_mode=places, **antialias)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("options", [{"keep_aspect_ratio_policy": "not_larger"},
                                     {"keep_aspect_ratio_policy": "not_smaller"}, CROP], ids=str)  # fmt: skip
def test_resize_to_sizes(mode: str, options: dict[str, Any]) -> None:
    X = np.random.default_rng(7).standard_normal((2, 1, 4, 5)).astype(np.float32)
    roi = np.array([0.1, -0.2, 0.8, 1.3], np.float32) if options is CROP else None
    operands = {"X": X, "roi": roi, "scales": None, "sizes": np.array([7, 8])}
    theirs, ours = both("Resize", operands, mode=mode, axes=[2, 3], **options)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("size", [[2, 1, 3, 4], [2, 3, 1, 4], [1, 2, 3, 2, 4]], ids=str)
def test_affine_grid(size: list[int], aligned: int) -> None:
    rank = len(size) - 2
    theta = np.random.default_rng(8).standard_normal((size[0], rank, rank + 1)).astype(np.float32)
    theirs, ours = both("AffineGrid", {"theta": theta, "size": np.array(size)}, align_corners=aligned)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
