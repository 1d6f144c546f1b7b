"""Operators that move elements without changing them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Reshape Squeeze Unsqueeze", "data")
def reshape(op: Adjoint) -> Cotangents:
    """The cotangent in the shape of data."""
    yield "data", reshape_like(op, "data")


@rule("Flatten", "input")
def flatten(op: Adjoint) -> Cotangents:
    """The cotangent in the shape of the input."""
    yield "input", reshape_like(op, "input")


def reshape_like(op: Adjoint, operand: str) -> ir.Value:
    """dY in the shape of an operand; one symbolic dimension becomes -1, so no Shape node is needed."""
    value, b = op[operand], op.b
    dims = list(value.shape) if value.shape is not None else None
    if dims is not None and 0 not in dims and sum(not isinstance(dim, int) for dim in dims) == 1:
        target = b.ints([dim if isinstance(dim, int) else -1 for dim in dims])
        return b.op("Reshape", op.dY, target, shape=value.shape)
    return b.op("Reshape", op.dY, b.shape_of(value), allowzero=1, shape=value.shape)


@rule("Transpose", "data")
def transpose(op: Adjoint) -> Cotangents:
    """The inverse permutation; without perm the axes are reversed, which is its own inverse."""
    perm = op.attr("perm")
    inverse = None if perm is None else [int(axis) for axis in np.argsort(perm)]
    yield "data", op.b.op("Transpose", op.dY, perm=inverse, shape=op["data"].shape)


@rule("Expand", "input")
def expand(op: Adjoint) -> Cotangents:
    """Summed over the axes that were expanded."""
    dY = op.dY
    if dY.shape is None:
        dY.shape = op.out().shape
    yield "input", op.b.sum_to(dY, op["input"])


@rule("Concat", "inputs")
def concat(op: Adjoint) -> Cotangents:
    """Each wanted operand gets its slice; a frozen branch gets none."""
    b, axis = op.b, op.attr("axis")
    offset: int | ir.Value = 0
    last = max(op.wanted)
    for index, value in enumerate(op.node.inputs[: last + 1]):
        assert value is not None
        size = _size(op, value, axis)
        end = (
            offset + size
            if isinstance(offset, int) and isinstance(size, int)
            else b.Add(_vec(op, offset), _vec(op, size))
        )
        if index in op.wanted:
            yield (
                index,
                b.op("Slice", op.dY, _vec(op, offset), _vec(op, end), b.ints([axis]), shape=value.shape),
            )
        offset = end


def _size(op: Adjoint, value: ir.Value, axis: int) -> int | ir.Value:
    dim = value.shape[axis] if value.shape is not None else None
    return dim if isinstance(dim, int) else op.b.dim(value, axis)


def _vec(op: Adjoint, value: int | ir.Value) -> ir.Value:
    return op.b.ints([value]) if isinstance(value, int) else value


@rule("Split", "input")
def split(op: Adjoint) -> Cotangents:
    """The cotangents of the parts side by side; a part without one is zeros."""
    b = op.b
    parts = []
    for index, output in enumerate(op.node.outputs):
        cotangent = op.cotangent(index)
        parts.append(cotangent if cotangent is not None else b.zeros_like(output))
    yield "input", b.op("Concat", *parts, axis=op.attr("axis", 0), shape=op["input"].shape)


@rule("Slice", "data")
def slice_(op: Adjoint) -> Cotangents:
    """Positive constant steps of 1: zeros around the cotangent. Anything else: put back place by place."""
    padded = _padded(op)
    yield "data", padded if padded is not None else _scattered(op)


def _padded(op: Adjoint) -> ir.Value | None:
    """dY padded to the shape of data, where start, end and the sliced dimensions are known."""
    b, shape = op.b, op["data"].shape
    starts, ends, axes, steps = (op.constant(name) for name in ("starts", "ends", "axes", "steps"))
    if shape is None or starts is None or ends is None or (op.get("axes") is not None and axes is None):
        return None
    if op.get("steps") is not None and (steps is None or any(step != 1 for step in steps)):
        return None
    rank = len(shape)
    pads = [0] * (2 * rank)
    for start, end, axis in zip(starts, ends, range(len(starts)) if axes is None else axes, strict=True):
        dim = shape[int(axis) % rank]
        if not isinstance(dim, int):
            return None
        first, last, _ = slice(int(start), int(end)).indices(dim)
        pads[int(axis) % rank] = first
        pads[rank + int(axis) % rank] = dim - max(first, last)
    return b.op("Pad", op.dY, b.ints(pads), shape=shape)


def _scattered(op: Adjoint) -> ir.Value:
    b, starts = op.b, op["starts"]
    dtype = starts.dtype or ir.DataType.INT64
    axes = op.get("axes") or b.Range(
        b.constant(0, dtype), b.Cast(b.Size(starts), to=dtype), b.constant(1, dtype), dtype=dtype
    )
    steps = op.get("steps") or b.Expand(b.constant(1, dtype), b.Shape(starts))
    data = op["data"]
    return b.op(
        "SliceGrad",
        *(op.dY, starts, op["ends"], axes, steps, b.shape_of(data)),
        domain="gradcut",
        dtype=data.dtype,
        shape=data.shape,
    )


def put_back(op: Adjoint, operand: str, move: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """The adjoint of an operator that only copies elements: dY added up where each element came from.

    `move` applies the operator to the row numbers of the flat operand, which tells where that is. Not by ScatterND:
    with reduction=add ONNX Runtime's kernel adds in parallel and loses updates of a place that comes twice.
    """
    b, value = op.b, op[operand]
    shape = b.shape_of(value)
    places = b.Reshape(move(row_numbers(b, value)), b.ints([-1]))
    dY = op.wide(op.dY)
    zeros = b.zeros(b.ReduceProd(shape, keepdims=1), dY.dtype or ir.DataType.FLOAT)
    added = b.ScatterElements(zeros, places, b.Reshape(dY, b.ints([-1])), axis=0, reduction="add")
    return b.Cast(b.op("Reshape", added, shape, allowzero=1, shape=value.shape), to=value.dtype)


def row_numbers(b: Builder, value: ir.Value) -> ir.Value:
    """The place of each element in the flat `value`, INT64 in its shape."""
    shape, kind = b.shape_of(value), ir.DataType.INT64
    numbers = b.Range(b.constant(0, kind), b.ReduceProd(shape, keepdims=0), b.constant(1, kind), dtype=kind)
    return b.Reshape(numbers, shape, allowzero=1)


@rule("Pad", "data constant_value")
def pad(op: Adjoint) -> Cotangents:
    """Constant mode: data gets the part of dY that it filled, constant_value the sum of the rest.

    A negative pad cuts; cut elements get zeros. Other modes: what was copied adds up where it came from.
    """
    b, data, axes, mode = op.b, op["data"], op.get("axes"), op.attr("mode", "constant")
    if mode != "constant":
        yield "data", put_back(op, "data", lambda numbers: b.Pad(numbers, op["pads"], None, axes, mode=mode))
        return
    where = [] if axes is None else [None, axes]
    inside = b.op("Pad", op.dY, b.Neg(op["pads"]), *where, shape=data.shape)
    if op.wants("data"):
        yield "data", inside
    if op.wants("constant_value"):
        constant = op["constant_value"]
        rest = b.ReduceSum(op.dY, keepdims=0) - b.ReduceSum(inside, keepdims=0)
        yield "constant_value", b.op("Reshape", rest, b.shape_of(constant), shape=constant.shape)


@rule("Tile", "input")
def tile(op: Adjoint) -> Cotangents:
    """The cotangent with each axis split into (repeat, size), summed over the repeats."""
    b, X, repeats = op.b, op["input"], op["repeats"]
    row = b.ints([1, -1])
    pairs = b.Concat(b.Reshape(repeats, row), b.Reshape(b.shape_of(X), row), axis=0)
    split = b.op("Reshape", op.dY, b.Reshape(b.Transpose(pairs, perm=[1, 0]), b.ints([-1])), allowzero=1)
    count = b.Size(repeats) * 2
    kind = ir.DataType.INT64
    axes = b.Range(b.constant(0, kind), count, b.constant(2, kind), dtype=kind)
    yield "input", b.op("ReduceSum", split, axes, keepdims=0, noop_with_empty_axes=1, shape=X.shape)


@rule("Trilu", "input")
def trilu(op: Adjoint) -> Cotangents:
    """The same triangle of the cotangent."""
    k = [] if op.get("k") is None else [op["k"]]
    yield "input", op.b.op("Trilu", op.dY, *k, upper=op.attr("upper", 1), shape=op["input"].shape)
