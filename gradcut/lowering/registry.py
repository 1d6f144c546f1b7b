"""The table of lowerings, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from gradcut.dialect import expand
from gradcut.ops import Builder

Cost = Callable[["Call"], float]
Build = Callable[[Builder, "Call"], ir.Value]
Rewrite = Callable[[Builder, "Call"], Sequence[ir.Value]]


@dataclass(frozen=True)
class Call:
    """One node about to be lowered: of the dialect, or a forward one that has rewritings.

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

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of a forward node, which may leave it out."""
        return self.attr(name) if name in self.node.attributes else default

    def has(self, index: int) -> bool:
        """Whether an optional operand is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

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

    def static_axis(self, axis: int) -> int | None:
        """One dimension of the output, if it is a number."""
        size = None if self.output.shape is None else self.output.shape[axis]
        return size if isinstance(size, int) else None

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


@dataclass(frozen=True)
class Rewriting:
    """One way to compute a forward op in other ops; `kernel` is what the runtime's own way costs."""

    op: str
    name: str
    cost: Cost
    kernel: Cost
    build: Rewrite


REWRITINGS: dict[str, list[Rewriting]] = {}


def rewriting(op: str, cost: Cost, kernel: Cost) -> Callable[[Rewrite], Rewrite]:
    """Register a rewriting of an ONNX op; it builds a value for each output that the op can have."""

    def register(build: Rewrite) -> Rewrite:
        REWRITINGS.setdefault(op, []).append(Rewriting(op, build.__name__, cost, kernel, build))
        return build

    return register


def rewrite(call: Call) -> Rewriting | None:
    """The cheapest rewriting of a forward node, if one is cheaper than what the runtime does with the node itself."""
    if call.node.domain not in ("", "ai.onnx"):
        return None
    better = [one for one in REWRITINGS.get(call.node.op_type, ()) if one.cost(call) < one.kernel(call)]
    return min(better, key=lambda one: one.cost(call), default=None)
