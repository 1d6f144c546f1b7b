"""`emit`: what a runtime gets. Marks are stripped, nothing of the dialect is left, inputs and outputs have their order.

Inputs: the user's, then what the loss reads, then the trainables, then state, then ``seed`` and ``step`` where the
graph draws. Outputs: the loss, the user's, the gradients, then the next of the state. Frozen weights stay
initializers: the runtime folds, packs and lays them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.dialect import DOMAIN, declare, is_relative, is_transparent
from gradcut.dialect.relatives import settings_of
from gradcut.dims import same_shape
from gradcut.errors import PipelineError
from gradcut.ops import Builder, Names
from gradcut.passes.base import GRADIENTS, HELD, Pass, read_json, register
from gradcut.passes.dead_code import remove_dead
from gradcut.passes.random import DRAWS
from gradcut.passes.specialize import STATE

IR_VERSION = 10


@register
@dataclass(frozen=True)
class Emit(Pass):
    """Make a lowered model a graph for a runtime.

    What is held (moved by something else than this step) becomes an input too, where it is read.

    Attributes:
        inputs: initializers that become inputs, after those there are; empty: the trainables that got a gradient,
            then the state that moves.
    """

    name: ClassVar[str] = "emit"
    inputs: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        strip_marks(model)
        _settle_choices(model)
        remove_dead(model)
        left = sorted({node.op_type for graph in model.graphs() for node in graph if node.domain == DOMAIN})
        if left:
            raise PipelineError(f"emit finds {', '.join(left)} that no lowering has replaced; run lower before it")
        _order_inputs(model, [*(self.inputs or _moving(model)), *_held(model)])
        _order_outputs(model)
        _drop_unread(model.graph)
        declare(model)
        model.ir_version = IR_VERSION if model.opset_imports[""] <= 21 else max(IR_VERSION, model.ir_version or 0)
        return ir.passes.PassResult(model, modified=True)


def strip_marks(model: ir.Model) -> None:
    """Every mark, and every relative of it, gives way to what it reads; what said how, and nothing else, goes too."""
    settings = [value for node in model.graph.all_nodes() if is_relative(node) for value in settings_of(node)]
    strip(model, is_transparent)
    while settings:
        settings += _release(settings.pop())


def _release(value: ir.Value) -> list[ir.Value]:
    """Remove the node that gives a value, if nothing reads what it gives: what it read."""
    node = value.producer()
    if node is None or node.graph is None or any(one.uses() or one.is_graph_output() for one in node.outputs):
        return []
    read = [one for one in node.inputs if one is not None]
    node.graph.remove(node, safe=True)
    return read


def strip(model: ir.Model, which: Callable[[ir.Node], bool]) -> None:
    """The marks and relatives that `which` says give way to what they read; an output keeps its name."""
    names = Names.of(model)
    for graph in model.graphs():
        marks = [node for node in graph if which(node)]
        for mark in marks:
            _strip(graph, mark, names)
        graph.remove(marks, safe=True)


def _strip(graph: ir.Graph, mark: ir.Node, names: Names) -> None:
    for source, output in zip(mark.inputs, mark.outputs, strict=False):
        assert source is not None
        if output.is_graph_output():
            source = _stand_in(graph, mark, source, output, names)
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)


def _stand_in(graph: ir.Graph, mark: ir.Node, source: ir.Value, output: ir.Value, names: Names) -> ir.Value:
    """What takes the place of a marked output: the source under the output's name, or a copy where it has its own."""
    if source.producer() is None or source.is_graph_output():
        b = Builder(names)
        copy = b.op("Identity", source, dtype=source.dtype, shape=source.shape)
        graph.insert_before(mark, b.nodes)
        source = copy
    source.name, output.name = output.name, names.fresh("stripped")
    return source


def _settle_choices(model: ir.Model) -> None:
    """A choice between a value and its marked self is none once the mark is gone."""
    for graph in model.graphs():
        for node in graph:
            if node.op_type != "Where" or node.domain or node.inputs[1] is not node.inputs[2]:
                continue
            source, output = node.inputs[1], node.outputs[0]
            if source is not None and same_shape(source.shape, output.shape) and not output.is_graph_output():
                ir.convenience.replace_all_uses_with(output, source)


def _moving(model: ir.Model) -> list[str]:
    gradients = read_json(model, GRADIENTS) or {"wrt": {}}
    return [*gradients["wrt"], *(read_json(model, STATE) or {})]


def _held(model: ir.Model) -> list[str]:
    """Those that are read; what is not needs no place among the inputs."""
    names = read_json(model, HELD) or ()
    known = model.graph.initializers
    return [name for name in names if name in known and _is_read(known[name])]


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _order_inputs(model: ir.Model, moving: Sequence[str]) -> None:
    graph = model.graph
    draws = (read_json(model, DRAWS) or {}).values()
    drawn = [value for value in graph.inputs if value.name in draws]
    idle = {*(read_json(model, HELD) or ())}
    graph.inputs[:] = [v for v in graph.inputs if v.name not in draws and (v.name not in idle or _is_read(v))]
    for name in [name for name in moving if name in graph.initializers]:  # an input, or an inner value, stays one
        graph.inputs.append(to_input(graph, name))
    graph.inputs.extend(drawn)


def _order_outputs(model: ir.Model) -> None:
    """The next of what moves comes last."""
    nexts = set((read_json(model, STATE) or {}).values())
    model.graph.outputs[:] = sorted(model.graph.outputs, key=lambda value: value.name in nexts)


def to_input(graph: ir.Graph, name: str) -> ir.Value:
    """Turn an initializer into an input-to-be of the same name, type and shape."""
    value = graph.initializers.pop(name)
    value.const_value = None
    return value


def _drop_unread(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
