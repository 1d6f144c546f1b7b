"""Operators that are made of others: their derivative is that of what they are made of.

`composed` declares an operator by its forward, written out in plain ONNX. The forward node stays as it is, so that the
runtime runs its own kernel for it; the backward writes the forward out again, as far as it needs it, and differentiates
that rule by rule. What is computed twice is what a fused kernel does not give away (of attention: the probabilities).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir

from gradcut.errors import NoGradientError
from gradcut.ops import Builder, broadcast_shapes, is_float
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.contract import yielded
from gradcut.rules.registry import REGISTRY, Outputs, Rule, output_name, rule

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
    op = Adjoint(node, b, _positions(found), {}, {}, frozenset(), opset)
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
    try:
        outputs = list(forward(seen))
        nodes = op.b.nodes[start:]
        seeds: dict[ir.Value, list[ir.Value]] = {}
        for index, cotangent in ((i, op.cotangent(i)) for i in range(len(op.node.outputs))):
            value = outputs[index] if index < len(outputs) else None
            if cotangent is not None and value is not None:
                seeds[value] = [*seeds.get(value, ()), cotangent]
        found = _reverse(op, nodes, seeds, seen.stand_ins.values())
    except NoGradientError as error:
        op.refuse(error.reason)
    results = [found[v] if v in found else op.b.zeros_like(v) for v in seen.stand_ins.values()]
    seen.settle()
    yield from zip(seen.stand_ins, results, strict=True)


def _reverse(
    op: Adjoint,
    nodes: Sequence[ir.Node],
    seeds: Mapping[ir.Value, Sequence[ir.Value]],
    wanted: Iterable[ir.Value],
) -> dict[ir.Value, ir.Value]:
    """The cotangents of some values that nodes read, from those of some that they give."""
    varied = _varied(nodes, wanted)
    parts = defaultdict(list, {value: list(cotangents) for value, cotangents in seeds.items()})
    total: dict[ir.Value, ir.Value] = {}

    def add_up(value: ir.Value) -> ir.Value:
        if value not in total:
            terms = parts[value]
            total[value] = terms[0] if len(terms) == 1 else op.b.op("Sum", *terms, dtype=value.dtype, shape=value.shape)
        return total[value]

    for node in reversed(nodes):
        cotangents = {i: add_up(v) for i, v in enumerate(node.outputs) if v in varied and v in parts}
        serves = frozenset(i for i, v in enumerate(node.inputs) if v in varied and _passes(node, i, cotangents))
        found = REGISTRY.find(node)
        if not cotangents or not serves:
            continue
        if found is None:
            op.refuse(f"it is made of {node.op_type}, which has no rule")
        names = {output_name(node, i): i for i in range(len(node.outputs))}
        inner = Adjoint(node, op.b, _positions(found), names, cotangents, serves, op.opset, op.finite)
        for index, cotangent in yielded(found, inner):
            operand = node.inputs[index] if isinstance(index, int) else index
            assert operand is not None
            parts[operand].append(_fit(op.b, found, node, operand, cotangent))
    return {value: add_up(value) for value in wanted if value in parts}


def _varied(nodes: Iterable[ir.Node], wanted: Iterable[ir.Value]) -> set[ir.Value]:
    """What depends on the wanted values along differentiable edges."""
    varied = set(wanted)
    for node in nodes:
        moving = [i for i, value in enumerate(node.inputs) if value in varied]
        for index, output in enumerate(node.outputs):
            if is_float(output) and any(REGISTRY.differentiable(node, i, index) for i in moving):
                varied.add(output)
    return varied


def _passes(node: ir.Node, index: int, cotangents: Iterable[int]) -> bool:
    return any(REGISTRY.differentiable(node, index, output) for output in cotangents)


def _positions(found: Rule) -> dict[str, int]:
    return {name: index for index, name in enumerate(found.operands)}


def _fit(b: Builder, found: Rule, node: ir.Node, operand: ir.Value, cotangent: ir.Value) -> ir.Value:
    """Broadcasting undone, or the shape set that a rule's result has by contract."""
    if not found.broadcasts:
        if cotangent.shape is None and cotangent.producer() is not None:
            cotangent.shape = operand.shape
        return cotangent
    if cotangent.shape is None:
        shapes = [value.shape for value in node.inputs if value is not None]
        cotangent.shape = node.outputs[0].shape or broadcast_shapes(shapes)
    return b.sum_to(cotangent, operand)
