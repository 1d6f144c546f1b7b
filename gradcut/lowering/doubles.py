"""Activations of float64, for which ONNX Runtime has no kernels.

It takes ONNX's own definition of them in their place, in files of the opset that the definition was written at, 18 for
most, and at no other; so what ran as it was given would not run at the opset that is emitted.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, rewriting
from gradcut.ops import Builder

Form = Callable[[Builder, ir.Value, Call], ir.Value]


def _is_double(call: Call) -> float:
    return 0.0 if call[0].dtype == ir.DataType.DOUBLE else cost.NEVER


def _no_kernel(call: Call) -> float:
    return cost.NEVER


def _positive(b: Builder, X: ir.Value, above: ir.Value, below: ir.Value) -> ir.Value:
    return b.Where(b.Greater(X, 0.0), above, below)


def _expm1(b: Builder, X: ir.Value) -> ir.Value:
    """exp(X) - 1 where X is below 0, without overflow elsewhere."""
    return b.Sub(b.Exp(_positive(b, X, b.scalar_like(0.0, X), X)), 1.0)


def _clipped(b: Builder, X: ir.Value, alpha: float, beta: float) -> ir.Value:
    return b.Clip(X * alpha + beta, b.scalar_like(0.0, X), b.scalar_like(1.0, X))


def _softplus(b: Builder, X: ir.Value) -> ir.Value:
    """log(1 + exp X), of X on the side where it does not overflow."""
    return b.Add(b.Max(X, b.scalar_like(0.0, X)), b.Log(b.Exp(-b.Abs(X)) + 1.0))


def _selu(b: Builder, X: ir.Value, call: Call) -> ir.Value:
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
    return b.Mul(_positive(b, X, X, _expm1(b, X) * alpha), gamma)


_FORMS: dict[str, Form] = {
    "Elu": lambda b, X, call: _positive(b, X, X, _expm1(b, X) * call.get("alpha", 1.0)),
    "HardSigmoid": lambda b, X, call: _clipped(b, X, call.get("alpha", 0.2), call.get("beta", 0.5)),
    "HardSwish": lambda b, X, call: X * _clipped(b, X, 1.0 / 6.0, 0.5),
    "LeakyRelu": lambda b, X, call: _positive(b, X, X, X * call.get("alpha", 0.01)),
    "Mish": lambda b, X, call: X * b.Tanh(_softplus(b, X)),
    "PRelu": lambda b, X, call: _positive(b, X, X, X * call[1]),
    "Selu": _selu,
    "Softplus": lambda b, X, call: _softplus(b, X),
    "Softsign": lambda b, X, call: X / (b.Abs(X) + 1.0),
    "ThresholdedRelu": lambda b, X, call: b.Where(b.Greater(X, call.get("alpha", 1.0)), X, b.scalar_like(0.0, X)),
}


def _table() -> None:
    for op_type, form in _FORMS.items():

        def in_double(b: Builder, call: Call, form: Form = form) -> tuple[ir.Value]:
            return (form(b, call[0], call),)

        rewriting(op_type, _is_double, _no_kernel)(in_double)


_table()
