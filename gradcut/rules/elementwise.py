"""Elementwise operators. C = f(A, B) with NumPy broadcasting, which the engine undoes.

At the kinks the convention is torch's (SEMANTICS: Relu and Abs have slope 0 at 0, equal operands of Max and Min share
the cotangent by halves, Clip passes it at its bounds).
"""

from __future__ import annotations

import functools
import math

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Identity", "input")
def identity(op: Adjoint) -> Cotangents:
    """output = input."""
    yield "input", op.dY


@rule("Cast CastLike", "input")
def cast(op: Adjoint) -> Cotangents:
    """Between float types: the cotangent in the operand's own type."""
    X = op["input"]
    yield "input", op.b.CastLike(op.dY, X) if X.dtype is None else op.b.Cast(op.dY, to=X.dtype)


@rule("Add", "A B", weights="A B", broadcasts=True)
def add(op: Adjoint) -> Cotangents:
    """C = A + B."""
    for operand in ("A", "B"):
        if op.wants(operand):
            yield operand, op.dY


@rule("Sub", "A B", broadcasts=True)
def sub(op: Adjoint) -> Cotangents:
    """C = A - B."""
    if op.wants("A"):
        yield "A", op.dY
    if op.wants("B"):
        yield "B", -op.dY


@rule("Mul", "A B", weights="A B", broadcasts=True)
def mul(op: Adjoint) -> Cotangents:
    """C = A B: dA = dC B, dB = dC A."""
    if op.wants("A"):
        yield "A", op.dY * op["B"]
    if op.wants("B"):
        yield "B", op.dY * op["A"]


@rule("Div", "A B", broadcasts=True)
def div(op: Adjoint) -> Cotangents:
    """C = A / B: dA = dC / B, dB = -dC C / B."""
    if op.wants("A"):
        yield "A", op.dY / op["B"]
    if op.wants("B"):
        yield "B", -(op.dY * op.out() / op["B"])


#: The smallest normal numbers, by dtype, where not float32's; 1 / X overflows not far below.
_SMALLEST: dict[ir.DataType | None, float] = {ir.DataType.FLOAT16: 6.2e-5, ir.DataType.DOUBLE: 2.3e-308}


@rule("Pow", "X Y", broadcasts=True)
def power(op: Adjoint) -> Cotangents:
    """Z = X^Y: dX = dZ Y X^(Y-1), zero where Y is; dY = dZ Z log X, zero where Z is zero and Y is not negative.

    Where X makes a factor infinite, X is replaced by 1 before, so that the gradient's gradient is right too.
    """
    b, X, Y = op.b, op["X"], op["Y"]
    exponent = b.Cast(Y, to=X.dtype)
    if op.wants("X"):
        yield "X", op.dY * _power_slope(op, exponent)
    if op.wants("Y"):
        at_zero = b.And(b.Equal(X, 0.0), b.GreaterOrEqual(exponent, 0.0))
        slope = op.out() * b.Log(b.Where(at_zero, b.scalar_like(1.0, X), X))
        yield "Y", b.Cast(op.dY * slope, to=Y.dtype)


def _power_slope(op: Adjoint, exponent: ir.Value) -> ir.Value:
    """Y X^(Y-1); a constant exponent that holds no zero needs no care."""
    b, X, known = op.b, op["X"], op.constant("Y")
    if known is not None and known.size == 1 and float(known.reshape(())) == 2.0:
        return b.Mul(X, 2.0)
    if known is None or not (known != 0).all():
        no_inverse = b.Not(b.Greater(b.Abs(X), _SMALLEST.get(X.dtype, 1.2e-38)))
        flat = b.And(no_inverse, b.Equal(exponent, 0.0))
        X = b.Where(flat, b.scalar_like(1.0, X), X)
    return b.Mul(exponent, b.Pow(X, exponent - 1.0))


@rule("Neg", "X")
def neg(op: Adjoint) -> Cotangents:
    """Y = -X."""
    yield "X", -op.dY


@rule("Abs", "X")
def absolute(op: Adjoint) -> Cotangents:
    """Y = |X|; 0 at 0, and where X is no number, so that a cotangent of 0 there stays 0."""
    b, X = op.b, op["X"]
    yield "X", op.dY * b.Sign(b.Where(b.IsNaN(X), b.scalar_like(0.0, X), X))


@rule("Relu", "X")
def relu(op: Adjoint) -> Cotangents:
    """Y = max(X, 0): the cotangent where Y is positive; it reads the output, so the input need not be kept."""
    kind, Y = "FiniteReluGrad" if op.finite else "ReluGrad", op.out()
    yield "X", op.b.op(kind, op.dY, Y, domain="gradcut", dtype=op.dY.dtype, shape=Y.shape)


def _masked(op: Adjoint, inside: ir.Value) -> ir.Value:
    """dY where `inside`, else 0: by a product where dY is finite, which takes half the time of a selection."""
    if op.finite:
        return op.b.Mul(op.dY, op.b.Cast(inside, to=op.dY.dtype))
    return op.b.Where(inside, op.dY, op.b.scalar_like(0.0, op.dY))


@rule("LeakyRelu", "X")
def leaky_relu(op: Adjoint) -> Cotangents:
    """Slope 1 above 0, alpha elsewhere."""
    alpha = op.attr("alpha", 0.01)
    yield "X", op.b.Where(op.b.Greater(op["X"], 0.0), op.dY, op.dY * alpha)


@rule("Sigmoid", "X")
def sigmoid(op: Adjoint) -> Cotangents:
    """dX = dY Y (1 - Y)."""
    Y = op.out()
    yield "X", op.dY * (Y * (1.0 - Y))


@rule("Tanh", "input")
def tanh(op: Adjoint) -> Cotangents:
    """dX = dY (1 - Y^2)."""
    Y = op.out()
    yield "input", op.dY * (1.0 - Y * Y)


@rule("Exp", "input")
def exp(op: Adjoint) -> Cotangents:
    """dX = dY Y."""
    yield "input", op.dY * op.out()


@rule("Log", "input")
def log(op: Adjoint) -> Cotangents:
    """dX = dY / X."""
    yield "input", op.dY / op["input"]


@rule("Sqrt", "X")
def sqrt(op: Adjoint) -> Cotangents:
    """dX = dY / (2 Y)."""
    yield "X", op.dY / (op.out() * 2.0)


@rule("Reciprocal", "X")
def reciprocal(op: Adjoint) -> Cotangents:
    """dX = -dY Y^2."""
    Y = op.out()
    yield "X", -(op.dY * (Y * Y))


@rule("Erf", "input")
def erf(op: Adjoint) -> Cotangents:
    """dX = dY 2/sqrt(pi) exp(-X^2)."""
    X = op["input"]
    yield "input", op.dY * (op.b.Exp(-(X * X)) * (2.0 / math.sqrt(math.pi)))


@rule("Sin", "input")
def sin(op: Adjoint) -> Cotangents:
    """dX = dY cos X."""
    yield "input", op.dY * op.b.Cos(op["input"])


@rule("Cos", "input")
def cos(op: Adjoint) -> Cotangents:
    """dX = -dY sin X."""
    yield "input", -(op.dY * op.b.Sin(op["input"]))


@rule("Softplus", "X")
def softplus(op: Adjoint) -> Cotangents:
    """Y = log(1 + exp X): dX = dY sigmoid(X)."""
    yield "X", op.dY * op.b.Sigmoid(op["X"])


@rule("HardSigmoid", "X")
def hard_sigmoid(op: Adjoint) -> Cotangents:
    """Y = max(0, min(1, alpha X + beta)): alpha strictly between the bounds, as torch."""
    b, Y = op.b, op.out()
    inside = b.And(b.Greater(Y, 0.0), b.Less(Y, 1.0))
    yield "X", b.Where(inside, op.dY * op.attr("alpha", 0.2), b.scalar_like(0.0, op.dY))


@rule("HardSwish", "X")
def hard_swish(op: Adjoint) -> Cotangents:
    """Y = X max(0, min(1, X/6 + 1/2)): (2 X + 3) / 6 between -3 and 3, 0 below, 1 above."""
    b, X = op.b, op["X"]
    slope = b.Where(b.Less(X, 3.0), X * (1.0 / 3.0) + 0.5, b.scalar_like(1.0, X))
    yield "X", b.Where(b.LessOrEqual(X, -3.0), b.scalar_like(0.0, X), op.dY * slope)


@rule("Gelu", "X")
def gelu(op: Adjoint) -> Cotangents:
    """Y = X Phi(X), or its tanh form; Hendrycks and Gimpel 2016."""
    form = "GeluTanhGrad" if op.attr("approximate", "none") == "tanh" else "GeluGrad"
    yield "X", op.b.op(form, op.dY, op["X"], domain="gradcut", dtype=op.dY.dtype, shape=op["X"].shape)


@rule("Where", "X Y", broadcasts=True)
def where(op: Adjoint) -> Cotangents:
    """The cotangent goes to the side that was chosen."""
    b = op.b
    zero = b.scalar_like(0.0, op.dY)
    if op.wants("X"):
        yield "X", b.Where(op["condition"], op.dY, zero)
    if op.wants("Y"):
        yield "Y", b.Where(op["condition"], zero, op.dY)


@rule("Clip", "input min max", broadcasts=True)
def clip(op: Adjoint) -> Cotangents:
    """Y = min(max(X, min), max): the operand passes its cotangent between the bounds, them included.

    Below equal bounds min gets it, above them max: all of it arrives where both are one value, as it does not in torch.
    """
    b, X = op.b, op["input"]
    low, high = op.get("min"), op.get("max")
    zero = b.scalar_like(0.0, op.dY)
    if op.wants("input"):
        bounds = [] if low is None else [b.GreaterOrEqual(X, low)]
        bounds += [] if high is None else [b.LessOrEqual(X, high)]
        yield "input", _masked(op, functools.reduce(b.And, bounds)) if bounds else op.dY
    above = None if high is None else b.Greater(X, high)
    below = None if low is None else b.Less(X, low)
    if op.wants("min"):
        beaten = below if high is None else b.And(below, b.LessOrEqual(low, high))
        yield "min", b.Where(beaten, op.dY, zero)
    if op.wants("max"):
        over = above if low is None else b.Or(above, b.Greater(low, high))
        yield "max", b.Where(over, op.dY, zero)


@rule("Sum", "data_0", broadcasts=True)
def sum_of(op: Adjoint) -> Cotangents:
    """sum = data_0 + data_1 + ..."""
    for index in sorted(op.wanted):
        yield index, op.dY


@rule("Mean", "data_0", broadcasts=True)
def mean_of(op: Adjoint) -> Cotangents:
    """mean = (data_0 + data_1 + ...) / n."""
    share = op.dY * (1.0 / len(op.node.inputs))
    for index in sorted(op.wanted):
        yield index, share


@rule("Mod", "A B", broadcasts=True)
def mod(op: Adjoint) -> Cotangents:
    """C = A - B trunc(A / B) (fmod, the only form for floats): dA = dC, dB = -dC trunc(A / B).

    The quotient is what the forward took away of A, a whole number of times B.
    """
    if op.wants("A"):
        yield "A", op.dY
    if op.wants("B"):
        quotient = op.b.Round(op.wide((op.out() - op["A"]) / op["B"]))  # there is no Round of a bfloat16
        yield "B", op.dY * op.b.Cast(quotient, to=op.dY.dtype)


@rule("Max Min", "data_0", broadcasts=True)
def extremum(op: Adjoint) -> Cotangents:
    """Folded from the left, as nested torch.maximum: two equal operands share the cotangent by halves."""
    b, operands = op.b, [value for value in op.node.inputs if value is not None]
    prefixes = [operands[0]]
    for value in operands[1:]:
        prefixes.append(b.op(op.node.op_type, prefixes[-1], value))
    grad = op.dY
    for index in range(len(operands) - 1, 0, -1):
        left, right = prefixes[index - 1], operands[index]
        if index in op.wanted:
            yield index, grad * _share(op, right, left)
        if any(position < index for position in op.wanted):
            grad = grad * _share(op, left, right)
    if 0 in op.wanted:
        yield 0, grad


def _share(op: Adjoint, mine: ir.Value, other: ir.Value) -> ir.Value:
    """0 where `mine` loses, 1/2 where both are equal, 1 elsewhere, and so where one is no number."""
    b = op.b
    loses = b.Less(mine, other) if op.node.op_type == "Max" else b.Greater(mine, other)
    half = b.Where(b.Equal(mine, other), b.scalar_like(0.5, mine), b.scalar_like(1.0, mine))
    return b.Where(loses, b.scalar_like(0.0, mine), half)
