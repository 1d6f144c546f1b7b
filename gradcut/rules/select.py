"""Choosing and reordering whole rows: each row of the output is one of the input's, and no row comes twice."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Compress", "input")
def compress(op: Adjoint) -> Cotangents:
    """The rows where condition is true; without an axis, of the flat input.

    A condition that is shorter than the axis is false behind its end.
    """
    b, dY, axis = op.b, op.dY, op.attr("axis")
    condition = b.Cast(op["condition"], to=ir.DataType.INT64)
    missing = _length(op, "input", axis) - b.Shape(condition)
    taken = b.Pad(condition, b.Concat(b.ints([0]), missing, axis=0))
    row = b.CumSum(taken, b.constant(0)) - 1
    none = b.dim(dY, axis or 0)
    yield "input", _rows_back(op, "input", b.Where(b.Cast(taken, to=ir.DataType.BOOL), row, none), axis)


@rule("Unique", "X")
def unique(op: Adjoint) -> Cotangents:
    """Y is X at `indices`, the first place of each value: that place gets the cotangent, as TopK's does.

    torch has no derivative of it; where no two values are equal there is no choice, and this is it.
    """
    b, axis, indices, kind = op.b, op.attr("axis"), op.out("indices"), ir.DataType.INT64
    indices.dtype = kind
    count = b.Shape(indices)
    rows = b.Range(b.constant(0, kind), b.Squeeze(count), b.constant(1, kind), dtype=kind)
    nowhere = b.Expand(count, _length(op, "X", axis))
    yield "X", _rows_back(op, "X", b.ScatterElements(nowhere, indices, rows, axis=0), axis)


@rule("ReverseSequence", "input")
def reverse_sequence(op: Adjoint) -> Cotangents:
    """Its own inverse."""
    axes = {name: op.attr(name) for name in ("batch_axis", "time_axis")}
    yield "input", op.b.op("ReverseSequence", op.dY, op["sequence_lens"], shape=op["input"].shape, **axes)


@rule("CenterCropPad", "input_data")
def center_crop_pad(op: Adjoint) -> Cotangents:
    """Back to the size of the input: both ways the smaller one starts at half the difference, rounded down."""
    b, data, axes = op.b, op["input_data"], op.attr("axes")
    sizes = b.shape_of(data)
    if axes is not None:
        sizes = b.Gather(sizes, b.ints(axes))
    yield "input_data", b.op("CenterCropPad", op.dY, sizes, axes=axes, shape=data.shape)


def _length(op: Adjoint, operand: str, axis: int | None) -> ir.Value:
    """How many rows there are along an axis, or elements in the flat operand, INT64 [1]."""
    b, value = op.b, op[operand]
    return b.ReduceProd(b.shape_of(value), keepdims=1) if axis is None else b.dim(value, axis)


def _rows_back(op: Adjoint, operand: str, rows: ir.Value, axis: int | None) -> ir.Value:
    """Row `rows[i]` of dY for each row i of an operand; the row behind the last one of dY is zeros."""
    b, value = op.b, op[operand]
    longer = b.op("Pad", op.dY, b.ints([0, 1]), None, b.ints([axis or 0]))
    back = b.op("Gather", longer, rows, axis=axis or 0, shape=None if axis is None else value.shape)
    return back if axis is not None else b.op("Reshape", back, b.shape_of(value), allowzero=1, shape=value.shape)
