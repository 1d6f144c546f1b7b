"""Normalisations and softmaxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.in_torch.call import Call


def batch_normalization(
    a: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, ...]:
    """With ONNX's momentum, and the population's variance."""
    along = [1, -1] + [1] * (x.ndim - 2)
    training = bool(a.get("training_mode", 0)) if a.training is None else a.training
    if training:
        over = [axis for axis in range(x.ndim) if axis != 1]
        old, keep = (mean, var), a.get("momentum", 0.9)
        mean, var = x.mean(over), x.var(over, unbiased=False)
        moved = tuple(keep * before + (1 - keep) * now for before, now in zip(old, (mean, var), strict=True))
    shift, width = mean.reshape(along), var.reshape(along)
    y = (x - shift) / torch.sqrt(width + a.get("epsilon", 1e-5)) * scale.reshape(along) + bias.reshape(along)
    return (y, *moved) if training else (y,)


def instance_normalization(a: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5)) if _many(x) else _alone(x, bias)


def _many(x: Tensor) -> bool:
    return math.prod(x.shape[2:]) > 1


def _alone(x: Tensor, bias: Tensor) -> Tensor:
    """One element is its own mean, which torch refuses."""
    return x * 0 + bias.reshape(1, -1, *[1] * (x.ndim - 2))


def layer_normalization(a: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    axes = list(range(a.get("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = ((x - mean).square().mean(axes, keepdim=True) + a.get("epsilon", 1e-5)).rsqrt()
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_normalization(a: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(a.get("axis", -1) % x.ndim, x.ndim))
    return x * (x.square().mean(axes, keepdim=True) + a.get("epsilon", 1e-5)).rsqrt() * scale


def group_normalization(a: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = x.unflatten(1, (a["num_groups"], -1)).flatten(2)
    mean, var = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
    y = ((groups - mean) / torch.sqrt(var + a.get("epsilon", 1e-5))).reshape(x.shape)
    along = [1, -1] + [1] * (x.ndim - 2)
    each = (lambda t: t.repeat_interleave(x.shape[1] // a["num_groups"])) if a.opset < 21 else (lambda t: t)
    return y * each(scale).reshape(along) + each(bias).reshape(along)


def mean_variance(a: Call, x: Tensor) -> Tensor:
    axes = list(a.get("axes", [0, 2, 3]))
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / ((x.square().mean(axes, keepdim=True) - mean.square()).sqrt() + 1e-9)


def lrn(a: Call, x: Tensor) -> Tensor:
    """Each element by the squares of its `size` neighbours among the channels, fewer at the ends."""
    size, before = a["size"], (a["size"] - 1) // 2
    squares = F.pad(x.square().movedim(1, -1), (before, size - 1 - before)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (a.get("bias", 1.0) + a.get("alpha", 1e-4) / size * squares) ** a.get("beta", 0.75)


def lp_normalization(a: Call, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, a.get("p", 2), a.get("axis", -1), keepdim=True)
    return x / norm


def _by_rows(function: object) -> object:
    """Before opset 13 over the axis and all behind it."""

    def operator(a: Call, x: Tensor) -> Tensor:
        assert callable(function)
        if a.opset >= 13:
            return function(x, a.get("axis", -1))
        return function(x.flatten(a.get("axis", 1) % x.ndim), -1).reshape(x.shape) if x.ndim else function(x, -1)

    return operator


def hardmax(a: Call, x: Tensor) -> Tensor:
    axis = a.get("axis", -1)
    return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)


OPERATORS = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "Hardmax": hardmax,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": _by_rows(torch.log_softmax),
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": rms_normalization,
    "Softmax": _by_rows(torch.softmax),
}
