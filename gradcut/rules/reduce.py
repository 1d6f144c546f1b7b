"""Reductions. The cotangent is put back at the reduced axes and broadcast to data."""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.ops import static_dims
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule

#: From more elements on products of all but one are taken by doubling.
_MANY = 64


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
    dY = _keep(op, op.wide(op.dY))
    hit = b.Cast(b.Equal(data, _keep(op, op.out())), to=dY.dtype)
    count = b.op("ReduceSum", hit, op.get("axes"), keepdims=1, noop_with_empty_axes=op.attr("noop_with_empty_axes", 0))
    yield "data", _shaped(op, b.Cast(hit * (dY / count), to=data.dtype))


@rule("ReduceSumSquare", "data")
def reduce_sum_square(op: Adjoint) -> Cotangents:
    """dX = 2 X dY."""
    yield "data", _shaped(op, op["data"] * (_keep(op, op.dY) * 2.0))


@rule("ReduceL2", "data")
def reduce_l2(op: Adjoint) -> Cotangents:
    """dX = X dY / |X|, 0 where the norm is 0, and so at the next order."""
    b, norm = op.b, _keep(op, op.out())
    none = b.Equal(norm, 0.0)
    scale = _keep(op, op.dY) / b.Where(none, b.scalar_like(1.0, norm), norm)
    yield "data", _shaped(op, op["data"] * b.Where(none, b.scalar_like(0.0, norm), scale))


@rule("ReduceL1", "data")
def reduce_l1(op: Adjoint) -> Cotangents:
    """dX = sign(X) dY."""
    yield "data", _shaped(op, op.b.Sign(op["data"]) * _keep(op, op.dY))


@rule("ReduceLogSumExp", "data")
def reduce_log_sum_exp(op: Adjoint) -> Cotangents:
    """dX = exp(X - Y) dY."""
    weights = op.b.Exp(op["data"] - _keep(op, op.out()))
    yield "data", _shaped(op, weights * _keep(op, op.dY))


@rule("ReduceLogSum", "data")
def reduce_log_sum(op: Adjoint) -> Cotangents:
    """Y = log sum X: dX = dY exp(-Y)."""
    yield "data", _spread(op, op.dY * op.b.Exp(-op.out()))


@rule("ReduceProd", "data")
def reduce_prod(op: Adjoint) -> Cotangents:
    """dX = dY times the product of the other elements, taken as such, so that zeros are right at every order.

    The reduced axes are moved to the end and made one of n elements; the products of n - 1 cost n^2, or n log n where
    many are known to be there.
    """
    axes = _axes(op)
    if axes is None:
        yield "data", _shaped(op, _other_products_of_computed(op) * _keep(op, op.dY))
        return
    yield "data", _shaped(op, _other_products(op, axes, op.rank("data")) * _keep(op, op.dY)) if axes else op.dY


def _other_products(op: Adjoint, axes: list[int], rank: int) -> ir.Value:
    """For each element of data the product of those it is reduced with."""
    b, data = op.b, op["data"]
    last = [*(axis for axis in range(rank) if axis not in axes), *axes]
    moved = b.Transpose(data, perm=last)
    n, rows = (_elements(op, some) for some in (axes, last[: rank - len(axes)]))
    sizes = static_dims(ir.Shape([(data.shape or ())[axis] for axis in axes]))
    if sizes is not None and math.prod(sizes) > _MANY:
        lines = b.Reshape(moved, b.Concat(rows, n, b.ints([1]), axis=0), allowzero=1)
        products = _products_around(op, lines, math.prod(sizes))
    else:
        lines = b.Reshape(moved, b.Concat(rows, b.ints([1]), n, axis=0), allowzero=1)
        products = _products_of_others(op, lines, n)
    slope = b.Reshape(products, b.Shape(moved), allowzero=1)
    return b.op("Transpose", slope, perm=[last.index(axis) for axis in range(rank)], shape=data.shape)


def _elements(op: Adjoint, axes: list[int]) -> ir.Value:
    """INT64 [1]: how many elements data has along some axes."""
    b = op.b
    return b.ReduceProd(b.Concat(*(b.dim(op["data"], axis) for axis in axes), b.ints([1]), axis=0), keepdims=1)


def _other_products_of_computed(op: Adjoint) -> ir.Value:
    """As `_other_products`, where run time alone can tell the axes or the rank: the elements are sorted by the number
    of their result, and back."""
    b, data, kind = op.b, op["data"], ir.DataType.INT64
    whole, zero, one = b.ints([-1]), b.constant(0, kind), b.constant(1, kind)
    results, count, shape = b.Size(op.out()), b.Reshape(b.Size(data), b.ints([1])), b.Shape(data)
    numbers = b.Reshape(b.Range(zero, results, one, dtype=kind), b.Shape(op.out()), allowzero=1)
    number = b.Reshape(b.Expand(_keep(op, numbers), shape), whole)
    order = b.node("TopK", number, count, outputs=2, axis=0, largest=0, sorted=1, dtype=kind).outputs[1]
    order.dtype = kind
    n = b.Div(count, b.Max(results, one))
    lines = b.Concat(b.Reshape(results, b.ints([1])), b.ints([1]), n, axis=0)
    flat = b.Reshape(b.Gather(b.Reshape(data, whole), order), lines, allowzero=1)
    products = b.Reshape(_products_of_others(op, flat, n), whole)
    places = b.Range(zero, b.Squeeze(count), one, dtype=kind)
    place = b.ScatterElements(b.zeros(count, kind), order, places, axis=0)
    return b.op("Reshape", b.Gather(products, place), shape, allowzero=1, shape=data.shape)


def _products_of_others(op: Adjoint, flat: ir.Value, n: ir.Value) -> ir.Value:
    """[rows, 1, n] to [rows, n]: for each element the product of the others in its row."""
    b = op.b
    diagonal = b.EyeLike(b.zeros(b.Concat(n, n, axis=0), ir.DataType.FLOAT))
    others = b.Where(b.Cast(diagonal, to=ir.DataType.BOOL), b.scalar_like(1.0, op["data"]), flat)
    return b.ReduceProd(others, b.ints([2]), keepdims=0)


@rule("CumSum", "x")
def cum_sum(op: Adjoint) -> Cotangents:
    """The same sum from the other end."""
    reverse, exclusive = op.attr("reverse", 0), op.attr("exclusive", 0)
    yield "x", op.b.op("CumSum", op.dY, op["axis"], reverse=1 - reverse, exclusive=exclusive)


@rule("CumProd", "x")
def cum_prod(op: Adjoint) -> Cotangents:
    """dx_k = P_k R_k: the product P of what stands before k, and R_k = dY_k + x_{k+1} R_{k+1}.

    No division, so zeros are right, at every order. R is a linear recurrence, solved by doubling: each round composes
    steps of twice the length, log2 n rounds where n is known, else the n^2 products between all pairs.
    """
    b, x, dY = op.b, op["x"], op.wide(op.dY)
    blocks = _blocks(op)
    X, G = (b.Reshape(value, blocks, allowzero=1) for value in (op.wide(x), dY))
    if op.attr("reverse", 0):
        X, G = _flipped(op, X), _flipped(op, G)
    if op.attr("exclusive", 0):
        G = _from_next(op, G, 1, 0.0)
    before = b.op("CumProd", X, b.constant(1), exclusive=1)
    n = _known_length(op)
    rest = _doubled(op, X, G, n) if n is not None else _all_pairs(op, X, G)
    result = before * rest
    if op.attr("reverse", 0):
        result = _flipped(op, result)
    yield "x", b.Cast(b.op("Reshape", result, b.shape_of(x), allowzero=1, shape=x.shape), to=x.dtype)


def _blocks(op: Adjoint) -> ir.Value:
    """The shape of x as [before the axis, along it, behind it]."""
    b, shape, kind = op.b, op.b.shape_of(op["x"]), ir.DataType.INT64
    axis = b.Cast(b.Reshape(op["axis"], b.ints([1])), to=kind)
    axis = b.Where(b.Less(axis, b.constant(0, kind)), axis + b.Shape(shape), axis)
    before = b.ReduceProd(b.Slice(shape, b.ints([0]), axis), keepdims=1)
    behind = b.ReduceProd(b.Slice(shape, axis + 1, b.ints([2**62])), keepdims=1)
    return b.Concat(before, b.Gather(shape, axis), behind, axis=0)


def _known_length(op: Adjoint) -> int | None:
    axis, shape = op.constant("axis"), op["x"].shape
    size = None if axis is None or shape is None else shape[int(axis.reshape(()))]
    return size if isinstance(size, int) else None


def _products_around(op: Adjoint, lines: ir.Value, n: int) -> ir.Value:
    """Of [rows, n, 1], for each element: the products of those before it times those behind it, by doubling."""
    before, behind = _from_previous(op, lines, 1, 1.0), _from_next(op, lines, 1, 1.0)
    step = 1
    while step < n - 1:
        before = before * _from_previous(op, before, step, 1.0)
        behind = behind * _from_next(op, behind, step, 1.0)
        step *= 2
    return op.b.Mul(before, behind)


def _flipped(op: Adjoint, x: ir.Value) -> ir.Value:
    b = op.b
    return b.Slice(x, b.ints([-1]), b.ints([-(2**62)]), b.ints([1]), b.ints([-1]))


def _from_next(op: Adjoint, x: ir.Value, step: int, fill: float) -> ir.Value:
    """[A, n, B] moved up by `step` along n, with `fill` behind."""
    b = op.b
    moved = b.Pad(x, b.ints([0, step]), b.scalar_like(fill, x), b.ints([1]))
    return b.Slice(moved, b.ints([step]), b.ints([2**62]), b.ints([1]))


def _from_previous(op: Adjoint, x: ir.Value, step: int, fill: float) -> ir.Value:
    """[A, n, B] moved down by `step` along n, with `fill` before."""
    b = op.b
    moved = b.Pad(x, b.ints([step, 0]), b.scalar_like(fill, x), b.ints([1]))
    return b.Slice(moved, b.ints([0]), b.ints([-step]), b.ints([1]))


def _doubled(op: Adjoint, X: ir.Value, G: ir.Value, n: int) -> ir.Value:
    factors, rest, step = _from_next(op, X, 1, 0.0), G, 1
    while step < n:
        rest = rest + factors * _from_next(op, rest, step, 0.0)
        if 2 * step < n:
            factors = factors * _from_next(op, factors, step, 0.0)
        step *= 2
    return rest


def _all_pairs(op: Adjoint, X: ir.Value, G: ir.Value) -> ir.Value:
    """R_k as the sum of dY_i times the product of what stands behind k up to i."""
    b, kind = op.b, ir.DataType.INT64
    n = b.op("Shape", X, start=1, end=2)
    at = b.Range(b.constant(0, kind), b.Squeeze(n), b.constant(1, kind), dtype=kind)
    here, there = b.Unsqueeze(at, b.ints([0, 2, 3])), b.Unsqueeze(at, b.ints([0, 1, 3]))  # [1, k, 1, 1], [1, 1, i, 1]
    behind = b.Where(b.Greater(there, here), b.Unsqueeze(X, b.ints([1])), b.scalar_like(1.0, X))
    between = b.op("CumProd", behind, b.constant(2))
    counted = b.Where(b.Less(there, here), b.scalar_like(0.0, X), between * b.Unsqueeze(G, b.ints([1])))
    return b.ReduceSum(counted, b.ints([2]), keepdims=0)


def _shaped(op: Adjoint, value: ir.Value) -> ir.Value:
    value.shape = op["data"].shape
    return value


def _axes(op: Adjoint) -> list[int] | None:
    """The reduced axes, not negative; None where only run time can tell."""
    axes, shape = op.constant("axes"), op["data"].shape
    if (op.get("axes") is not None and axes is None) or shape is None:
        return None
    if axes is None or axes.size == 0:
        return [] if op.attr("noop_with_empty_axes", 0) else list(range(len(shape)))
    return sorted({int(axis) % len(shape) for axis in axes})


def _keep(op: Adjoint, value: ir.Value) -> ir.Value:
    """A reduced value in a shape that broadcasts to that of data.

    Unsqueeze reads axes as the reduction does, negative ones too; without axes the value is a scalar or not reduced.
    """
    axes, constant = op.get("axes"), op.constant("axes")
    if op.attr("keepdims", 1) or axes is None or (constant is not None and constant.size == 0):
        return value
    known, data = _axes(op), op["data"]
    shape = None
    if known is not None:
        shape = ir.Shape([1 if axis in known else dim for axis, dim in enumerate(data.shape or ())])
    return op.b.op("Unsqueeze", value, axes, shape=shape)


def _spread(op: Adjoint, value: ir.Value) -> ir.Value:
    data = op["data"]
    return op.b.op("Expand", _keep(op, value), op.b.shape_of(data), shape=data.shape)


def _count(op: Adjoint) -> int | ir.Value:
    """How many elements one result was made of."""
    axes, shape, b = _axes(op), op["data"].shape, op.b
    known = None if axes is None or shape is None else static_dims(ir.Shape([shape[axis] for axis in axes]))
    if known is not None:
        return math.prod(known)
    results = b.Max(b.Size(op.out()), b.constant(1, ir.DataType.INT64))
    ratio = b.Div(b.Size(op["data"]), results)
    ratio.shape = ir.Shape([])
    return ratio
