"""Pools, over the windows of `tests.in_torch.window`."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.in_torch.call import Call
from tests.in_torch.window import windows


def max_pool(a: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each window, of equal ones the first, and where it lies in the whole input."""
    seen = windows(a, x, float("-inf"))[0].flatten(x.ndim)
    places = torch.arange(x.numel()).reshape(x.shape).to(torch.float64)
    where = windows(a, places, -1.0)[0].flatten(x.ndim)
    best, at = seen.max(-1)
    return best, where.gather(-1, at[..., None]).squeeze(-1).long()


def average_pool(a: Call, x: Tensor) -> Tensor:
    n = x.ndim
    seen, inside = windows(a, x, 0.0)
    if not a.get("count_include_pad", 0):
        inside = windows(a, torch.ones_like(x), 0.0)[0]
    return seen.flatten(n).sum(-1) / inside.flatten(n).sum(-1)


def lp_pool(a: Call, x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(windows(a, x, 0.0)[0].flatten(x.ndim), a.get("p", 2), -1)


def max_unpool(a: Call, x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
    n = x.ndim - 2
    strides, pads = a.get("strides", [1] * n), a.get("pads", [0] * 2 * n)
    sizes = [(x.shape[2 + i] - 1) * strides[i] + a["kernel_shape"][i] - pads[i] - pads[n + i] for i in range(n)]
    whole = [*x.shape[:2], *sizes] if shape is None else shape.tolist()
    flat = x.new_zeros(torch.Size(whole).numel())
    return flat.index_put((places.flatten(),), x.flatten()).reshape(whole)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


OPERATORS = {
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda a, x: x.mean(_spatial(x), keepdim=True),
    "GlobalLpPool": lambda a, x: torch.linalg.vector_norm(x, a.get("p", 2), _spatial(x), keepdim=True),
    "GlobalMaxPool": lambda a, x: x.amax(_spatial(x), keepdim=True),
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
}
