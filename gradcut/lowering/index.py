"""Adjoints of indexing and slicing, as x of torch's own kernel on one thread."""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, lowering
from gradcut.ops import Builder

_SCATTER = 0.5  # per element that ScatterND adds in rows


def _rows_cost(call: Call) -> float:
    if call.attr("axis") != 0 or call[1].shape is None:
        return cost.NEVER
    table, updates = call.output_dims(), call.dims(0)
    if table is None or updates is None:
        return cost.NEVER
    return 4 * cost.NODE + cost.copy(math.prod(table)) + _SCATTER * math.prod(updates)


@lowering("GatherGrad", _rows_cost)
def rows(b: Builder, call: Call) -> ir.Value:
    """Along axis 0, an embedding: ScatterND adds the rows of dY onto zeros, with no transpose of the table.

    30,522 x 256, 256 rows: 0.7 (reference 2.6); 1,000 x 128 2.2 (5.4). ScatterElements took up to 24.
    """
    dtype = call[0].dtype or ir.DataType.FLOAT
    indices = b.Unsqueeze(b.Cast(call[1], to=ir.DataType.INT64), b.ints([-1]))
    return b.ScatterND(b.zeros(call[2], dtype, call.output.shape), indices, call[0], reduction="add")


def _padding(call: Call) -> list[int] | None:
    """Begins and ends that put dY back, for a slice with constant bounds and steps of 1 over static axes."""
    operands = [ir.convenience.get_const_tensor(call[index]) for index in (1, 2, 3, 4)]
    shape = call.output.shape
    if shape is None or any(operand is None for operand in operands):
        return None
    starts, ends, axes, steps = ([int(n) for n in operand.numpy()] for operand in operands if operand is not None)
    before, after = [0] * len(shape), [0] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis]
        if step != 1 or not isinstance(size, int):
            return None
        first, last, _ = slice(start, end).indices(size)
        before[axis], after[axis] = first, size - max(first, last)
    return [*before, *after]


def _padded_cost(call: Call) -> float:
    return cost.NEVER if _padding(call) is None else cost.copy(math.prod(call.output_dims() or [0]))


@lowering("SliceGrad", _padded_cost)
def padded(b: Builder, call: Call) -> ir.Value:
    """Steps of 1 with constant bounds: zeros around dY, by Pad."""
    return b.Pad(call[0], b.ints(_padding(call) or []))
