"""Dead code: what no output needs.

onnx_ir's pass, but a node that goes takes its inner graphs with it: their nodes must not go on reading what lies
outside, or that would stay, and runtimes trip over it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gradcut.subgraphs import inner_graphs, release

#: Where an attention takes its past keys.
_PAST = {("", "Attention"): 4, ("com.microsoft", "GroupQueryAttention"): 3}


def remove_dead(model: ir.Model, keep: Iterable[str] = ()) -> None:
    """Remove nodes and initializers that nothing reads; inputs and outputs of the model stay.

    Args:
        keep: initializers that stay, read or not.
    """
    graph = model.graph
    kept = [graph.initializers[name] for name in keep if name in graph.initializers]
    _release(graph)
    together = _outputs_together(model)
    RemoveUnusedNodesPass()(model)
    for node, names in together:
        node.resize_outputs(max(len(names), len(node.outputs)))
        for value, name in zip(node.outputs, names, strict=False):
            value.name = name
    for value in kept:
        if value.name not in graph.initializers:
            graph.register_initializer(value)


def _outputs_together(model: ir.Model) -> list[tuple[ir.Node, list[str | None]]]:
    """Attentions with past keys and values, and their outputs: without the present ones ONNX Runtime runs none."""
    found = []
    for node in model.graph.all_nodes():
        place = _PAST.get((node.domain, node.op_type), len(node.inputs))
        if place < len(node.inputs) and node.inputs[place] is not None:
            found.append((node, [value.name for value in node.outputs[:3]]))
    return found


def _release(graph: ir.Graph) -> None:
    for node in reversed(graph):
        inner = list(inner_graphs(node))
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            for body in inner:
                _release(body)
            continue
        release(node)
        graph.remove(node, safe=True)
