"""Operators that work on elements alone."""

from __future__ import annotations

import functools
import math

import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.in_torch.call import Call

_INTEGERS = {onnx.TensorProto.INT32: torch.int32, onnx.TensorProto.INT64: torch.int64}
_WHOLE = {**_INTEGERS, onnx.TensorProto.BOOL: torch.bool}


def cast(a: Call, x: Tensor) -> Tensor:
    return x.to(_WHOLE.get(a["to"], a.dtype))


def cast_like(a: Call, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def clip(a: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """By torch.clamp, whose bounds have gradients too."""
    low = low if low is not None else a.get("min")
    high = high if high is not None else a.get("max")
    if low is None and high is None:
        return x
    bound = lambda value: value if value is None or torch.is_tensor(value) else torch.tensor(value, dtype=x.dtype)
    return torch.clamp(x, bound(low), bound(high))


def celu(a: Call, x: Tensor) -> Tensor:
    return F.celu(x, a.get("alpha", 1.0))


def gelu(a: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=a.text("approximate", "none"))


def hard_sigmoid(a: Call, x: Tensor) -> Tensor:
    return (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1)


def selu(a: Call, x: Tensor) -> Tensor:
    alpha, gamma = a.get("alpha", 1.6732632423543772), a.get("gamma", 1.0507009873554805)
    return gamma * F.elu(x, alpha)


def shrink(a: Call, x: Tensor) -> Tensor:
    bias, bound = a.get("bias", 0.0), a.get("lambd", 0.5)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


def thresholded_relu(a: Call, x: Tensor) -> Tensor:
    return F.threshold(x, a.get("alpha", 1.0), 0.0)


def prelu(a: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def swish(a: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(a.get("alpha", 1.0) * x)


def mod(a: Call, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if a.get("fmod", 0) else torch.remainder(x, y)


def dropout(a: Call, x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    """In inference."""
    return x, torch.ones_like(x, dtype=torch.bool)


def div(a: Call, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


OPERATORS = {
    "Abs": lambda a, x: x.abs(),
    "Acos": lambda a, x: x.acos(),
    "Acosh": lambda a, x: x.acosh(),
    "Add": lambda a, x, y: x + y,
    "And": lambda a, x, y: x & y,
    "Asin": lambda a, x: x.asin(),
    "Asinh": lambda a, x: x.asinh(),
    "Atan": lambda a, x: x.atan(),
    "Atanh": lambda a, x: x.atanh(),
    "Cast": cast,
    "CastLike": cast_like,
    "Ceil": lambda a, x: x.ceil(),
    "Celu": celu,
    "Clip": clip,
    "Cos": lambda a, x: x.cos(),
    "Cosh": lambda a, x: x.cosh(),
    "Div": div,
    "Dropout": dropout,
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Equal": lambda a, x, y: x == y,
    "Erf": lambda a, x: x.erf(),
    "Exp": lambda a, x: x.exp(),
    "Floor": lambda a, x: x.floor(),
    "Gelu": gelu,
    "Greater": lambda a, x, y: x > y,
    "GreaterOrEqual": lambda a, x, y: x >= y,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda a, x: F.hardswish(x),
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Less": lambda a, x, y: x < y,
    "LessOrEqual": lambda a, x, y: x <= y,
    "Log": lambda a, x: x.log(),
    "Max": lambda a, *xs: functools.reduce(torch.maximum, xs),
    "Mean": lambda a, *xs: sum(xs[1:], xs[0]) / len(xs),
    "Min": lambda a, *xs: functools.reduce(torch.minimum, xs),
    "Mish": lambda a, x: F.mish(x),
    "Mod": mod,
    "Mul": lambda a, x, y: x * y,
    "Neg": lambda a, x: -x,
    "Not": lambda a, x: ~x,
    "Or": lambda a, x, y: x | y,
    "PRelu": prelu,
    "Pow": lambda a, x, y: x**y,
    "Reciprocal": lambda a, x: 1 / x,
    "Relu": lambda a, x: x.relu(),
    "Round": lambda a, x: x.round(),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Sign": lambda a, x: x.sign(),
    "Sin": lambda a, x: x.sin(),
    "Sinh": lambda a, x: x.sinh(),
    "Softplus": lambda a, x: F.softplus(x, threshold=math.inf),
    "Softsign": lambda a, x: F.softsign(x),
    "Sqrt": lambda a, x: x.sqrt(),
    "StopGradient": lambda a, x: x.detach(),
    "Sub": lambda a, x, y: x - y,
    "Sum": lambda a, *xs: sum(xs[1:], xs[0]),
    "Swish": swish,
    "Tan": lambda a, x: x.tan(),
    "Tanh": lambda a, x: x.tanh(),
    "ThresholdedRelu": thresholded_relu,
    "Where": lambda a, condition, x, y: torch.where(condition, x, y),
    "Xor": lambda a, x, y: x ^ y,
}
