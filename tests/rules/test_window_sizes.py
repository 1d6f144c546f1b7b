"""Windows of which ONNX's inference tells another number than ONNX Runtime makes; windows that hold padding alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch.nn import functional

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
    *(sample("ConvTranspose", f"smaller_than_X{mode}", normal(1, 2, 3, 5), normal(2, 3, 1, 3), auto_pad=mode,
             output_shape=[2, 4]) for mode in ("NOTSET", "SAME_UPPER", "SAME_LOWER")),
    sample("MaxPool", "ceil_dilated_pads", distinct(3, 1, 8, 6), kernel_shape=[2, 2], strides=[2, 4], dilations=[3, 1],
           pads=[0, 1, 1, 1], ceil_mode=1),
    sample("AveragePool", "ceil_counted", normal(1, 2, 8, 6), kernel_shape=[3, 2], strides=[2, 4], dilations=[2, 1],
           pads=[0, 1, 1, 1], ceil_mode=1, count_include_pad=1),
    sample("Resize", "rounded", normal(1, 2, 10, 7), None, np.float32([1, 1, 0.7, 9 / 7]), constant="scales"),
    sample("Resize", "rounded_axes", normal(1, 2, 10, 7), None, np.float32([0.7, 9 / 7]), constant="scales",
           axes=[2, 3], mode="linear"),
    sample("Resize", "rounded_crop", normal(1, 2, 10, 4), np.float32([0, 0, 0, 0.1, 1, 1, 1, 0.8]),
           np.float32([1, 1, 0.7, 2]), constant="roi scales", coordinate_transformation_mode="tf_crop_and_resize"),
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


def test_sizes_do_not_wait_for_the_batch() -> None:
    """A kernel of a symbolic number of channels has known sizes; a batch is open as a rule."""
    case = next(case for case in CASES if case.name == "SAME_UPPER_padding")
    built = build(case)
    for value in built.model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = f"{value.name}_0"
    made = runtime(build(case, "dynamic").model)(built.feeds)[0]
    (y,) = imported(built.model).graph.outputs
    assert list(y.shape or ())[1:] == list(made.shape[1:])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("form", ["static", "dynamic"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_windows_of_minus_infinity_give_to_their_first_place(rank: int, form: str, dtype: str) -> None:
    """As torch's do; ONNX Runtime's own indices say it."""
    x = np.random.default_rng(rank).standard_normal((2, 3, *[6] * rank)).astype(dtype)
    x[:, 1] = -np.inf
    x[1, 2, :4] = -np.inf
    options: dict[str, Any] = {"kernel_shape": [3] * rank, "pads": [1] * 2 * rank}
    proto = gradcut.vjp(build(sample("MaxPool", "", x, **options), form).model, ["X"], ["y0"])
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    X = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    Y = pool(X, 3, 1, 1)
    cotangent = np.random.default_rng(7).standard_normal(Y.shape).astype(dtype)
    expected = torch.autograd.grad(Y, X, torch.tensor(cotangent, dtype=torch.float64))[0]
    result = runtime(proto)({"X": x, "y0_grad": cotangent})
    np.testing.assert_array_equal(result[0], Y.detach().numpy().astype(dtype))
    np.testing.assert_allclose(result[1], expected.numpy(), rtol=2e-3 if dtype == "float16" else 1e-5, atol=1e-6)


def _back(x: Array, y: Array, cotangent: Array) -> Array:
    sums = [cotangent[y == number].sum() for number in x.ravel()]
    return np.asarray(sums, np.float32).reshape(x.shape)
