"""Between floats and integers of few bits. What is rounded has no derivative; the scales of it have.

Rounding itself passes gradients only where the model says so, see `gradcut.passes.importing.straight_through`.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from gradcut.dialect import DOMAIN
from gradcut.dims import static_dims
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("StraightThrough", "X", operands="Y X inside", domain=DOMAIN)
def straight_through(op: Adjoint) -> Cotangents:
    """dX = dY inside the range that the integers represent, 0 outside: torch's fake quantisation."""
    yield "X", op.b.op("Where", op["inside"], op.dY, op.b.scalar_like(0.0, op.dY), shape=op["X"].shape)


@rule("DynamicQuantizeLinear", "x", outputs=lambda node: {"y": "", "y_zero_point": ""})
def dynamic_quantize_linear(op: Adjoint) -> Cotangents:
    """y_scale = (max(x, 0) - min(x, 0)) / 255: by it, and by it alone, the extremes get a cotangent.

    Equal elements share it equally, and one that equals 0 shares with that by halves.
    """
    b, x, scale = op.b, op["x"], op.cotangent("y_scale")
    assert scale is not None
    share = scale * (1.0 / 255.0)
    top = _extreme(op, b.op("ReduceMax", x, keepdims=0, shape=ir.Shape([])), b.Greater)
    bottom = _extreme(op, b.op("ReduceMin", x, keepdims=0, shape=ir.Shape([])), b.Less)
    yield "x", b.op("Mul", share, top - bottom, shape=x.shape)


def _extreme(op: Adjoint, found: ir.Value, beyond: Callable[[ir.Value, float], ir.Value]) -> ir.Value:
    """What of a cotangent each element of x gets that is the extreme one, or one of several; none where 0 beats it."""
    b, x = op.b, op["x"]
    hit = b.Cast(b.Equal(x, found), to=x.dtype)
    half = b.Where(b.Equal(found, 0.0), b.scalar_like(0.5, x), b.scalar_like(0.0, x))
    counts = b.Where(beyond(found, 0.0), b.scalar_like(1.0, x), half)
    return b.Mul(hit, counts / b.ReduceSum(hit, keepdims=0))


@rule("DequantizeLinear", "x_scale")
def dequantize_linear(op: Adjoint) -> Cotangents:
    """y = (x - x_zero_point) x_scale: dx_scale is the sum of dY (x - x_zero_point) over all that it scales."""
    b, scale = op.b, op["x_scale"]
    terms = op.wide(op.dY) * _levels(op)
    if op.attr("block_size", 0):
        total = _block_sums(op, terms, op.attr("axis", 1) % op.rank("x_scale"))
    elif static_dims(scale.shape) == ():
        total = b.ReduceSum(terms, keepdims=0)
    elif static_dims(scale.shape) == (1,):
        total = b.Reshape(b.ReduceSum(terms, keepdims=0), b.ints([1]))
    else:
        total = b.sum_to(_sums_along_axis(op, terms), scale)
    yield "x_scale", b.op("CastLike", total, scale, dtype=scale.dtype, shape=scale.shape)


def _sums_along_axis(op: Adjoint, terms: ir.Value) -> ir.Value:
    rank = op.rank("x")
    others = [at for at in range(rank) if at != op.attr("axis", 1) % rank] if rank else []
    return op.b.ReduceSum(terms, op.b.ints(others), keepdims=0, noop_with_empty_axes=1)


def _levels(op: Adjoint) -> ir.Value:
    """x - x_zero_point in float32: what the operator gives at scales of 1."""
    b, kind = op.b, ir.DataType.FLOAT
    ones = b.op("Expand", b.constant(1.0, kind), b.shape_of(op["x_scale"]), dtype=kind, shape=op["x_scale"].shape)
    said = {name: op.attr(name) for name in ("axis", "block_size")}
    given = (op["x"], ones, op.get("x_zero_point"))
    return b.op("DequantizeLinear", *given[: len(op.node.inputs)], dtype=kind, shape=op["x"].shape, **said)


def _block_sums(op: Adjoint, terms: ir.Value, axis: int) -> ir.Value:
    """The sum of each block along an axis; the last one may be shorter."""
    b, block, scale, rank = op.b, op.attr("block_size"), op["x_scale"], op.rank("x_scale")
    missing = b.dim(scale, axis) * b.ints([block]) - b.dim(op["x"], axis)
    whole = b.op("Pad", terms, b.Concat(b.ints([0]), missing, axis=0), None, b.ints([axis]))
    sizes = [b.dims(b.dim(scale, at), block) if at == axis else b.dim(scale, at) for at in range(rank)]
    apart = b.op("Reshape", whole, b.Concat(*sizes, axis=0), allowzero=1)
    return b.op("ReduceSum", apart, b.ints([axis + 1]), keepdims=0)
