"""A value in the place of what a node gave, under the same name."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder, Names


def put_instead(b: Builder, value: ir.Value, node: ir.Node, names: Names) -> None:
    """Insert what was built where the node stands, hand `value` to all that read its first output, and remove it."""
    output = node.outputs[0]
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_before(node, b.nodes)
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    value.name, output.name = output.name, names.fresh(f"{output.name}_before")
    node.graph.remove(node, safe=True)
