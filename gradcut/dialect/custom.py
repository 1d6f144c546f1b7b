"""A gradient replaced by a user's own graph: an operator of each region's own, `CustomGradient_<name>`.

It reads the region's outputs Y, then its inputs X, and hands on Y. Its attribute `backward` names the function of the
model that computes the cotangents: from dY, Y and X in this order, to those of the inputs X whose numbers `gradients`
lists. Neither function is one of `DIALECT`: each file has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gradcut.dialect.core import DOMAIN

PREFIX, BACKWARD = "CustomGradient_", "_backward"
BACKWARD_OF, GRADIENTS = "backward", "gradients"


def is_custom(node: ir.Node | None) -> bool:
    """Whether a node stands for a region with a gradient of the user's."""
    return node is not None and node.domain == DOMAIN and node.op_type.startswith(PREFIX)


def is_custom_function(key: tuple[str, str, str]) -> bool:
    """Whether a function is that of such a node, or its backward."""
    return key[0] == DOMAIN and key[1].startswith(PREFIX)


def backward_name(node: ir.Node) -> str:
    return node.attributes[BACKWARD_OF].as_string()


def gradients_of(node: ir.Node) -> list[int]:
    """The operands of such a node that get a cotangent."""
    return [len(node.outputs) + number for number in node.attributes[GRADIENTS].as_ints()]


def forward_function(name: str, outputs: int, inputs: int, opset: int) -> ir.Function:
    """The outputs of the region as they are."""
    Y = [ir.Value(name=f"Y{number}") for number in range(outputs)]
    X = [ir.Value(name=f"X{number}") for number in range(inputs)]
    nodes = [ir.Node("", "Identity", [y], outputs=[ir.Value(name=f"Z{number}")]) for number, y in enumerate(Y)]
    graph = ir.Graph([*Y, *X], [node.outputs[0] for node in nodes], nodes=nodes, opset_imports={"": opset}, name=name)
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def new_custom(name: str, outputs: Sequence[ir.Value], inputs: Sequence[ir.Value], gradients: Sequence[int]) -> ir.Node:
    """The node of a region, with outputs that have no name yet."""
    return ir.Node(
        DOMAIN,
        name,
        [*outputs, *inputs],
        attributes=[ir.AttrString(BACKWARD_OF, f"{name}{BACKWARD}"), ir.AttrInt64s(GRADIENTS, list(gradients))],
        outputs=[ir.Value(type=value.type, shape=value.shape) for value in outputs],
    )
