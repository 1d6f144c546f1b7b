"""A softmax that an exporter has written out in smaller operators."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.parameters import constant_tensor

_SPREADING = frozenset({"Reshape", "Expand", "Unsqueeze", "Identity"})


def written_softmax(node: ir.Node) -> ir.Value | None:
    """z where a node ends exp(z - max z) / sum exp(z - max z), or the same without the maximum."""
    if node.op_type != "Div" or node.inputs[0] is None:
        return None
    exponential, total = node.inputs[0].producer(), _behind_spreading(node.inputs[1])
    if exponential is None or exponential.op_type != "Exp" or total is None or total.op_type != "ReduceSum":
        return None
    if total.inputs[0] is not node.inputs[0] or exponential.inputs[0] is None:
        return None
    shifted = exponential.inputs[0].producer()
    if shifted is not None and shifted.op_type == "Sub" and shifted.inputs[0] is not None:
        largest = _behind_spreading(shifted.inputs[1])
        if largest is not None and largest.op_type == "ReduceMax" and largest.inputs[0] is shifted.inputs[0]:
            return shifted.inputs[0]
    return exponential.inputs[0]


def _behind_spreading(value: ir.Value | None) -> ir.Node | None:
    """What a reduction's result comes from, put back in shape, and kept above -inf by a Max."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in _SPREADING:
            value = node.inputs[0]
        elif node.op_type == "Max" and len(node.inputs) == 2:
            value = next((v for v in node.inputs if v is not None and constant_tensor(v) is None), None)
        else:
            return node
    return None
