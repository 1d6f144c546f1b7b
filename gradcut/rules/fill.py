"""Operators that spread a few numbers over many places."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("OneHot", "values", constant="depth")
def one_hot(op: Adjoint) -> Cotangents:
    """values are [off, on]: each gets the sum over its places, which an index out of range has among off's alone."""
    b, values, dY = op.b, op["values"], op.wide(op.dY)
    marks = b.constant(np.array([0, 1]), values.dtype)
    on = b.op("OneHot", op["indices"], op["depth"], marks, axis=op.attr("axis", -1), dtype=values.dtype)
    on.shape = dY.shape
    on = op.wide(on)
    sums = [b.Reshape(b.ReduceSum(dY * part, keepdims=0), b.ints([1])) for part in (1.0 - on, on)]
    yield "values", b.Cast(b.op("Concat", *sums, axis=0, shape=values.shape), to=values.dtype)


@rule("Range", "start delta")
def range_(op: Adjoint) -> Cotangents:
    """output[i] = start + i delta: dstart = sum dY, ddelta = sum i dY; limit decides only how many there are."""
    b, dY, kind = op.b, op.dY, ir.DataType.INT64
    if op.wants("start"):
        yield "start", _like(op, "start", b.ReduceSum(dY, keepdims=0))
    if op.wants("delta"):
        numbers = b.Range(b.constant(0, kind), b.Size(dY), b.constant(1, kind), dtype=kind)
        yield "delta", _like(op, "delta", b.ReduceSum(dY * b.Cast(numbers, to=dY.dtype), keepdims=0))


def _like(op: Adjoint, operand: str, number: ir.Value) -> ir.Value:
    """A scalar in the shape of an operand, which may be [1]."""
    shape = op[operand].shape
    return op.b.op("Reshape", number, op.b.shape_of(op[operand]), shape=shape)
