"""Products of many elements, all of a line or all up to each: without division, so that zeros are right."""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.dims import static_dims
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.reduce import keep, reduced_axes, shaped
from gradcut.rules.registry import rule

#: From more elements on products of all but one are taken by doubling.
_MANY = 64


@rule("ReduceProd", "data")
def reduce_prod(op: Adjoint) -> Cotangents:
    """dX = dY times the product of the other elements, taken as such, so that zeros are right at every order.

    The reduced axes are moved to the end and made one of n elements. The products of n - 1 cost n^2 where n is known to
    be small, n log n where it is known to be large, and n^1.5 where run time alone can tell.
    """
    axes = reduced_axes(op)
    if axes is None:
        yield "data", shaped(op, _other_products_of_computed(op) * keep(op, op.dY))
        return
    yield "data", shaped(op, _other_products(op, axes, op.rank("data")) * keep(op, op.dY)) if axes else op.dY


def _other_products(op: Adjoint, axes: list[int], rank: int) -> ir.Value:
    """For each element of data the product of those it is reduced with."""
    b, data = op.b, op["data"]
    last = [*(axis for axis in range(rank) if axis not in axes), *axes]
    moved = b.Transpose(data, perm=last)
    n, rows = (_elements(op, some) for some in (axes, last[: rank - len(axes)]))
    sizes = static_dims(ir.Shape([(data.shape or ())[axis] for axis in axes]))
    lines = b.Reshape(moved, b.Concat(rows, n, axis=0), allowzero=1)
    if sizes is None:
        products = _products_by_blocks(op, lines, n)
    elif math.prod(sizes) > _MANY:
        products = _products_around(op, lines, math.prod(sizes))
    else:
        products = _products_of_others(op, b.Unsqueeze(lines, b.ints([1])), n)
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
    number = b.Reshape(b.Expand(keep(op, numbers), shape), whole)
    order = b.node("TopK", number, count, outputs=2, axis=0, largest=0, sorted=1, dtype=kind).outputs[1]
    order.dtype = kind
    n = b.Div(count, b.Max(results, one))
    sizes = b.Concat(b.Reshape(results, b.ints([1])), n, axis=0)
    lines = b.Reshape(b.Gather(b.Reshape(data, whole), order), sizes, allowzero=1)
    products = b.Reshape(_products_by_blocks(op, lines, n), whole)
    places = b.Range(zero, b.Squeeze(count), one, dtype=kind)
    place = b.ScatterElements(b.zeros(count, kind), order, places, axis=0)
    return b.op("Reshape", b.Gather(products, place), shape, allowzero=1, shape=data.shape)


def _products_of_others(op: Adjoint, lines: ir.Value, n: ir.Value) -> ir.Value:
    """[..., 1, n] to [..., n]: for each element the product of the others in its line."""
    b = op.b
    diagonal = b.EyeLike(b.zeros(b.Concat(n, n, axis=0), ir.DataType.FLOAT))
    others = b.Where(b.Cast(diagonal, to=ir.DataType.BOOL), b.scalar_like(1.0, op["data"]), lines)
    return b.ReduceProd(others, b.ints([-1]), keepdims=0)


def _products_by_blocks(op: Adjoint, lines: ir.Value, n: ir.Value) -> ir.Value:
    """Of [rows, n], for each element: the product of the others in its block, of about sqrt n elements, times those of
    the other blocks."""
    b, kind, one = op.b, ir.DataType.INT64, op.b.ints([1])
    root = b.Cast(b.Ceil(b.Sqrt(b.Cast(n, to=ir.DataType.FLOAT))), to=kind)
    size = b.Max(root, one)
    count = b.Div(n + size - one, size)
    padded = b.Pad(lines, b.Concat(b.ints([0]), count * size - n, axis=0), b.scalar_like(1.0, op["data"]), one)
    rows = b.op("Shape", lines, start=0, end=1)
    blocks = b.Reshape(padded, b.Concat(rows, count, one, size, axis=0), allowzero=1)
    whole = b.Reshape(b.ReduceProd(blocks, b.ints([3]), keepdims=0), b.Concat(rows, one, count, axis=0), allowzero=1)
    others = b.Unsqueeze(_products_of_others(op, whole, count), b.ints([2]))
    products = b.Mul(_products_of_others(op, blocks, size), others)
    flat = b.Reshape(products, b.Concat(rows, count * size, axis=0), allowzero=1)
    return b.Slice(flat, b.ints([0]), n, one)


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
    """Of [rows, n], for each element: the product of those before it times that of those behind it, by doubling."""
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
    """[A, n, ...] moved up by `step` along n, with `fill` behind."""
    b = op.b
    moved = b.Pad(x, b.ints([0, step]), b.scalar_like(fill, x), b.ints([1]))
    return b.Slice(moved, b.ints([step]), b.ints([2**62]), b.ints([1]))


def _from_previous(op: Adjoint, x: ir.Value, step: int, fill: float) -> ir.Value:
    """[A, n, ...] moved down by `step` along n, with `fill` before."""
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
