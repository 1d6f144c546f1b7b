"""Ranks that a node says of its operands, by its attributes and by other operands.

ONNX's inference goes from operands to results alone, and a rule for windows has to know how many axes these lie along.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

#: What says a number of spatial axes, and how many numbers it has for each.
_PER_AXIS = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 1, "output_shape": 1, "pads": 2}


def say_ranks(node: ir.Node) -> bool:
    """Give operands that are of one rank open dimensions where that rank is known; whether anything was learnt."""
    if node.domain or node.op_type not in _RANKS:
        return False
    count, said = _RANKS[node.op_type]
    operands = [value for value in node.inputs[:count] if value is not None]
    ranks = [len(value.shape) for value in operands if value.shape is not None]
    rank = ranks[0] if ranks else said(node)
    unknown = [value for value in operands if value.shape is None] if rank else []
    for value in unknown:
        value.shape = ir.Shape([None] * (rank or 0))
    return bool(unknown)


def _windows(node: ir.Node) -> int | None:
    for name, each in _PER_AXIS.items():
        if name in node.attributes:
            return len(node.attributes[name].as_ints()) // each + 2
    return None


def _deformed(node: ir.Node) -> int | None:
    """ONNX Runtime takes images alone."""
    return _windows(node) or 4


def _cubic(node: ir.Node) -> int | None:
    """Of images alone."""
    mode = node.attributes.get("mode")
    return 4 if mode is not None and "cubic" in mode.as_string() else None


def _resized(node: ir.Node) -> int | None:
    """There is a scale, or a size, for each axis."""
    if "axes" in node.attributes:
        return None
    for value in node.inputs[2:]:
        if value is not None and value.shape is not None and isinstance(value.shape[0], int) and value.shape[0] > 0:
            return value.shape[0]
    return None


#: By operator: how many of the first operands are of one rank, and what says it.
_RANKS: dict[str, tuple[int, Callable[[ir.Node], int | None]]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), (2, _windows)),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), (1, _windows)),
    "DeformConv": (3, _deformed),
    "GridSample": (2, _cubic),
    "Resize": (1, _resized),
}
