"""`narrow`: of a model that serves several steps, leave what one step computes.

1. Beside the loss, the outputs that are named; with none named, those that need no more inputs than the loss does.
2. Inputs that nothing reads any more go.

`capture`: values that something beside the loss wants to see become outputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.activity import FlowGraph
from gradcut.errors import PatternError, SpecError
from gradcut.passes.base import LOSS, Pass, read_json, register
from gradcut.passes.dead_code import remove_dead
from gradcut.passes.propagate import main_values
from gradcut.rules import REGISTRY
from gradcut.spec import match
from gradcut.text import nearest


@register
@dataclass(frozen=True)
class Narrow(Pass):
    """Drop the outputs that a step does not want, and the inputs that only they need.

    Attributes:
        outputs: patterns over the model's outputs; empty: those that the loss's own inputs suffice for.
    """

    name: ClassVar[str] = "narrow"
    outputs: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        loss = read_json(model, LOSS)
        first = [value for value in graph.outputs if loss is not None and value.name == loss["loss"]]
        others = [value for value in graph.outputs if value not in first]
        if self.outputs:
            kept = _named(self.outputs, others)
        elif first:
            kept = _sufficed(graph, first[0], others)
        else:
            kept = others
        graph.outputs[:] = [*first, *kept]
        remove_dead(model, keep=tuple(graph.initializers))
        graph.inputs[:] = [value for value in graph.inputs if value.uses() or value.is_graph_output()]
        return ir.passes.PassResult(model, modified=True)


@register
@dataclass(frozen=True)
class Capture(Pass):
    """Make values of the main graph outputs, behind those there are.

    Attributes:
        values: exact names.
    """

    name: ClassVar[str] = "capture"
    values: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        known, outputs = main_values(model.graph), {value.name for value in model.graph.outputs}
        for name in self.values:
            if name not in known:
                raise SpecError(f"capture: there is no value {name!r}")
        model.graph.outputs.extend(known[name] for name in self.values if name not in outputs)
        return ir.passes.PassResult(model, modified=True)


def _named(patterns: Collection[str], outputs: Collection[ir.Value]) -> list[ir.Value]:
    """Case 1, named."""
    names = [value.name or "" for value in outputs]
    chosen: set[str] = set()
    for pattern in patterns:
        found = match(pattern, names)
        if not found:
            raise PatternError(pattern, "output of the model", nearest(pattern, names))
        chosen.update(found)
    return [value for value in outputs if value.name in chosen]


def _sufficed(graph: ir.Graph, loss: ir.Value, outputs: Collection[ir.Value]) -> list[ir.Value]:
    """Case 1, by inputs."""
    flows, inputs = FlowGraph(graph, REGISTRY), set(graph.inputs)
    needed = flows.backward([loss], lambda flow: True) & inputs
    return [value for value in outputs if flows.backward([value], lambda flow: True) & inputs <= needed]
