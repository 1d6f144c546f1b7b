"""Lowerings: adjoint op -> plain ONNX, chosen in one place by shape and cost, never by timing.

A lowering says for which calls it is good and what it costs; the reference lowering, an op's own body, always applies.
A rewriting does the same for a forward op whose kernel in the runtime is slow for some shapes.
"""

from gradcut.lowering import (
    broadcast,
    conv_input,
    conv_weight,
    depthwise,
    doubles,
    elementwise,
    forward,
    half,
    index,
    kept,
    pool,
)
from gradcut.lowering.registry import (
    LOWERINGS,
    REWRITINGS,
    Call,
    Lowering,
    Rewriting,
    choose,
    lowering,
    rewrite,
    rewriting,
)

__all__ = [
    "LOWERINGS",
    "REWRITINGS",
    "Call",
    "Lowering",
    "Rewriting",
    "broadcast",
    "choose",
    "conv_input",
    "conv_weight",
    "depthwise",
    "doubles",
    "elementwise",
    "forward",
    "half",
    "index",
    "kept",
    "lowering",
    "pool",
    "rewrite",
    "rewriting",
]
