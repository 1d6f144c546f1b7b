"""Dead code: what no output needs.

onnx_ir's pass, but a node that goes takes its inner graphs with it: their nodes must not go on reading what lies
outside, or that would stay, and runtimes trip over it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gradcut.ops import Names
from gradcut.subgraphs import inner_graphs, release

#: Operators that ONNX Runtime runs with all their outputs alone, where this operand is given: past keys, or any.
_TOGETHER = {
    ("", "Attention"): 4,
    ("com.microsoft", "EmbedLayerNormalization"): 0,
    ("com.microsoft", "GroupQueryAttention"): 3,
}


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


def _outputs_together(model: ir.Model) -> list[tuple[ir.Node, list[str]]]:
    """Such nodes and their outputs: an Attention with past keys is to give the present ones."""
    found, given = [], Names.of(model)
    for node in model.graph.all_nodes():
        place = _TOGETHER.get((node.domain, node.op_type), len(node.inputs))
        if place < len(node.inputs) and node.inputs[place] is not None:
            first, outputs = node.outputs[0].name, node.outputs[:3]  # an output without a name is lost when written
            found.append((node, [value.name or given.fresh(f"{first}_{at}") for at, value in enumerate(outputs)]))
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
