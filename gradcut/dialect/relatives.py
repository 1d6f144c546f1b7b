"""The relatives of the mark: forward the identity of the first operand, backward something else than the identity.

Each keeps the life of a mark: it is opaque to every pass, stays in a differentiated graph, and `emit` strips it. The
other operands say what happens to the cotangent; nothing flows from them to the result. What they do to the cotangent
is said once, by their rules in `gradcut.rules.relatives`.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.dialect.core import DOMAIN, dialect_op
from gradcut.dialect.custom import gradients_of, is_custom
from gradcut.dialect.marks import MARK, is_mark
from gradcut.ops import Builder, Names

SCALE, REVERSAL = "GradientScale", "GradientReversal"
CLIP_VALUE, CLIP_NORM = "GradientClipValue", "GradientClipNorm"
STRAIGHT_THROUGH = "StraightThroughEstimator"
CONDITIONAL, MASK = "ConditionalStop", "GradientMask"
#: How many operands each takes; and the mark.
_OPERANDS = dict.fromkeys((SCALE, REVERSAL, CLIP_VALUE, CLIP_NORM, STRAIGHT_THROUGH, CONDITIONAL, MASK), 2)
TRANSPARENT = {MARK: 1, **_OPERANDS}


@dialect_op("X scale")
def gradient_scale(b: Builder, X: ir.Value, scale: ir.Value) -> ir.Value:
    """Y = X, dX = scale dY; `scale` is a scalar of any float type."""
    return b.Identity(X)


@dialect_op("X scale")
def gradient_reversal(b: Builder, X: ir.Value, scale: ir.Value) -> ir.Value:
    """Y = X, dX = -scale dY (Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015)."""
    return b.Identity(X)


@dialect_op("X bound")
def gradient_clip_value(b: Builder, X: ir.Value, bound: ir.Value) -> ir.Value:
    """Y = X, dX = dY with each element brought into [-bound, bound]."""
    return b.Identity(X)


@dialect_op("X bound")
def gradient_clip_norm(b: Builder, X: ir.Value, bound: ir.Value) -> ir.Value:
    """Y = X, dX = dY min(1, bound / ||dY||), the Euclidean norm of the whole cotangent."""
    return b.Identity(X)


@dialect_op("Y X")
def straight_through_estimator(b: Builder, Y: ir.Value, X: ir.Value) -> ir.Value:
    """Y, whose cotangent goes to X as it is, and not to Y (Bengio, Léonard and Courville 2013)."""
    return b.Identity(Y)


@dialect_op("X condition")
def conditional_stop(b: Builder, X: ir.Value, condition: ir.Value) -> ir.Value:
    """Y = X; where the BOOL scalar `condition` is true, Y is stopped, else dX = dY."""
    return b.Identity(X)


@dialect_op("X mask")
def gradient_mask(b: Builder, X: ir.Value, mask: ir.Value) -> ir.Value:
    """Y = X, dX = dY where the BOOL `mask`, which broadcasts to X, is true, else 0."""
    return b.Identity(X)


def is_relative(node: ir.Node | None) -> bool:
    """Whether a node is a relative of the mark."""
    return node is not None and node.domain == DOMAIN and (node.op_type in _OPERANDS or is_custom(node))


def is_transparent(node: ir.Node | None) -> bool:
    """Whether a node is a mark or a relative: forward, its outputs are its first operands."""
    return is_mark(node) or is_relative(node)


def condition_of(node: ir.Node) -> ir.Value | None:
    """What closes a conditional stop; None for any other node."""
    return node.inputs[1] if node.domain == DOMAIN and node.op_type == CONDITIONAL else None


def is_setting(node: ir.Node, index: int) -> bool:
    """Whether an operand of a relative only says how."""
    return not is_custom(node) and index != 0 and index not in carriers(node)


def settings_of(node: ir.Node) -> list[ir.Value]:
    """The operands of a relative that only say how."""
    return [value for index, value in enumerate(node.inputs) if value is not None and is_setting(node, index)]


def settings_inputs(graph: ir.Graph) -> list[ir.Value]:
    """The inputs of a graph that nothing reads but relatives, as what says how: a scale, a condition, a mask."""
    found = []
    for value in graph.inputs:
        says = [is_relative(node) and is_setting(node, index) for node, index in value.uses()]
        if says and all(says) and not value.is_graph_output():
            found.append(value)
    return found


def carriers(node: ir.Node) -> list[int]:
    """The operands of a relative that get a cotangent."""
    if is_custom(node):
        return gradients_of(node)
    return [1] if node.op_type == STRAIGHT_THROUGH else [0]


def new_relative(op_type: str, value: ir.Value, operand: ir.Value, names: Names) -> ir.Node:
    """A relative that reads `value`, not yet in a graph."""
    output = ir.Value(name=names.fresh(f"{value.name}_{_SUFFIX[op_type]}"), type=value.type, shape=value.shape)
    name = names.fresh(f"{value.name}_{op_type}")
    return ir.Node(DOMAIN, op_type, [value, operand], outputs=[output], name=name)


_SUFFIX = {
    SCALE: "scaled",
    REVERSAL: "reversed",
    CLIP_VALUE: "clipped",
    CLIP_NORM: "clipped",
    STRAIGHT_THROUGH: "straight",
    CONDITIONAL: "guarded",
    MASK: "masked",
}
