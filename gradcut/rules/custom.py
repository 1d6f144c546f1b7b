"""The gradient of a region that a user's own graph gives."""

from __future__ import annotations

from gradcut.dialect import DOMAIN
from gradcut.dialect.custom import PREFIX, backward_name, gradients_of
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule
from gradcut.subgraphs import Copy


@rule(PREFIX, "", domain=DOMAIN)
def custom_gradient(op: Adjoint) -> Cotangents:
    """dX by the function of the model that the node names, from dY, Y and X.

    Y are the node's own outputs, so that a second derivative takes the user's way too.
    """
    b, count = op.b, len(op.node.outputs)
    function = next((f for key, f in op.inside.functions.items() if key[:2] == (DOMAIN, backward_name(op.node))), None)
    if function is None:
        op.refuse(f"the file holds no function {DOMAIN}.{backward_name(op.node)}, which is its backward")
    seeds = [op.cotangent(number) or b.zeros_like(op.out(number)) for number in range(count)]
    given = [*seeds, *(op.out(number) for number in range(count)), *(op[i] for i in range(count, len(op.node.inputs)))]
    copy = Copy(b.names, dict(zip(function.inputs, given, strict=True)))
    b.nodes += copy.nodes(function)
    for operand, value in zip(gradients_of(op.node), function.outputs, strict=True):
        if operand in op.wanted:
            cotangent = copy.of(value)
            cotangent.type, cotangent.shape = op[operand].type, op[operand].shape
            yield operand, cotangent
