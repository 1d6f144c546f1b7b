"""A MultiHeadAttention whose query, key and value are packed into one, which ONNX Runtime has for GPUs alone.

It gets them one by one: query [batch, sequence, heads, 3, size] holds all, key [batch, sequence, heads, 2, size] the
last two.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder, Names


def is_packed(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("com.microsoft", "MultiHeadAttention") and (
        _rank(node, 0) == 5 or (len(node.inputs) > 1 and _rank(node, 1) == 5)
    )


def unpack(node: ir.Node, names: Names) -> None:
    """Give the node three operands of 3 dimensions."""
    b, graph = Builder(names, prefix=f"{node.outputs[0].name}_"), node.graph
    assert isinstance(graph, ir.Graph)
    first = 0 if _rank(node, 0) == 5 else 1
    packed = node.inputs[first]
    assert packed is not None and packed.shape is not None
    node.resize_inputs(max(3, len(node.inputs)))
    batch, length, heads, _, size = packed.shape
    hidden = heads * size if isinstance(heads, int) and isinstance(size, int) else None
    for place in range(3 - first):
        part = b.op("Gather", packed, b.constant(place), axis=3, dtype=packed.dtype)
        shape = ir.Shape([batch, length, hidden])
        flat = b.op("Reshape", part, b.ints([0, 0, -1]), dtype=packed.dtype, shape=shape)
        node.replace_input_with(first + place, flat)
    graph.insert_before(node, b.nodes)


def _rank(node: ir.Node, operand: int) -> int | None:
    value = node.inputs[operand]
    return None if value is None or value.shape is None else len(value.shape)
