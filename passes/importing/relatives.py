"""Relatives of the mark, in their plainest form: what is scaled by 0, stopped if True, or masked whole, is marked."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.dialect import DOMAIN, MARK
from gradcut.dialect.relatives import CONDITIONAL, MASK, REVERSAL, SCALE


def settle_relatives(model: ir.Model) -> None:
    """Make marks of those that stop: no derivative behind them is to be built."""
    for graph in model.graphs():
        for node in graph:
            if node.domain == DOMAIN and node.op_type in _STOPS and _says(node.inputs[1], _STOPS[node.op_type]):
                node.op_type = MARK
                node.resize_inputs(1)


#: The number at which each is a stop.
_STOPS = {SCALE: 0.0, REVERSAL: 0.0, CONDITIONAL: 1.0, MASK: 0.0}


def _says(value: ir.Value | None, number: float) -> bool:
    """Whether a Constant is a number throughout; an initializer may be given another."""
    if value is None or value.is_initializer():
        return False
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and bool((tensor.numpy() == number).all())
