"""Why a value has no gradient, in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from gradcut.activity import NO_PATH, Flow, FlowGraph
from gradcut.dialect import is_mark, reported_name
from gradcut.passes.propagate import main_values
from gradcut.rules import REGISTRY
from gradcut.text import join_names


def blocked_by(model: ir.Model, of: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """For each value that has no gradient: the first uses on its ways to `of` that let none through, as one line."""
    if not names:
        return {}
    flow, known = FlowGraph(model.graph, REGISTRY), main_values(model.graph)
    to_output = flow.backward([known[name] for name in of if name in known], lambda _: True)
    stops = [one for one in flow.flows if one.blocked and one.target in to_output]
    met = _met(flow, stops)
    lines: dict[int, str] = {}  # parameters behind one mark have one
    for bits in {met.get(known[name], 0) for name in names}:
        mine = (stops[number] for number in _ones(bits))
        places = dict.fromkeys(f"{one.blocked} at {reported_name(one.source)}{_consumer(one)}" for one in mine)
        lines[bits] = join_names(places, 3) or NO_PATH
    return {name: lines[met.get(known[name], 0)] for name in names}


def _met(graph: FlowGraph, stops: Sequence[Flow]) -> dict[ir.Value, int]:
    """For each value the stops that it meets first on its ways, as the bits of a number: all values at once."""
    met: dict[ir.Value, int] = {}
    for number, one in enumerate(stops):
        met[one.source] = met.get(one.source, 0) | 1 << number
    carrying = [one for one in reversed(graph.flows) if one.blocked is None]
    grown = True
    while grown:  # once, and once more to see it; again for what a loop carries
        grown = False
        for one in carrying:
            mine = met.get(one.source, 0)
            if (both := mine | met.get(one.target, 0)) != mine:
                met[one.source], grown = both, True
    return met


def _ones(bits: int) -> Iterator[int]:
    """The places of the bits that are set, from the lowest."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _consumer(flow: Flow) -> str:
    return "" if is_mark(flow.node) else f" -> {flow.node.name}"
