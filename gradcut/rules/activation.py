"""Activations that are not among ONNX's oldest. At their joints the slope is torch's: that of the side at or below."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule

#: Klambauer et al. 2017, as the ONNX page of Selu rounds them.
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _positive(op: Adjoint, above: ir.Value, below: ir.Value) -> ir.Value:
    """`below` where X <= 0, `above` elsewhere, and so where X is no number."""
    return op.b.Where(op.b.LessOrEqual(op["X"], 0.0), below, above)


def _below(op: Adjoint) -> ir.Value:
    """X where it is not positive, else 0: exponentials of it cannot overflow."""
    return op.b.Min(op["X"], op.b.scalar_like(0.0, op["X"]))


@rule("PRelu", "X slope", weights="slope", broadcasts=True)
def p_relu(op: Adjoint) -> Cotangents:
    """Y = X above 0, slope X elsewhere: dX = dY or dY slope, dslope = dY X where X is not positive."""
    b, dY = op.b, op.dY
    above = b.Greater(op["X"], 0.0)
    if op.wants("X"):
        yield "X", b.Where(above, dY, dY * op["slope"])
    if op.wants("slope"):
        yield "slope", b.Where(above, b.scalar_like(0.0, dY), dY * op["X"])


@rule("Elu", "X")
def elu(op: Adjoint) -> Cotangents:
    """Y = alpha (exp X - 1) below 0: dX = dY alpha exp X there."""
    yield "X", _positive(op, op.dY, op.dY * (op.b.Exp(_below(op)) * op.attr("alpha", 1.0)))


@rule("Celu", "X")
def celu(op: Adjoint) -> Cotangents:
    """Y = alpha (exp(X / alpha) - 1) below 0: dX = dY exp(X / alpha) there."""
    yield "X", _positive(op, op.dY, op.dY * op.b.Exp(_below(op) * (1.0 / op.attr("alpha", 1.0))))


@rule("Selu", "X")
def selu(op: Adjoint) -> Cotangents:
    """Y = gamma X above 0, gamma alpha (exp X - 1) below; Klambauer et al. 2017."""
    alpha, gamma = op.attr("alpha", _SELU_ALPHA), op.attr("gamma", _SELU_GAMMA)
    yield "X", _positive(op, op.dY * gamma, op.dY * (op.b.Exp(_below(op)) * (alpha * gamma)))


@rule("ThresholdedRelu", "X")
def thresholded_relu(op: Adjoint) -> Cotangents:
    """Y = X above alpha, 0 elsewhere."""
    above = op.b.Greater(op["X"], op.attr("alpha", 1.0))
    yield "X", op.b.Where(above, op.dY, op.b.scalar_like(0.0, op.dY))


@rule("Shrink", "input")
def shrink(op: Adjoint) -> Cotangents:
    """Y = X + bias below -lambd, X - bias above lambd, 0 between them and at both."""
    outside = op.b.Greater(op.b.Abs(op["input"]), op.attr("lambd", 0.5))
    yield "input", op.b.Where(outside, op.dY, op.b.scalar_like(0.0, op.dY))


@rule("Softsign", "input")
def softsign(op: Adjoint) -> Cotangents:
    """Y = X / (1 + |X|): dX = dY / (1 + |X|)^2."""
    wide = op.b.Abs(op["input"]) + 1.0
    yield "input", op.dY / (wide * wide)


@rule("Mish", "X")
def mish(op: Adjoint) -> Cotangents:
    """Y = X t, t = tanh(softplus X): dX = dY (t + X sigmoid(X) (1 - t^2)); Misra 2019."""
    b, X = op.b, op["X"]
    t = b.Tanh(b.Softplus(X))
    yield "X", op.dY * (t + X * b.Sigmoid(X) * (1.0 - t * t))


@rule("Swish", "X", since=24)
def swish(op: Adjoint) -> Cotangents:
    """Y = X s, s = sigmoid(alpha X): dX = dY (s + alpha Y (1 - s)); Ramachandran et al. 2017."""
    b, alpha = op.b, op.attr("alpha", 1.0)
    s = b.Sigmoid(op["X"] * alpha)
    yield "X", op.dY * (s + op.out() * ((1.0 - s) * alpha))


@rule("LpNormalization", "input")
def lp_normalization(op: Adjoint) -> Cotangents:
    """Y = X / |X|_p along an axis: dX = (dY - g sum(dY Y)) / |X|, g = Y for p = 2 and sign X for p = 1."""
    b, X, p = op.b, op["input"], op.attr("p", 2)
    axes = b.ints([op.attr("axis", -1)])
    norm = b.op("ReduceL2" if p == 2 else "ReduceL1", X, axes, keepdims=1)
    none = b.Equal(norm, 0.0)
    inverse = b.Where(none, b.scalar_like(0.0, norm), b.Reciprocal(b.Where(none, b.scalar_like(1.0, norm), norm)))
    direction = op.out() if p == 2 else b.Sign(X)
    projection = b.ReduceSum(op.dY * op.out(), axes, keepdims=1)
    yield "input", (op.dY - direction * projection) * inverse


def _table() -> None:
    """Operators whose slope is one expression of X and Y."""
    slopes = {
        "Tan": lambda b, x, y: y * y + 1.0,
        "Asin": lambda b, x, y: b.Reciprocal(b.Sqrt(1.0 - x * x)),
        "Acos": lambda b, x, y: -b.Reciprocal(b.Sqrt(1.0 - x * x)),
        "Atan": lambda b, x, y: b.Reciprocal(x * x + 1.0),
        "Sinh": lambda b, x, y: b.Cosh(x),
        "Cosh": lambda b, x, y: b.Sinh(x),
        "Asinh": lambda b, x, y: b.Reciprocal(b.Sqrt(x * x + 1.0)),
        "Acosh": lambda b, x, y: b.Reciprocal(b.Sqrt(x * x - 1.0)),
        "Atanh": lambda b, x, y: b.Reciprocal(1.0 - x * x),
    }
    for op_type, slope in slopes.items():

        def vjp(op: Adjoint, slope: object = slope) -> Cotangents:
            assert callable(slope)
            yield "input", op.dY * slope(op.b, op["input"], op.out())

        rule(op_type, "input")(vjp)


_table()
