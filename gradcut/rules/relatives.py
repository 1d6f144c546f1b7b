"""What the relatives of the mark do to a cotangent: scale, reverse, clip, hand on to another value."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.dialect import DOMAIN
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("GradientScale", "X", operands="X scale", domain=DOMAIN)
def gradient_scale(op: Adjoint) -> Cotangents:
    """dX = scale dY; where a run makes the scale 0, dX is 0 whatever dY is."""
    yield "X", _scaled(op, cotangent(op))


@rule("GradientReversal", "X", operands="X scale", domain=DOMAIN)
def gradient_reversal(op: Adjoint) -> Cotangents:
    """dX = -scale dY, see `gradient_scale`."""
    yield "X", op.b.op("Neg", _scaled(op, cotangent(op)), shape=op["X"].shape)


def cotangent(op: Adjoint) -> ir.Value:
    """dY, of a tensor."""
    if isinstance(op["X"].type, ir.SequenceType):
        op.refuse(f"{op['X'].name!r} is a sequence, and what changes a gradient takes tensors: put it on the elements")
    return op.dY


def _scaled(op: Adjoint, dY: ir.Value) -> ir.Value:
    b, number = op.b, _number(op, "scale")
    if number is not None:
        return dY if number == 1.0 else b.op("Mul", dY, number, shape=op["X"].shape)
    scale = b.Reshape(b.op("CastLike", op["scale"], dY, dtype=dY.dtype), b.ints([]))
    scale.shape = ir.Shape([])
    zero = b.scalar_like(0.0, dY)
    return b.op("Where", b.Equal(scale, zero), zero, b.Mul(dY, scale), dtype=dY.dtype, shape=op["X"].shape)


@rule("GradientClipValue", "X", operands="X bound", domain=DOMAIN)
def gradient_clip_value(op: Adjoint) -> Cotangents:
    """dX = min(max(dY, -bound), bound); NaN stays NaN."""
    b, dY, bound = op.b, cotangent(op), _bound(op)
    below = b.Where(b.Greater(dY, bound), bound, dY)  # a runtime's Clip may take NaN for either bound
    least = b.Neg(bound)
    yield "X", b.op("Where", b.Less(below, least), least, below, dtype=dY.dtype, shape=op["X"].shape)


@rule("GradientClipNorm", "X", operands="X bound", domain=DOMAIN)
def gradient_clip_norm(op: Adjoint) -> Cotangents:
    """dX = dY bound / max(||dY||, bound), which divides by no 0; the norm of halves is taken in float32."""
    b, dY = op.b, op.wide(cotangent(op))
    bound = b.Cast(_bound(op), to=dY.dtype)
    norm = b.op("ReduceL2", dY, keepdims=0, dtype=dY.dtype, shape=ir.Shape([]))
    factor = b.Div(bound, b.op("Max", norm, bound, dtype=dY.dtype, shape=ir.Shape([])))
    yield "X", b.op("Mul", op.dY, b.Cast(factor, to=op.dY.dtype), shape=op["X"].shape)


def _bound(op: Adjoint) -> ir.Value:
    number = _number(op, "bound")
    if number is not None:
        return op.b.scalar_like(number, op.dY)
    bound = op.b.Reshape(op.b.op("CastLike", op["bound"], op.dY, dtype=op.dY.dtype), op.b.ints([]))
    bound.shape = ir.Shape([])
    return bound


def _number(op: Adjoint, operand: str) -> float | None:
    """The scalar that a Constant says; an initializer may be given other numbers, and is read at run time."""
    array = None if op[operand].is_initializer() else op.constant(operand)
    return None if array is None else float(array.reshape(()))


@rule("ConditionalStop", "X", operands="X condition", domain=DOMAIN)
def conditional_stop(op: Adjoint) -> Cotangents:
    """dX = 0 where the condition is true, else dY; what only lies behind is in an If: `gradcut.passes.guards`."""
    b, dY = op.b, cotangent(op)
    closed = b.op("Reshape", op["condition"], b.ints([]), dtype=ir.DataType.BOOL, shape=ir.Shape([]))
    yield "X", b.op("Where", closed, b.scalar_like(0.0, dY), dY, dtype=dY.dtype, shape=op["X"].shape)


@rule("StraightThroughEstimator", "X", operands="Y X", domain=DOMAIN)
def straight_through_estimator(op: Adjoint) -> Cotangents:
    """dX = dY."""
    yield "X", op.dY
