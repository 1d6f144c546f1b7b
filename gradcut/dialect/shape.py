"""Adjoints of broadcasting, indexing and slicing."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir import AttributeType

from gradcut.dialect.core import dialect_op
from gradcut.ops import AttrRef, Builder


@dialect_op("X shape")
def sum_to_shape(b: Builder, X: ir.Value, shape: ir.Value) -> ir.Value:
    """X summed over the axes along which a tensor of `shape` was broadcast to X; INT64 shape [rank]."""
    wide = b.Shape(X)
    missing = b.Size(wide) - b.Size(shape)
    ones = b.ConstantOfShape(
        b.Reshape(missing, b.ints([1])),
        value=ir.tensor([1], dtype=ir.DataType.INT64),
        dtype=ir.DataType.INT64,
    )
    padded = b.Concat(ones, shape, axis=0)
    axes = b.Squeeze(b.NonZero(b.Not(b.Equal(padded, wide))), b.ints([0]))
    summed = b.ReduceSum(X, axes, keepdims=1, noop_with_empty_axes=1)
    return b.Reshape(summed, shape, allowzero=1)


@dialect_op("dY indices shape", axis=AttributeType.INT)
def gather_grad(b: Builder, dY: ir.Value, indices: ir.Value, shape: ir.Value, *, axis: int | AttrRef) -> ir.Value:
    """d Gather(data, indices, axis): rows of dY added up at their indices; `shape` is that of data.

    The gathered axis of data is moved to the front, the rest made one, so that each index owns a row.
    """
    n = b.Size(indices)
    axis_value = _axis_value(b, axis, shape)
    before = b.Slice(shape, b.ints([0]), axis_value, b.ints([0]))
    one = b.ints([1])
    after = b.Slice(shape, b.Add(axis_value, one), b.ints([2**62]), b.ints([0]))
    size = b.Gather(shape, axis_value)
    outer = b.Reshape(b.ReduceProd(before, keepdims=0), one)
    inner = b.Reshape(b.ReduceProd(after, keepdims=0), one)
    rows = b.Reshape(dY, b.Concat(outer, b.Reshape(n, one), inner, axis=0), allowzero=1)
    rows = b.Reshape(b.Transpose(rows, perm=[1, 0, 2]), b.Concat(b.Reshape(n, one), outer * inner, axis=0), allowzero=1)
    flat = b.Reshape(b.Cast(indices, to=ir.DataType.INT64), b.Concat(b.Reshape(n, one), one, axis=0))
    flat = b.Where(b.Less(flat, b.ints([0])), b.Add(flat, size), flat)
    zeros = _zeros_like(b, dY, b.Concat(size, outer * inner, axis=0))
    places = b.Expand(flat, b.Shape(rows))  # ScatterND would lose updates, see `gradcut.rules.shape.put_back`
    added = b.ScatterElements(zeros, places, rows, axis=0, reduction="add")
    moved = b.Transpose(b.Reshape(added, b.Concat(size, outer, inner, axis=0), allowzero=1), perm=[1, 0, 2])
    return b.Reshape(moved, shape, allowzero=1)


@dialect_op("dY starts ends axes steps shape")
def slice_grad(
    b: Builder,
    dY: ir.Value,
    starts: ir.Value,
    ends: ir.Value,
    axes: ir.Value,
    steps: ir.Value,
    shape: ir.Value,
) -> ir.Value:
    """d Slice(data, starts, ends, axes, steps): dY put back at its places in zeros of `shape`.

    The positions are found by slicing the row numbers of the flat tensor itself, so every negative step, clamped end
    and missing element is as Slice has it.
    """
    count = b.ReduceProd(shape, keepdims=0)
    numbers = b.Range(
        b.constant(0, ir.DataType.INT64), count, b.constant(1, ir.DataType.INT64), dtype=ir.DataType.INT64
    )
    places = b.Slice(b.Reshape(numbers, shape, allowzero=1), starts, ends, axes, steps)
    flat = b.ints([-1])
    one_column = b.ints([-1, 1])
    zeros = _zeros_like(b, dY, b.Reshape(count, b.ints([1])))
    filled = b.ScatterND(zeros, b.Reshape(places, one_column), b.Reshape(dY, flat))
    return b.Reshape(filled, shape, allowzero=1)


def _axis_value(b: Builder, axis: int | AttrRef, shape: ir.Value) -> ir.Value:
    """A non-negative axis as INT64 [1]."""
    if not isinstance(axis, AttrRef):
        return b.ints([axis])
    return b.Reshape(b.op("Constant", value_int=axis, dtype=ir.DataType.INT64), b.ints([1]))


def _zeros_like(b: Builder, like: ir.Value, shape: ir.Value) -> ir.Value:
    """Zeros of `shape` in the dtype of `like`."""
    if like.dtype is not None:
        return b.zeros(shape, like.dtype)
    return b.CastLike(b.zeros(shape, ir.DataType.FLOAT), like)


def spatial_axes(b: Builder, strides: Sequence[int] | AttrRef) -> ir.Value:
    """INT64 [2, 3, ...]: the spatial axes of a tensor whose strides are given."""
    if not isinstance(strides, AttrRef):
        return b.ints(range(2, 2 + len(strides)))
    end = b.Add(b.Size(b.attribute_ints(strides)), b.constant(2, ir.DataType.INT64))
    return b.Range(b.constant(2, ir.DataType.INT64), end, b.constant(1, ir.DataType.INT64), dtype=ir.DataType.INT64)
