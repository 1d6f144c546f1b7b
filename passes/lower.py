"""`lower`: adjoint ops become plain ONNX, each by the cheapest lowering that applies to its shapes.

A training BatchNormalization gets copies of its statistics, which the runtime would overwrite.
Forward ops that the runtime computes slowly for their shapes are rewritten in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.dialect import DIALECT, DOMAIN, declare, is_transparent
from gradcut.errors import PipelineError
from gradcut.lowering import Call, choose, rewrite
from gradcut.ops import Builder, Names
from gradcut.passes.base import GRADIENTS, HELD, Pass, read_json, register
from gradcut.passes.dead_code import remove_dead

TARGETS = ("onnx", "ort-training")
#: Which lowering a node came from, for pictures and questions.
LOWERING = "gradcut.lowering"


@register
@dataclass(frozen=True)
class Lower(Pass):
    """Replace every adjoint op. Marks and their relatives stay: they are the model's, and `emit` strips them."""

    name: ClassVar[str] = "lower"
    target: str = "onnx"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.target not in TARGETS:
            raise PipelineError(f"lower has no target {self.target!r}; it has {', '.join(TARGETS)}")
        names = Names.of(model)
        gradients = read_json(model, GRADIENTS) or {"wrt": {}}
        varying = frozenset((*gradients["wrt"], *(read_json(model, HELD) or ())))
        for graph in model.graphs():
            _lower_graph(graph, names, varying, forward=self.target == "onnx")
            _guard_statistics(graph, names)
        remove_dead(model)
        declare(model)
        return ir.passes.PassResult(model, modified=True)


def _lower_graph(graph: ir.Graph, names: Names, varying: frozenset[str], forward: bool) -> None:
    done = []
    for node in list(graph):
        plan = _plan(Call(node, varying=varying), forward)
        if plan is None:
            continue
        name, build = plan
        b = Builder(names, prefix=f"{node.outputs[0].name}_")
        b.tag = {**node.metadata_props, LOWERING: f"{node.op_type}:{name}"}
        with b.arithmetic():
            results = build(b)
        _replace(graph, node, b, results, names)
        done.append(node)
    graph.remove(done, safe=True)


def _plan(call: Call, forward: bool) -> tuple[str, Callable[[Builder], Sequence[ir.Value]]] | None:
    """What to build in the place of a node, and the name of that; None where the node stays."""
    node = call.node
    if node.domain == DOMAIN and node.op_type in DIALECT and not is_transparent(node):
        chosen = choose(call)
        return chosen.name, lambda b: [chosen.build(b, call)]
    better = rewrite(call) if forward else None
    return None if better is None else (better.name, lambda b: better.build(b, call))


def _guard_statistics(graph: ir.Graph, names: Names) -> None:
    """Have a training BatchNormalization read its statistics through a copy.

    ONNX Runtime's kernel writes its second and third output over its inputs where those outputs are no graph outputs,
    the caller's arrays and initializers included. Max of one operand is a copy that its optimizer leaves alone.
    """
    for node in list(graph):
        mode = node.attributes.get("training_mode")
        if node.op_type != "BatchNormalization" or node.domain or mode is None or not mode.as_int():
            continue
        b = Builder(names, prefix=f"{node.name}_")
        for index in (3, 4):
            value = node.inputs[index]
            assert value is not None
            producer = value.producer()
            if producer is not None and producer.op_type == "Max" and len(producer.inputs) == 1:
                continue
            node.replace_input_with(index, b.op("Max", value, dtype=value.dtype, shape=value.shape))
        graph.insert_before(node, b.nodes)


def _replace(graph: ir.Graph, node: ir.Node, b: Builder, results: Sequence[ir.Value], names: Names) -> None:
    """Put the built nodes before the node, and the results under the names of its outputs in their place."""
    built = []
    for output, result in zip(node.outputs, results, strict=False):
        if result.producer() is None or result.producer() not in b.nodes:
            result = b.op("Identity", result, dtype=output.dtype)
        result.type, result.shape = output.type, output.shape
        built.append((output, result))
    graph.insert_before(node, b.nodes)
    for output, result in built:
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
        if output.name:
            result.name, output.name = output.name, names.fresh("lowered")
