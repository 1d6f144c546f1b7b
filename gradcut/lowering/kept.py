"""What a constant mask keeps: neighbours are a Slice and a Pad, others are looked up."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, lowering
from gradcut.ops import Builder


def _indices(call: Call) -> np.ndarray[Any, Any] | None:
    tensor = ir.convenience.get_const_tensor(call[1])
    return None if tensor is None or not tensor.size else tensor.numpy()


def _neighbours(call: Call) -> float:
    indices = _indices(call)
    return cost.NODE if indices is not None and bool((np.diff(indices) == 1).all()) else cost.NEVER


def _known(call: Call) -> float:
    return 2 * cost.NODE if _indices(call) is not None else cost.NEVER


@lowering("TakeKept", _neighbours)
def one_slice(b: Builder, call: Call) -> ir.Value:
    """X[..., first : last + 1, ...]"""
    indices = _indices(call)
    assert indices is not None
    return b.Slice(call[0], b.ints([indices[0]]), b.ints([indices[-1] + 1]), b.ints([call.attr("axis")]))


@lowering("PlaceKept", _neighbours)
def one_pad(b: Builder, call: Call) -> ir.Value:
    """X between zeros."""
    indices = _indices(call)
    assert indices is not None
    ends = b.ints([indices[0], call.attr("size") - 1 - indices[-1]])
    return b.Pad(call[0], ends, None, b.ints([call.attr("axis")]))


@lowering("PlaceKept", _known)
def look_up(b: Builder, call: Call) -> ir.Value:
    """A slice of zeros behind X, and each place's slice by its number."""
    indices, axis, size = _indices(call), call.attr("axis"), call.attr("size")
    assert indices is not None
    places = np.full(size, len(indices), np.int64)
    places[indices] = np.arange(len(indices))
    filled = b.op("Pad", call[0], b.ints([0, 1]), None, b.ints([axis]), dtype=call[0].dtype)
    return b.Gather(filled, b.ints(places), axis=axis)
