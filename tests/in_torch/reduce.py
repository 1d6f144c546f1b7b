"""Reductions, and sums along an axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.in_torch.call import Call


def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    """An operator of a function of (x, axes, keepdims)."""

    def operator(a: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = a.axes(given, x.ndim)
        if not axes and a.get("noop_with_empty_axes", 0):
            return x
        return function(x, axes or list(range(x.ndim)), bool(a.get("keepdims", 1)))

    return operator


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep) if axes else x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep) if axes else x


def _norm(order: int) -> Callable[[Tensor, list[int], bool], Tensor]:
    return lambda x, axes, keep: torch.linalg.vector_norm(x, order, axes, keepdim=keep) if axes else x.abs()


def argument(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda a, x: function(x, a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))


def cum_sum(a: Call, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis)
    x = x.flip(along) if a.get("reverse", 0) else x
    total = x.cumsum(along)
    total = total - x if a.get("exclusive", 0) else total
    return total.flip(along) if a.get("reverse", 0) else total


OPERATORS = {
    "ArgMax": argument(torch.argmax),
    "ArgMin": argument(torch.argmin),
    "CumSum": cum_sum,
    "ReduceL1": reduction(_norm(1)),
    "ReduceL2": reduction(_norm(2)),
    "ReduceLogSum": reduction(lambda x, axes, keep: _sum(x, axes, keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keep) if axes else x),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": reduction(_mean),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": reduction(_prod),
    "ReduceSum": reduction(_sum),
    "ReduceSumSquare": reduction(lambda x, axes, keep: _sum(x.square(), axes, keep)),
}
