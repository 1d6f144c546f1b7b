"""Shapes that ONNX's inference leaves open, as `import` finds them.

1. Operands whose rank a node says, see `ranks`.
2. What a Loop carries may change its shape from turn to turn, so ONNX tells nothing of it. Here it is taken to have
   the shape that it starts with; where a turn does not keep that, the dimensions that change are open, and where it
   changes the rank, all is. What is left holds by induction. Where the file says what the body is given, the result
   is what there was before the first turn or what a turn gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import onnx_ir as ir

from gradcut.dims import same_dim
from gradcut.errors import ImportModelError
from gradcut.passes.importing.ranks import say_ranks

#: How often what was taken for granted is weakened before nothing is.
_ROUNDS = 8
Infer = Callable[[ir.Model], None]


class Carried(NamedTuple):
    """A state of a Loop: operand, input and output of the body, output of the node."""

    operand: ir.Value
    given: ir.Value
    result: ir.Value
    output: ir.Value


def infer_bodies(model: ir.Model, infer: Infer) -> None:
    """Say the shapes above, and infer again what depends on them.

    Args:
        infer: sets shapes that are unknown and can be told.
    """
    tried = set[ir.Value]()
    while True:
        told = sum([say_ranks(node) for node in model.graph.all_nodes()])
        if told:
            infer(model)
        states = [s for s in _states(model) if s.given.shape is None and s.operand.shape is not None]
        states = [state for state in states if state.given not in tried]
        tried.update(state.given for state in states)
        said = sum([_from_body(state) for state in _states(model)])
        if said:
            infer(model)
        if not _assume(model, states, infer) and not told and not said:
            return


def _states(model: ir.Model) -> Iterator[Carried]:
    for node in model.graph.all_nodes():
        if node.domain or node.op_type != "Loop":
            continue
        body = node.attributes["body"].as_graph()
        columns = (node.inputs[2:], body.inputs[2:], body.outputs[1:], node.outputs)
        for operand, given, result, output in zip(*columns, strict=False):
            if operand is not None and isinstance(operand.type, ir.TensorType):
                yield Carried(operand, given, result, output)


def _from_body(state: Carried) -> bool:
    """Case 2, where the body says what it is given."""
    if state.given.shape is None or state.output.shape is not None:
        return False
    state.output.shape = _kept(state.operand.shape, state.result.shape)
    return state.output.shape is not None


def _assume(model: ir.Model, states: list[Carried], infer: Infer) -> bool:
    """Case 2; whether anything was learnt."""
    open_values = [value for value in _values(model) if value.shape is None]
    shapes = {state: state.operand.shape for state in states}
    for _ in range(_ROUNDS):
        if all(shape is None for shape in shapes.values()):
            break
        for state, shape in shapes.items():
            state.given.shape = shape
            state.output.shape = state.output.shape or shape
        try:
            infer(model)
        except ImportModelError:  # what was taken for granted contradicts what the body does
            shapes = dict.fromkeys(states)
        kept = {state: _kept(shape, state.result.shape) for state, shape in shapes.items()}
        if kept == shapes and any(kept.values()):
            return True
        shapes = kept
        for value in open_values:
            value.shape = None
    return False


def _kept(given: ir.Shape | None, result: ir.Shape | None) -> ir.Shape | None:
    """`given`, with what a turn changes left open."""
    if given is None or result is None or len(given) != len(result):
        return None
    if all(same_dim(a, b) or _is_open(a) for a, b in zip(given, result, strict=True)):
        return given
    return ir.Shape([a if same_dim(a, b) else None for a, b in zip(given, result, strict=True)])


def _is_open(dim: int | ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and dim.value is None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from (value for node in graph for value in node.outputs)
