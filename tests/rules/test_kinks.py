"""Where a derivative does not exist we take torch's convention (SEMANTICS.md, point 11): this is the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gradcut
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, Sample, build, ints, sample

Torch = Callable[..., torch.Tensor]
ZERO = np.array([0.0, 1.0, -1.0], np.float32)
TIES = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]], np.float32)
IMAGE = np.array([[[[1.0, 1.0, 3.0, 0.0], [1.0, 1.0, 2.0, 3.0]]]], np.float32)
FLAT = np.zeros((1, 1, 3, 3), np.float32)


def fold(function: Torch) -> Torch:
    return lambda a, b, c: function(function(a, b), c)


#: Data, where its updates go, and updates: equal to each other, to data, and zeros.
SHARED = (np.float32([1, 2, 0, 0, 3]), ints(0, 0, 1, 2, 3, 3, 1), np.float32([1, 1, 2, 3, 0, 4, 0]))


def scattered(reduction: str) -> Torch:
    """torch's scatter_reduce to the places of `SHARED`."""
    return lambda x, updates: x.scatter_reduce(0, torch.from_numpy(SHARED[1]), updates, reduction)


TABLE: list[tuple[Sample, Torch]] = [
    (sample("Relu", "zero", ZERO), torch.relu),
    (sample("Abs", "zero", ZERO), torch.abs),
    (sample("LeakyRelu", "zero", ZERO, alpha=0.2), lambda x: F.leaky_relu(x, 0.2)),
    (sample("HardSigmoid", "bounds", np.float32([-3, 3, 0]), alpha=1 / 6), F.hardsigmoid),
    (sample("HardSwish", "bounds", np.float32([-3, 3, 0])), F.hardswish),
    (sample("Max", "equal", ZERO, ZERO), torch.maximum),
    (sample("Min", "equal", ZERO, ZERO), torch.minimum),
    (sample("Max", "three_equal", ZERO, ZERO, ZERO), fold(torch.maximum)),
    (sample("Min", "last_two_equal", ZERO + 1, ZERO, ZERO), fold(torch.minimum)),
    (sample("Max", "broadcast", TIES, TIES[1]), torch.maximum),
    (sample("ReduceMax", "ties", TIES, ints(1), keepdims=0), lambda x: x.amax(1)),
    (sample("ReduceMax", "all", TIES), lambda x: x.amax().reshape(1, 1)),
    (sample("ReduceMin", "ties", TIES, ints(0), keepdims=1), lambda x: x.amin(0, keepdim=True)),
    (sample("ReduceL1", "zero", ZERO), lambda x: x.abs().sum().reshape(1)),
    (sample("ReduceL2", "zero", np.zeros(3, np.float32)), lambda x: x.norm().reshape(1)),
    (sample("MaxPool", "ties", IMAGE, kernel_shape=[2, 2]), lambda x: F.max_pool2d(x, 2, 1)),
    (sample("MaxPool", "flat", FLAT, kernel_shape=[2, 2], pads=[1] * 4), lambda x: F.max_pool2d(x, 2, 1, 1)),
    (sample("GlobalMaxPool", "ties", IMAGE), lambda x: F.adaptive_max_pool2d(x, 1)),
    (sample("LpPool", "absolute", FLAT, kernel_shape=[2, 2], p=1), lambda x: 4 * F.avg_pool2d(x.abs(), 2, 1)),
    (sample("LpPool", "zero", FLAT, kernel_shape=[2, 2]), lambda x: x.unfold(2, 2, 1).unfold(3, 2, 1).norm(dim=(4, 5))),
    (sample("GlobalLpPool", "zero", FLAT), lambda x: x.norm(dim=(2, 3), keepdim=True)),
    (sample("LpNormalization", "zero", FLAT[0, 0], axis=1), lambda x: F.normalize(x, dim=1) * 0),
    (sample("Clip", "bounds", ZERO, np.float32(-1), np.float32(1), constant="min max"), lambda x: x.clamp(-1, 1)),
    (sample("Clip", "all", ZERO, np.float32(-1), np.float32(1)), torch.clamp),
    (sample("PRelu", "zero", ZERO, np.float32([0.2])), lambda x, slope: torch.where(x > 0, x, slope * x)),
    (sample("Elu", "zero", ZERO), F.elu),
    (sample("Celu", "zero", ZERO, alpha=2.0), lambda x: F.celu(x, 2.0)),
    (sample("Selu", "zero", ZERO), F.selu),
    (sample("ThresholdedRelu", "alpha", ZERO), lambda x: F.threshold(x, 1.0, 0.0)),
    (sample("Softsign", "zero", ZERO), F.softsign),
    (sample("ReduceProd", "one_zero", np.float32([0, 2, 3]), keepdims=0), torch.prod),
    (sample("ReduceProd", "two_zeros", np.float32([0, 2, 0]), keepdims=0), torch.prod),
    (sample("Sqrt", "zero", np.float32([0, 4])), torch.sqrt),
    (sample("Pow", "zero", np.float32([0, 0, 0]), np.float32([1, 2, 0])), torch.pow),
    *(
        (sample(op, f"{onnx}_shared", SHARED[0], SHARED[1].reshape(shape), SHARED[2], reduction=onnx), scattered(name))
        for op, shape in (("ScatterElements", (7,)), ("ScatterND", (7, 1)))
        for onnx, name in (("max", "amax"), ("min", "amin"), ("mul", "prod"), ("add", "sum"))
    ),
    (sample("Pow", "root", np.float32([0, 4]), np.float32(0.5), constant="Y"), lambda x: x.pow(0.5)),
]


CORNERS = np.array([[[[-1, -1], [0, 0]], [[1, 1], [1, -0.5]], [[-2, 3], [0.5, 2]]]], np.float32)
PIXELS = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3) ** 2


def _sampled(mode: str, padding: str) -> tuple[Sample, Torch]:
    """At elements, at the border and beyond it."""
    theirs = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    options = {"mode": mode, "padding_mode": padding, "align_corners": 1}
    return (
        sample("GridSample", f"{mode}_{padding}", PIXELS, CORNERS, **options),
        lambda X, grid: F.grid_sample(X, grid, theirs, padding, align_corners=True),
    )


TABLE += [_sampled(mode, padding) for mode in ("linear", "cubic") for padding in ("zeros", "border", "reflection")]
TABLE += [
    (sample("CumProd", "zeros", np.float32([2, 0, 3, 0, 5]), np.array(0), opset=26), lambda x: x.cumprod(0)),
]


def test_det_of_a_singular_matrix_has_its_cofactors_as_slope() -> None:
    """By their formula: torch divides by the determinant, and gives zeros where that is exactly 0."""
    built = build(sample("Det", "singular", np.float32([[[1, 2], [3, 6]], [[0, 0], [0, 5]], [[2, 1], [1, 3]]])))
    proto = gradcut.vjp(built.model, ["X"], ["y0"])
    dX = runtime(proto)({**built.feeds, "y0_grad": np.ones(3, np.float32)})[-1]
    assert dX.tolist() == [[[6, -3], [-2, 1]], [[5, 0], [0, 0]], [[3, -1], [-1, 2]]]


def test_of_equal_values_top_k_takes_the_first() -> None:
    built = build(sample("TopK", "ties", TIES, ints(1), outputs=2))
    proto = gradcut.vjp(built.model, ["X"], ["y0"])
    feeds = {**built.feeds, "y0_grad": np.ones((2, 1), np.float32)}
    assert runtime(proto)(feeds)[-1].tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("order", [0, 1])
def test_of_equal_values_unique_takes_the_first(order: int) -> None:
    """The place that its own output `indices` says; torch has no derivative of it."""
    built = build(sample("Unique", "ties", np.float32([2, 1, 1, 3, 2]), sorted=order))
    proto = gradcut.vjp(built.model, ["X"], ["y0"])
    y, dX = runtime(proto)({**built.feeds, "y0_grad": np.float32([1, 2, 3])})
    assert y.tolist() == ([1, 2, 3] if order else [2, 1, 3])
    assert dX.tolist() == ([2, 1, 0, 3, 0] if order else [1, 2, 0, 3, 0])


@pytest.mark.parametrize(("sample", "function"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_kinks_are_as_in_torch(sample: Sample, function: Torch) -> None:
    built = build(sample)
    wanted = [name for name in sample.wanted if name not in sample.constant]
    proto = gradcut.vjp(built.model, wanted, list(built.of))
    tensors = [torch.tensor(array, requires_grad=True) for array in built.feeds.values()]
    output = function(*tensors)
    cotangent = torch.arange(1.0, output.numel() + 1.0).reshape(output.shape)
    expected = torch.autograd.grad(output, tensors, cotangent)
    feeds: dict[str, Array] = {**built.feeds, proto.graph.input[-1].name: cotangent.numpy()}
    for mine, theirs in zip(runtime(proto)(feeds)[1:], expected, strict=True):
        rtol, atol = (1e-5, 1e-5) if "cubic" in sample.name else (1e-6, 0)  # weights of 16 places cancel
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=rtol, atol=atol)
