"""Operators that read and write by index."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.in_torch.call import Call

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather(a: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    flat = x.index_select(axis, (indices.long() % x.shape[axis]).flatten())
    return flat.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def gather_elements(a: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    return x.gather(axis, indices.long() % x.shape[axis])


def _places(x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    """One index for each axis that the last axis of `indices` names."""
    return tuple(part % x.shape[axis] for axis, part in enumerate(indices.unbind(-1)))


def gather_nd(a: Call, x: Tensor, indices: Tensor) -> Tensor:
    batch = a.get("batch_dims", 0)
    if not batch:
        return x[_places(x, indices)]
    rows, where = x.flatten(0, batch - 1), indices.flatten(0, batch - 1)
    found = torch.stack([row[_places(row, index)] for row, index in zip(rows, where, strict=True)])
    return found.reshape([*x.shape[:batch], *found.shape[1:]])


def scatter_elements(a: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, how = a.get("axis", 0), a.text("reduction", "none")
    places = indices % x.shape[axis]
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[how])


def scatter_nd(a: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    how = a.text("reduction", "none")
    assert how in ("none", "add")
    return x.index_put(_places(x, indices), updates, accumulate=how == "add")


def top_k(a: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.topk(x, int(k), a.get("axis", -1), bool(a.get("largest", 1)), bool(a.get("sorted", 1)))


def one_hot(a: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    hot = torch.nn.functional.one_hot(indices.long() % int(depth), int(depth)).bool()
    return torch.where(hot.movedim(-1, a.get("axis", -1)), values[1], values[0])


def compress(a: Call, x: Tensor, condition: Tensor) -> Tensor:
    x, axis = (x, a["axis"]) if "axis" in a else (x.flatten(), 0)
    return x.index_select(axis, condition.nonzero()[:, 0])


def reverse_sequence(a: Call, x: Tensor, lengths: Tensor) -> Tensor:
    batch, time = a.get("batch_axis", 1), a.get("time_axis", 0)
    rows = x.movedim((batch, time), (0, 1))
    turned = [torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(rows, lengths.tolist(), strict=True)]
    return torch.stack(turned).movedim((0, 1), (batch, time))


def eye_like(a: Call, x: Tensor) -> Tensor:
    rows, columns = x.shape
    at = torch.arange(columns)[None] - torch.arange(rows)[:, None]
    return (at == a.get("k", 0)).to(a.dtype)


OPERATORS = {
    "Compress": compress,
    "EyeLike": eye_like,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "ReverseSequence": reverse_sequence,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
}
