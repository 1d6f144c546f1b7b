"""A model made ready for differences: what moves can be moved, and what is constant by meaning is an input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from gradcut.dialect import declare, is_mark
from gradcut.ops import Names
from gradcut.parameters import constant_tensor
from gradcut.passes.propagate import main_values
from gradcut.passes.stop_gradient import insert_marks
from gradcut.places import Uses
from gradcut.rules import REGISTRY
from gradcut.runtime.replay import hold_draws
from gradcut.runtime.widen import Array, widen


class Prepared:
    """The model with a step behind each wanted value, marks and draws as inputs, and outputs as asked.

    Attributes:
        steps: the input that moves a wanted value. held: the input for a marked value. marked: marks, in order.
    """

    def __init__(
        self,
        model: ir.Model,
        of: Sequence[str],
        wrt: Sequence[str],
        draws: Mapping[str, Array],
        hold_marks: bool,
    ) -> None:
        self.model = model.clone()
        insert_marks(self.model, _constant_uses(self.model.graph), reason=None)
        graph, self.names = self.model.graph, Names.of(self.model)
        self.drawn = hold_draws(self.model, draws, self.names)
        values = main_values(graph)
        marks = [node for node in graph if is_mark(node)]
        self.marked = [node.outputs[0].name or "" for node in marks]
        sources = [node.inputs[0] for node in marks if node.inputs[0] is not None]
        self.held = {mark: self._hold(values, mark) for mark in self.marked} if hold_marks else {}
        self.steps = {name: self._step(values, name) for name in wrt}
        outputs = [values[name] for name in (*of, *wrt)] + ([] if hold_marks else sources)
        graph.outputs.clear()
        for value in outputs:
            copy = ir.Value(name=self.names.fresh(f"{value.name}__out"), type=value.type)
            graph.append(ir.Node("", "Identity", [value], outputs=[copy], name=copy.name))
            graph.outputs.append(copy)
        declare(self.model)

    def proto(self, dtype: ir.DataType) -> onnx.ModelProto:
        return ir.to_proto(widen(self.model, dtype))

    def _input(self, base: str, kind: ir.TypeProtocol | None) -> ir.Value:
        value = ir.Value(name=self.names.fresh(base), type=kind)
        self.model.graph.inputs.append(value)
        return value

    def _hold(self, values: dict[str, ir.Value], mark: str) -> str:
        held = self._input(f"{mark}__held", values[mark].type)
        ir.convenience.replace_all_uses_with(values[mark], held, replace_graph_outputs=True)
        values[mark] = held
        return held.name or ""

    def _step(self, values: dict[str, ir.Value], name: str) -> str:
        value, graph = values[name], self.model.graph
        step = self._input(f"{name}__step", value.type)
        moved = ir.Value(name=self.names.fresh(f"{name}__moved"), type=value.type)
        ir.convenience.replace_all_uses_with(value, moved, replace_graph_outputs=True)
        node = ir.Node("", "Add", [value, step], outputs=[moved], name=moved.name)
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, node)
        elif len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        values[name] = moved
        return step.name or ""


def _constant_uses(graph: ir.Graph) -> list[Uses]:
    """Uses of what may move as an operand that is declared constant by meaning (scales): it is held, as a mark is."""
    found = defaultdict[ir.Value, list[tuple[ir.Node, int]]](list)
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is not None and REGISTRY.constant(node, index) and constant_tensor(value) is None:
                found[value].append((node, index))
    return [Uses(value, tuple(uses), whole=False) for value, uses in found.items()]
