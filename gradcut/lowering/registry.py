"""The table of lowerings, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from gradcut.dialect import expand
from gradcut.ops import Builder

Cost = Callable[["Call"], float]
Build = Callable[[Builder, "Call"], ir.Value]


@dataclass(frozen=True)
class Call:
    """One adjoint node about to be lowered.

    Attributes:
        symbols: a number for each symbolic dimension, for costs only; what is built never depends on it.
        varying: names of initializers that are to become inputs of the graph (what trains).
    """

    node: ir.Node
    symbols: int = 8
    varying: frozenset[str] = frozenset()

    def __getitem__(self, index: int) -> ir.Value:
        value = self.node.inputs[index]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    def attr(self, name: str) -> Any:
        return self.node.attributes[name].value

    def ints(self, name: str) -> tuple[int, ...]:
        """An INTS attribute."""
        return tuple(self.node.attributes[name].as_ints())

    def dims(self, index: int) -> list[int] | None:
        """An operand's shape with `symbols` for what is symbolic; None where the rank is unknown."""
        return self._dims(self[index].shape)

    def output_dims(self) -> list[int] | None:
        return self._dims(self.output.shape)

    def _dims(self, shape: ir.Shape | None) -> list[int] | None:
        return None if shape is None else [d if isinstance(d, int) else self.symbols for d in shape]

    def static(self, index: int, start: int = 0) -> list[int] | None:
        """An operand's dimensions from `start` on, None unless all are numbers."""
        shape = self[index].shape
        return _numbers(shape, start)

    def static_output(self, start: int = 0) -> list[int] | None:
        return _numbers(self.output.shape, start)

    def is_constant(self, index: int) -> bool:
        """Whether an operand is an initializer that does not change in a run."""
        return self[index].is_initializer() and self[index].name not in self.varying


def _numbers(shape: ir.Shape | None, start: int) -> list[int] | None:
    if shape is None:
        return None
    dims = list(shape)[start:]
    return [int(d) for d in dims] if all(isinstance(d, int) for d in dims) else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Lowering:
    """One way to compute an adjoint op; `cost` is in nanoseconds, infinite where it does not apply."""

    op: str
    name: str
    cost: Cost
    build: Build


LOWERINGS: dict[str, list[Lowering]] = {}


def lowering(op: str, cost: Cost) -> Callable[[Build], Build]:
    """Register a lowering of an adjoint op."""

    def register(build: Build) -> Build:
        LOWERINGS.setdefault(op, []).append(Lowering(op, build.__name__, cost, build))
        return build

    return register


def choose(call: Call) -> Lowering:
    """The cheapest lowering that applies; the reference, where none does."""
    candidates = [(one.cost(call), one) for one in LOWERINGS.get(call.node.op_type, ())]
    applicable = [(cost, one) for cost, one in candidates if math.isfinite(cost)]
    if not applicable:
        return Lowering(call.node.op_type, "reference", lambda _: 0.0, lambda b, c: expand(b, c.node))
    return min(applicable, key=lambda pair: pair[0])[1]
