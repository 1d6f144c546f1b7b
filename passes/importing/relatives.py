"""Relatives of the mark, in their plainest form: what is scaled by the constant 0 is marked."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.dialect import DOMAIN, MARK
from gradcut.dialect.relatives import REVERSAL, SCALE


def settle_relatives(model: ir.Model) -> None:
    """Make marks of those that stop: no derivative behind them is to be built."""
    for graph in model.graphs():
        for node in graph:
            if node.domain == DOMAIN and node.op_type in (SCALE, REVERSAL) and _is_zero(node.inputs[1]):
                node.op_type = MARK
                node.resize_inputs(1)


def _is_zero(value: ir.Value | None) -> bool:
    """Of a Constant; an initializer may be given other numbers."""
    if value is None or value.is_initializer():
        return False
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1 and float(tensor.numpy().reshape(())) == 0.0
