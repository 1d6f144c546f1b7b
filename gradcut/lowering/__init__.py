"""Lowerings: adjoint op -> plain ONNX, chosen in one place by shape and cost, never by timing.

A lowering says for which calls it is good and what it costs; the reference lowering, an op's own body, always applies.
"""

from gradcut.lowering import conv_input, conv_weight, index, pool
from gradcut.lowering.registry import LOWERINGS, Call, Lowering, choose, lowering

__all__ = ["LOWERINGS", "Call", "Lowering", "choose", "conv_input", "conv_weight", "index", "lowering", "pool"]
