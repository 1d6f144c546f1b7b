"""If; and how a body is differentiated, that of a Loop or Scan too: `rerun` is the one place where it happens.

The backward of a body computes the body again, from what went into it, and then walks over these copies in reverse
(`gradcut.passes.reverse`). So nothing that a body computes is kept, but what went into each turn of a Loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint, Captures
from gradcut.rules.registry import rule
from gradcut.subgraphs import Copy, draws, every_node, keep_needed


def rerun(
    op: Adjoint,
    b: Builder,
    graph: ir.Graph,
    given: Mapping[ir.Value, ir.Value],
    cotangents: Mapping[int, ir.Value],
    wanted: Sequence[ir.Value],
) -> list[ir.Value | None]:
    """Compute a body again in `b`, and its backward behind it.

    Args:
        given: what stands for the graph's inputs, and for what is not to be computed again.
        cotangents: of the graph's outputs, by position; those that are not active are left aside.
        wanted: inputs of the graph, and values from outside.

    Returns:
        The cotangent of each wanted value; None is zero.
    """
    copy = Copy(b.names, dict(given))
    nodes = copy.nodes(node for node in graph if node.outputs[0] not in given)
    b.nodes += nodes
    active = op.inside.active
    active.update([twin for value, twin in copy.values.items() if value in active])
    seeds = [(copy.of(graph.outputs[index]), cotangent) for index, cotangent in cotangents.items()]
    return op.inside.differentiate(b, nodes, seeds, [copy.of(value) for value in wanted])


def settle(op: Adjoint, b: Builder, results: Sequence[ir.Value]) -> None:
    """Keep of a backward what its results need; a draw among that would be another than the forward's."""
    keep_needed(b, results)
    for node in every_node(b.nodes):
        if draws(node):
            op.refuse(
                f"a graph inside it draws at random ({node.op_type}), and its backward would draw anew; put "
                "the draw before it, or take it out"
            )


@rule("If", "")
def if_(op: Adjoint) -> Captures:
    """Y = then() or else(): an If by the same condition, each branch the backward of one, to what both capture.

    Not covered: a branch with a Multinomial draw.
    """
    cotangents = {i: c for i in range(len(op.node.outputs)) if (c := op.cotangent(i)) is not None}

    def backward(branch: str) -> ir.Graph:
        def build(b: Builder) -> list[ir.Value]:
            found = rerun(op, b, op.graph(branch), {}, cotangents, op.captured)
            results = [one or b.zeros_like(value) for one, value in zip(found, op.captured, strict=True)]
            settle(op, b, results)
            return results

        return op.b.body((), build, name=branch)

    then, other = backward("then_branch"), backward("else_branch")
    node = op.b.node("If", op["cond"], outputs=len(op.captured), then_branch=then, else_branch=other)
    for value, cotangent in zip(op.captured, node.outputs, strict=True):
        cotangent.type, cotangent.shape = value.type, value.shape
        yield value, cotangent
