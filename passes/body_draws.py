"""`body-draws`: random operators inside If, Loop and Scan draw from numbers that the main graph drew.

A backward computes bodies again, and must see there what the forward drew. So the main graph draws a few numbers once
a run, and each operator inside hashes them with the numbers of its turns, see `gradcut.passes.random`. `specialize`
does the same with the numbers of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.passes.base import Pass, register
from gradcut.passes.random import GENERATORS, Draws
from gradcut.subgraphs import draws, every_node, inner_graphs

Turns = tuple[ir.Value, ...]


@register
@dataclass(frozen=True)
class BodyDraws(Pass):
    """Make what is drawn inside bodies a function of what the main graph draws."""

    name: ClassVar[str] = "body-draws"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = Draws(model)
        for node, turns in list(with_turns(model.graph, _draws, found.names)):
            if node.graph is model.graph:
                continue
            found.turns = turns
            if node.op_type == "Dropout":
                found.dropout(node, node.inputs[2])
            else:
                found.generator(node)
        found.finish_alone()
        return ir.passes.PassResult(model, modified=bool(found.count))


def _draws(node: ir.Node) -> bool:
    return draws(node) and (node.op_type in GENERATORS or node.op_type == "Dropout")


def with_turns(
    graph: ir.Graph, wanted: Callable[[ir.Node], bool], names: Names, turns: Turns = ()
) -> Iterator[tuple[ir.Node, Turns]]:
    """The nodes that are wanted, those of bodies included, each with the numbers of the turns that it is run in."""
    for node in list(graph):
        if wanted(node):
            yield node, turns
        if not any(wanted(inner) for body in inner_graphs(node) for inner in every_node(body)):
            continue
        counted = (node.domain, node.op_type) == ("", "Scan")
        for body in inner_graphs(_counting(graph, node, names) if counted else node):
            own = body.inputs[:1] if node.op_type in ("Loop", "Scan") and not node.domain else ()
            yield from with_turns(body, wanted, names, (*turns, *own))


def _counting(graph: ir.Graph, node: ir.Node, names: Names) -> ir.Node:
    """A Scan that has the number of the turn as its first state."""
    body = node.attributes["body"].as_graph()
    outer, inner = Builder(names, prefix=f"{node.name}_"), Builder(names, prefix=f"{node.name}_")
    turn = ir.Value(name=names.fresh("turn"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    following = inner.op("Add", turn, inner.constant(1), dtype=ir.DataType.INT64, shape=ir.Shape([]))
    body.inputs.insert(0, turn)
    body.outputs.insert(0, following)
    body.extend(inner.nodes)
    node.attributes.pop("body")
    count = ir.Value(name=names.fresh("turns"), type=turn.type, shape=ir.Shape([]))
    new = ir.Node(
        "",
        "Scan",
        [outer.constant(0), *node.inputs],
        attributes=[*node.attributes.values(), ir.AttrGraph("body", body)],
        outputs=[count, *(ir.Value(name=v.name, type=v.type, shape=v.shape) for v in node.outputs)],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, [*outer.nodes, new])
    for old, value in zip(node.outputs, new.outputs[1:], strict=True):
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return new
