"""Slopes at the edges of the domains and of the number range, against torch's autograd on one grid of numbers.

Wherever torch's slope is finite ours is the same; what the grid leaves out of an operator, the table says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

import gradcut
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, Sample, build, ints, normal, positive, sample

Torch = Callable[..., torch.Tensor]
_INF, _NAN = float("inf"), float("nan")
_SIZES = [
    *(0, 1e-45, 1e-38, 1e-30, 1e-10, 1e-4, 0.1, 0.5, 1 - 6e-8, 1, 1 + 1.2e-7, 1.5, 2, 3, 4, 5, 6, 9, 10, 15, 17, 20),
    *(30, 44, 50, 87, 88, 100, 104, 200, 1e3, 1e4, 1e6, 1e10, 1e19, 1e20, 1e30, 3e38, _INF),
]
GRID = np.array([*_SIZES, *(-size for size in _SIZES), _NAN], np.float32)
_FEW = [0, 0.5, 1, 2, 3, 1.5, -0.5, -1, -2, -3, 1e-30, 20, _INF, -_INF, 1e4, -1e4, _NAN]
PAIRS = tuple(part.ravel().astype(np.float32) for part in np.meshgrid(_FEW, _FEW))
WHOLE = np.where(np.abs(PAIRS[1]) < 9, PAIRS[1], 0).astype(np.int64)
ROWS = np.array(
    [
        *([0, 0, 0], [1e4, -1e4, 0], [1e4, 1e4, 1e4], [-_INF, 0, 1], [-_INF] * 3, [-_INF, -_INF, 3], [_INF, 0, 1]),
        *([1e-30, 1e-30, 0], [1e20, 1e20, 1], [88, 89, 90], [-1e38, -3e38, -1e38], [2, 2, 1], [0, 2, 3], [0, 0, 3]),
    ],
    np.float32,
)
_FUNCTIONS: dict[str, Torch] = {
    "Abs": torch.abs, "Celu": F.celu, "Elu": F.elu, "Selu": F.selu, "HardSwish": F.hardswish, "Mish": F.mish,
    "Softplus": F.softplus, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
    "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
    "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "Tanh": torch.tanh, "Exp": torch.exp,
    "Reciprocal": torch.reciprocal, "Sqrt": torch.sqrt, "Log": torch.log, "Sigmoid": torch.sigmoid,
    "Neg": torch.neg, "Softsign": F.softsign, "Gelu": F.gelu,
}  # fmt: skip


def unary() -> Iterator[tuple[Sample, Torch]]:
    for op, function in _FUNCTIONS.items():
        yield sample(op, "grid", GRID), function
    yield sample("Swish", "grid", GRID, opset=24), F.silu
    yield sample("Swish", "alpha", GRID, opset=24, alpha=1.702), lambda x: x * torch.sigmoid(1.702 * x)
    yield sample("Celu", "alpha", GRID, alpha=0.1), lambda x: F.celu(x, 0.1)
    yield sample("Elu", "alpha", GRID, alpha=0.5), lambda x: F.elu(x, 0.5)
    yield sample("HardSigmoid", "sixth", GRID, alpha=1 / 6), F.hardsigmoid
    yield sample("Gelu", "tanh", GRID, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")
    yield sample("LeakyRelu", "alpha", GRID, alpha=0.2), lambda x: F.leaky_relu(x, 0.2)
    for power in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, -1.0, -2.0):
        numbers = GRID if power == int(power) else np.abs(GRID)
        yield sample("Pow", f"{power}", numbers, np.float32(power), constant="Y"), lambda x, power=power: x.pow(power)
    finite = GRID[
        ~np.isnan(GRID)
    ]  # of NaN ONNX's page makes 0, torch NaN; Relu is NaN, with torch's slope 1 and ours 0
    yield sample("ThresholdedRelu", "grid", finite), lambda x: F.threshold(x, 1.0, 0.0)
    yield sample("Shrink", "hard", finite, lambd=0.5), lambda x: F.hardshrink(x, 0.5)
    yield sample("Shrink", "soft", finite, lambd=1.5, bias=1.5), lambda x: F.softshrink(x, 1.5)
    yield sample("Relu", "grid", finite), torch.relu


def binary() -> Iterator[tuple[Sample, Torch]]:
    functions: dict[str, Torch] = {
        "Pow": torch.pow, "Max": torch.maximum, "Min": torch.minimum, "Add": torch.add, "Sub": torch.sub,
        "Mul": torch.mul, "Div": torch.div,
    }  # fmt: skip
    for op, function in functions.items():
        yield sample(op, "pairs", *PAIRS), function
    yield sample("Pow", "whole", PAIRS[0], WHOLE), lambda x: x.pow(torch.from_numpy(WHOLE))
    divisible = [part[PAIRS[1] != 0] for part in PAIRS]
    yield sample("Mod", "pairs", *divisible, fmod=1), torch.fmod
    slopes = [part[np.isfinite(PAIRS[1])] for part in PAIRS]
    yield sample("PRelu", "pairs", slopes[0][None], slopes[1]), lambda x, slope: F.prelu(x, slope)


def rows() -> Iterator[tuple[Sample, Torch]]:
    axes, options = ints(1), {"keepdims": 0}
    yield sample("Softmax", "rows", ROWS), lambda x: x.softmax(1)
    yield sample("LogSoftmax", "rows", ROWS), lambda x: x.log_softmax(1)
    yield sample("ReduceMax", "rows", ROWS, axes, **options), lambda x: x.amax(1)
    yield sample("ReduceMin", "rows", ROWS, axes, **options), lambda x: x.amin(1)
    yield sample("ReduceProd", "rows", ROWS, axes, **options), lambda x: x.prod(1)
    yield sample("ReduceSumSquare", "rows", ROWS, axes, **options), lambda x: (x * x).sum(1)
    yield sample("ReduceL1", "rows", ROWS, axes, **options), lambda x: x.norm(1, dim=1)
    yield sample("ReduceL2", "rows", ROWS, axes, **options), lambda x: x.norm(dim=1)
    yield sample("ReduceLogSumExp", "rows", ROWS, axes, **options), lambda x: x.logsumexp(1)
    positive = ROWS[ROWS.min(axis=1) >= 0]
    yield sample("ReduceLogSum", "rows", positive, axes, **options), lambda x: x.sum(1).log()


def bounds() -> Iterator[tuple[Sample, Torch]]:
    """Bounds that cross, that are equal, that are none."""
    numbers = np.float32([-2, -1, 0, 1, 2, 0.5, _INF, -_INF, _NAN])
    for low, high in itertools.product([-1, 0, 1, -_INF, _NAN], [-1, 0, 1, _INF, _NAN]):
        below_none = numbers[~(numbers < low)] if low == high else numbers  # there torch.clamp gives min nothing
        yield sample("Clip", f"{low}_{high}", below_none, np.float32(low), np.float32(high)), torch.clamp


def norms() -> Iterator[tuple[Sample, Torch]]:
    """Types of the statistics of which ONNX Runtime gives none."""
    for kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16):
        operands = normal(2, 3, 4), positive(3, 4), normal(3, 4)
        yield (
            sample("LayerNormalization", f"stash_{kind}", *operands, axis=1, stash_type=kind),
            lambda x, scale, b: F.layer_norm(x, (3, 4), scale, b),
        )


TABLE = [*unary(), *binary(), *rows(), *bounds(), *norms()]


@pytest.mark.parametrize(("sample", "function"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_slopes_are_torchs(sample: Sample, function: Torch) -> None:
    built = build(sample)
    tensors = [torch.tensor(array, requires_grad=True) for array in built.feeds.values()]
    output = function(*tensors)
    cotangent = torch.ones_like(output)
    expected = torch.autograd.grad(output, tensors, cotangent)
    proto = gradcut.vjp(built.model, [name for name in sample.wanted if name in built.feeds], list(built.of))
    feeds: dict[str, Array] = {**built.feeds, proto.graph.input[-1].name: cotangent.numpy()}
    for mine, theirs in zip(runtime(proto)(feeds)[1:], expected, strict=True):
        finite = torch.isfinite(theirs).numpy()
        np.testing.assert_allclose(mine[finite], theirs.numpy()[finite], rtol=2e-5, atol=1e-6)
