"""Attributes that became operands: ONNX's converter makes float32 of them, where the operator takes one type alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gradcut.dims import FLOATS
from gradcut.ops import Builder, Names
from gradcut.parameters import constant_tensor

#: From this opset on they are operands.
OPERANDS_SINCE = 11
_FROM_ATTRIBUTES = {"Clip": (1, 2), "Pad": (2,)}


def retype_attributes(model: ir.Model) -> bool:
    """Give the bounds of a Clip and the value of a Pad the type of what they are for; whether there were any such.

    Types are to be known.
    """
    nodes = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type in _FROM_ATTRIBUTES]
    found = [(node, at) for node in nodes for at in _FROM_ATTRIBUTES[node.op_type] if _is_of_another_type(node, at)]
    names = Names.of(model) if found else Names()
    for node, at in found:
        x, value, graph = node.inputs[0], node.inputs[at], node.graph
        assert x is not None and value is not None and isinstance(graph, ir.Graph)
        b, tensor = Builder(names, prefix=f"{node.outputs[0].name}_"), constant_tensor(value)
        assert tensor is not None
        with np.errstate(over="ignore"):  # no bound at all is the largest float32 there
            node.replace_input_with(at, b.constant(tensor.numpy(), x.dtype))
        graph.insert_before(node, b.nodes)
    return bool(found)


def _is_of_another_type(node: ir.Node, at: int) -> bool:
    x, value = node.inputs[0], node.inputs[at] if at < len(node.inputs) else None
    if x is None or value is None or x.dtype not in FLOATS or constant_tensor(value) is None:
        return False
    return value.dtype == ir.DataType.FLOAT and x.dtype != ir.DataType.FLOAT
