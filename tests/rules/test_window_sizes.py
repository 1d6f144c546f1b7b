"""Windows of which ONNX's inference tells another number than ONNX Runtime makes; windows that hold padding alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

import gradcut
from gradcut.runtime.check import check_gradients, imported, require
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, Sample, build, distinct, normal, sample

SHORT: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [2, 3]}
SPARSE: dict[str, Any] = {"kernel_shape": [1, 2], "strides": [3, 4], "ceil_mode": 1}
CASES = [
    *(sample("MaxPool", mode, distinct(2, 2, 9, 7), auto_pad=mode, **SHORT) for mode in ("SAME_UPPER", "SAME_LOWER")),
    sample("MaxPool", "ceil_dilated", distinct(1, 2, 9, 7), auto_pad="SAME_UPPER", ceil_mode=1, **SHORT),
    sample("MaxPool", "ceil", distinct(1, 2, 9, 8), pads=[0, 0, 0, 1], **SPARSE),
    sample("MaxPool", "ceil_end", distinct(1, 1, 8), kernel_shape=[4], strides=[4], pads=[0, 3], ceil_mode=1),
    sample("AveragePool", "same", normal(2, 2, 9, 7), auto_pad="SAME_LOWER", **SHORT),
    sample("AveragePool", "same_counted", normal(2, 2, 9, 7), auto_pad="SAME_LOWER", count_include_pad=1, **SHORT),
    sample("AveragePool", "ceil", normal(1, 2, 9, 8), **SPARSE),
    sample("LpPool", "same", normal(2, 2, 9, 7), auto_pad="SAME_LOWER", **SHORT),
    sample("LpPool", "ceil", normal(1, 2, 9, 8), **SPARSE),
    *(sample("ConvTranspose", f"{mode}_padding", normal(1, 2, 4, 5), normal(2, 3, 3, 3), auto_pad=mode, strides=[3, 2],
             output_padding=[1, 0]) for mode in ("SAME_UPPER", "SAME_LOWER")),
    sample("ConvTranspose", "sparse", normal(1, 2, 4, 5), normal(2, 3, 1, 2), auto_pad="SAME_UPPER", strides=[3, 3]),
]  # fmt: skip


@pytest.mark.parametrize("opset", [21, 22])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sizes_are_those_that_the_runtime_makes(case: Sample, opset: int) -> None:
    """The cotangent has the output's true size, and what follows from it has too."""
    built = build(case, opset=opset)
    made = runtime(build(case, "dynamic", opset=opset).model)(built.feeds)[0]
    model = built.model
    model.graph.node.append(helper.make_node("Neg", ["y0"], ["after"]))
    model.graph.output.append(helper.make_tensor_value_info("after", 1, None))
    model.graph.output[-1].type.tensor_type.ClearField("shape")
    work = imported(model)
    assert [value.shape for value in work.graph.outputs] == [ir.Shape(made.shape)] * 2
    np.testing.assert_allclose(runtime(ir.to_proto(work))(built.feeds)[0], made, rtol=1e-6)
    require(check_gradients(model, built.feeds, case.wanted, ("after",), directions=2, seed=3))


EMPTY = [
    sample("MaxPool", "same", distinct(2, 3, 1, 2), kernel_shape=[2, 1], strides=[3, 1], dilations=[2, 1],
           auto_pad="SAME_LOWER", outputs=2),
    sample("MaxPool", "pads", distinct(2, 3, 2, 5), kernel_shape=[2, 2], strides=[1, 1], dilations=[3, 1],
           pads=[1, 0, 1, 0], ceil_mode=1, outputs=2),
    sample("MaxPool", "some", distinct(2, 3, 2), kernel_shape=[2], dilations=[3], pads=[1, 1], outputs=2),
    sample("MaxPool", "columns", distinct(2, 3, 2), kernel_shape=[2], dilations=[3], pads=[1, 1], outputs=2,
           storage_order=1),
]  # fmt: skip


@pytest.mark.parametrize("form", ["static", "dynamic"])
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_cotangent_of_a_window_of_padding_goes_nowhere(case: Sample, form: str) -> None:
    """Against the places that the output's own numbers say: each number of X is there once."""
    built = build(case, form)
    x, (y, _) = built.feeds["X"], runtime(built.model)(built.feeds)
    cotangent = np.random.default_rng(5).standard_normal(y.shape).astype(np.float32)
    proto = gradcut.vjp(built.model, ["X"], ["y0"])
    result = runtime(proto)({"X": x, "y0_grad": cotangent})[-1]
    assert (y < x.min()).any()
    np.testing.assert_allclose(result, _back(x, y, cotangent), rtol=1e-6)


def _back(x: Array, y: Array, cotangent: Array) -> Array:
    sums = [cotangent[y == number].sum() for number in x.ravel()]
    return np.asarray(sums, np.float32).reshape(x.shape)
