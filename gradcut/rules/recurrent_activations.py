"""The activations of RNN, GRU and LSTM, and their slopes; at a joint the slope is torch's, as everywhere.

Numbers are handed out as ONNX Runtime does, where the operator page leaves it open: the lists `activation_alpha` and
`activation_beta` go in order to those functions alone that have such a number, and Affine, ThresholdedRelu and
ScaledTanh have zeros where the lists end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint

#: Which numbers a function takes, ``a`` and ``b``, with what they are where the node does not say them.
_NUMBERS = {
    "affine": {"a": 0.0, "b": 0.0},
    "leakyrelu": {"a": 0.01},
    "thresholdedrelu": {"a": 0.0},
    "scaledtanh": {"a": 0.0, "b": 0.0},
    "hardsigmoid": {"a": 0.2, "b": 0.5},
    "elu": {"a": 1.0},
}
Value = Callable[[Builder, ir.Value, float, float], ir.Value]
Slope = Callable[[Builder, ir.Value, ir.Value, float, float], ir.Value]


def _where(b: Builder, condition: ir.Value, x: ir.Value, above: float, below: float) -> ir.Value:
    return b.Where(condition, b.scalar_like(above, x), b.scalar_like(below, x))


def _relu_slope(b: Builder, x: ir.Value, below: float) -> ir.Value:
    return _where(b, b.Greater(x, 0.0), x, 1.0, below)


def _elu_slope(b: Builder, x: ir.Value, alpha: float) -> ir.Value:
    below = b.Exp(b.Min(x, b.scalar_like(0.0, x))) * alpha
    return b.Where(b.Greater(x, 0.0), b.scalar_like(1.0, x), below)


def _softsign_slope(b: Builder, x: ir.Value) -> ir.Value:
    wide = b.Abs(x) + 1.0
    return b.Reciprocal(wide * wide)


def _constant(b: Builder, x: ir.Value, number: float) -> ir.Value:
    return b.op("Expand", b.scalar_like(number, x), b.shape_of(x), dtype=x.dtype, shape=x.shape)


_VALUES: dict[str, Value] = {
    "relu": lambda b, x, alpha, beta: b.Relu(x),
    "tanh": lambda b, x, alpha, beta: b.Tanh(x),
    "sigmoid": lambda b, x, alpha, beta: b.Sigmoid(x),
    "affine": lambda b, x, alpha, beta: x * alpha + beta,
    "leakyrelu": lambda b, x, alpha, beta: b.LeakyRelu(x, alpha=alpha),
    "thresholdedrelu": lambda b, x, alpha, beta: b.Where(b.Greater(x, alpha), x, b.scalar_like(0.0, x)),
    "scaledtanh": lambda b, x, alpha, beta: b.Tanh(x * beta) * alpha,
    "hardsigmoid": lambda b, x, alpha, beta: b.HardSigmoid(x, alpha=alpha, beta=beta),
    "elu": lambda b, x, alpha, beta: b.Elu(x, alpha=alpha),
    "softsign": lambda b, x, alpha, beta: b.op("Softsign", x, shape=x.shape),
    "softplus": lambda b, x, alpha, beta: b.Softplus(x),
}
_SLOPES: dict[str, Slope] = {
    "relu": lambda b, x, y, alpha, beta: _relu_slope(b, y, 0.0),
    "tanh": lambda b, x, y, alpha, beta: 1.0 - y * y,
    "sigmoid": lambda b, x, y, alpha, beta: y * (1.0 - y),
    "affine": lambda b, x, y, alpha, beta: _constant(b, x, alpha),
    "leakyrelu": lambda b, x, y, alpha, beta: _relu_slope(b, x, alpha),
    "thresholdedrelu": lambda b, x, y, alpha, beta: _where(b, b.Greater(x, alpha), x, 1.0, 0.0),
    "scaledtanh": lambda b, x, y, alpha, beta: (1.0 - b.Tanh(x * beta) * b.Tanh(x * beta)) * (alpha * beta),
    "hardsigmoid": lambda b, x, y, alpha, beta: _where(b, b.And(b.Greater(y, 0.0), b.Less(y, 1.0)), x, alpha, 0.0),
    "elu": lambda b, x, y, alpha, beta: _elu_slope(b, x, alpha),
    "softsign": lambda b, x, y, alpha, beta: _softsign_slope(b, x),
    "softplus": lambda b, x, y, alpha, beta: b.Sigmoid(x),
}
#: Functions whose slope follows from their value.
_BY_VALUE = frozenset({"relu", "tanh", "sigmoid"})


@dataclass(frozen=True)
class Activation:
    """One activation with its numbers.

    Attributes:
        clip: its argument is bounded by -clip and clip first; the slope is 1 at the bounds, as that of Clip.
    """

    name: str
    alpha: float = 0.0
    beta: float = 0.0
    clip: float | None = None

    @property
    def by_value(self) -> bool:
        """Whether `slope` follows from the value alone."""
        return self.clip is None and self.name in _BY_VALUE

    def __call__(self, b: Builder, x: ir.Value) -> ir.Value:
        """Its value at `x`, of any shape."""
        return _VALUES[self.name](b, self._clipped(b, x), self.alpha, self.beta)

    def slope(self, b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
        """Its derivative at `x`, where its value is `y`."""
        slope = _SLOPES[self.name](b, self._clipped(b, x), y, self.alpha, self.beta)
        if self.clip is None:
            return slope
        return b.Where(b.LessOrEqual(b.Abs(x), self.clip), slope, b.scalar_like(0.0, x))

    def _clipped(self, b: Builder, x: ir.Value) -> ir.Value:
        return x if self.clip is None else b.Clip(x, -self.clip, self.clip)


def activations(op: Adjoint, defaults: tuple[str, ...], directions: int) -> list[tuple[Activation, ...]]:
    """The activations of each direction; those of the second come behind those of the first."""
    named, count = op.attr("activations", defaults * directions), len(defaults)
    unknown = next((name for name in named if name.lower() not in _VALUES), None)
    if unknown is not None:
        op.refuse(f"its activation {unknown!r} is none of those on the operator page")
    if len(named) < count * directions:
        op.refuse(f"it names {len(named)} activations; {count * directions} are needed")
    left = {"a": list(op.attr("activation_alpha", ())), "b": list(op.attr("activation_beta", ()))}
    found = []
    for name in map(str.lower, named):
        wanted = _NUMBERS.get(name, {})
        numbers = {key: left[key].pop(0) if left[key] else default for key, default in wanted.items()}
        found.append(Activation(name, numbers.get("a", 0.0), numbers.get("b", 0.0), op.attr("clip")))
    return [tuple(found[count * d : count * (d + 1)]) for d in range(directions)]
