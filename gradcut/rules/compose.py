"""Operators that are made of others: their derivative is that of what they are made of.

`composed` declares an operator by its forward, written out in plain ONNX. The forward node stays as it is, so that the
runtime runs its own kernel for it; the backward writes the forward out again, as far as it needs it, and has the engine
differentiate that (`Adjoint.inside`). What is computed twice is what a fused kernel does not give away (of attention:
the probabilities).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from gradcut.errors import NoGradientError
from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import REGISTRY, Outputs, rule

#: Builds the outputs of a node from its operands; None for one that carries no cotangent.
Forward = Callable[[Adjoint], Sequence[ir.Value | None]]
_FORWARDS: dict[tuple[str, str], Forward] = {}


def composed(
    op_type: str,
    differentiable: str,
    *,
    operands: str = "",
    weights: str = "",
    outputs: Outputs = lambda node: {},
    domain: str = "",
    since: int = 1,
) -> Callable[[Forward], Forward]:
    """Declare an operator by its forward; the arguments are those of `rule`."""

    def declare(forward: Forward) -> Forward:
        def vjp(op: Adjoint) -> Cotangents:
            yield from _through(op, forward)

        vjp.__doc__ = forward.__doc__
        rule(
            op_type,
            differentiable,
            operands=operands,
            weights=weights,
            outputs=outputs,
            domain=domain,
            since=since,
        )(vjp)
        _FORWARDS.update({(domain, name): forward for name in op_type.split()})
        return forward

    return declare


def written_out(node: ir.Node, b: Builder, opset: int) -> list[ir.Value | None]:
    """The outputs of a composed operator, built from others in place of the node."""
    found = REGISTRY.find(node, opset)
    assert found is not None
    positions = {name: index for index, name in enumerate(found.operands)}
    op = Adjoint(node, b, positions, {}, {}, frozenset(), opset)
    with b.arithmetic():
        return list(_FORWARDS[node.domain, node.op_type](op))


class _StoodIn(Adjoint):
    """The node seen with a stand-in for each wanted operand: one value may be several operands of it."""

    def __init__(self, op: Adjoint) -> None:
        self.__dict__.update(op.__dict__)
        self.stand_ins: dict[int, ir.Value] = {}
        for index in sorted(op.wanted):
            value = op[index]
            self.stand_ins[index] = ir.Value(name=value.name, type=value.type, shape=value.shape)

    def get(self, operand: str | int) -> ir.Value | None:
        index = self.index(operand)
        return self.stand_ins[index] if index in self.stand_ins else super().get(operand)

    def settle(self) -> None:
        """Put the operands themselves in their places."""
        for index, value in self.stand_ins.items():
            ir.convenience.replace_all_uses_with(value, self.node.inputs[index])  # type: ignore[arg-type]


def _through(op: Adjoint, forward: Forward) -> Cotangents:
    seen, start = _StoodIn(op), len(op.b.nodes)
    wanted = list(seen.stand_ins.values())
    try:
        outputs = forward(seen)
        nodes = op.b.nodes[start:]
        pairs = ((value, op.cotangent(index)) for index, value in enumerate(outputs))
        seeds = [(value, dY) for value, dY in pairs if value is not None and dY is not None]
        found = op.inside.differentiate_made(op.b, nodes, seeds, wanted, op.finite)
    except NoGradientError as error:
        op.refuse(error.reason)
    results = [one or op.b.zeros_like(value) for one, value in zip(found, wanted, strict=True)]
    seen.settle()
    yield from zip(seen.stand_ins, results, strict=True)
