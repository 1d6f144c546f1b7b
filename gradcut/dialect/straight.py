"""The straight-through estimator: what comes out is rounded, and the gradient is that of what went in."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.dialect.core import DOMAIN, dialect_op
from gradcut.ops import Builder

STRAIGHT = "StraightThrough"


@dialect_op("Y X inside")
def straight_through(b: Builder, Y: ir.Value, X: ir.Value, inside: ir.Value) -> ir.Value:
    """Y, which X was rounded to; its cotangent goes to X, where `inside` is true (Bengio et al. 2013).

    Max of one operand is a copy that ONNX Runtime's optimizer leaves alone: behind a bare DequantizeLinear it puts
    pairs of its own whose types contradict each other, and refuses the file.
    """
    return b.op("Max", Y, dtype=Y.dtype, shape=Y.shape)


def is_straight(node: ir.Node) -> bool:
    """Whether a node is a straight-through estimator."""
    return node.domain == DOMAIN and node.op_type == STRAIGHT
