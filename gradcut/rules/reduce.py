"""Reductions. The cotangent is put back at the reduced axes and broadcast to data."""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.dims import static_dims
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("ReduceSum", "data")
def reduce_sum(op: Adjoint) -> Cotangents:
    """Each element gets the cotangent of its sum."""
    yield "data", _spread(op, op.dY)


@rule("ReduceMean", "data")
def reduce_mean(op: Adjoint) -> Cotangents:
    """As the sum, over the number of elements reduced."""
    count = _count(op)
    if isinstance(count, int):
        yield "data", _spread(op, op.dY * (1.0 / max(count, 1)))
    else:
        dY = op.wide(op.dY)
        yield "data", _spread(op, op.b.Cast(dY / op.b.Cast(count, to=dY.dtype), to=op.dY.dtype))


@rule("ReduceMax ReduceMin", "data")
def reduce_extremum(op: Adjoint) -> Cotangents:
    """Equal elements share the cotangent equally, as torch.amax."""
    b, data = op.b, op["data"]
    dY = keep(op, op.wide(op.dY))
    hit = b.Cast(b.Equal(data, keep(op, op.out())), to=dY.dtype)
    count = b.op("ReduceSum", hit, op.get("axes"), keepdims=1, noop_with_empty_axes=op.attr("noop_with_empty_axes", 0))
    yield "data", shaped(op, b.Cast(hit * (dY / count), to=data.dtype))


@rule("ReduceSumSquare", "data")
def reduce_sum_square(op: Adjoint) -> Cotangents:
    """dX = 2 X dY."""
    yield "data", shaped(op, op["data"] * (keep(op, op.dY) * 2.0))


@rule("ReduceL2", "data")
def reduce_l2(op: Adjoint) -> Cotangents:
    """dX = X dY / |X|, 0 where the norm is 0, and so at the next order."""
    b, norm = op.b, keep(op, op.out())
    none = b.Equal(norm, 0.0)
    scale = keep(op, op.dY) / b.Where(none, b.scalar_like(1.0, norm), norm)
    yield "data", shaped(op, op["data"] * b.Where(none, b.scalar_like(0.0, norm), scale))


@rule("ReduceL1", "data")
def reduce_l1(op: Adjoint) -> Cotangents:
    """dX = sign(X) dY."""
    yield "data", shaped(op, op.b.Sign(op["data"]) * keep(op, op.dY))


@rule("ReduceLogSumExp", "data")
def reduce_log_sum_exp(op: Adjoint) -> Cotangents:
    """dX = exp(X - Y) dY."""
    weights = op.b.Exp(op["data"] - keep(op, op.out()))
    yield "data", shaped(op, weights * keep(op, op.dY))


@rule("ReduceLogSum", "data")
def reduce_log_sum(op: Adjoint) -> Cotangents:
    """Y = log sum X: dX = dY exp(-Y)."""
    yield "data", _spread(op, op.dY * op.b.Exp(-op.out()))


@rule("CumSum", "x")
def cum_sum(op: Adjoint) -> Cotangents:
    """The same sum from the other end."""
    reverse, exclusive = op.attr("reverse", 0), op.attr("exclusive", 0)
    yield "x", op.b.op("CumSum", op.dY, op["axis"], reverse=1 - reverse, exclusive=exclusive)


def shaped(op: Adjoint, value: ir.Value) -> ir.Value:
    """The value, said to be of the shape of data."""
    value.shape = op["data"].shape
    return value


def reduced_axes(op: Adjoint) -> list[int] | None:
    """The reduced axes, not negative; None where only run time can tell."""
    axes, shape = op.constant("axes"), op["data"].shape
    if (op.get("axes") is not None and axes is None) or shape is None:
        return None
    if axes is None or axes.size == 0:
        return [] if op.attr("noop_with_empty_axes", 0) else list(range(len(shape)))
    return sorted({int(axis) % len(shape) for axis in axes})


def keep(op: Adjoint, value: ir.Value) -> ir.Value:
    """A reduced value in a shape that broadcasts to that of data.

    Unsqueeze reads axes as the reduction does, negative ones too; without axes the value is a scalar or not reduced.
    """
    axes, constant = op.get("axes"), op.constant("axes")
    if op.attr("keepdims", 1) or axes is None or (constant is not None and constant.size == 0):
        return value
    known, data = reduced_axes(op), op["data"]
    shape = None
    if known is not None:
        shape = ir.Shape([1 if axis in known else dim for axis, dim in enumerate(data.shape or ())])
    return op.b.op("Unsqueeze", value, axes, shape=shape)


def _spread(op: Adjoint, value: ir.Value) -> ir.Value:
    data = op["data"]
    return op.b.op("Expand", keep(op, value), op.b.shape_of(data), shape=data.shape)


def _count(op: Adjoint) -> int | ir.Value:
    """How many elements one result was made of."""
    axes, shape, b = reduced_axes(op), op["data"].shape, op.b
    known = None if axes is None or shape is None else static_dims(ir.Shape([shape[axis] for axis in axes]))
    if known is not None:
        return math.prod(known)
    results = b.Max(b.Size(op.out()), b.constant(1, ir.DataType.INT64))
    ratio = b.Div(b.Size(op["data"]), results)
    ratio.shape = ir.Shape([])
    return ratio
