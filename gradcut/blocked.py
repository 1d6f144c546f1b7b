"""Why a value has no gradient, in one line."""

from __future__ import annotations

from collections.abc import Sequence

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
    lines = {}
    for name in names:
        carrying = flow.forward([known[name]], lambda one: one.blocked is None)
        blocked = (one for one in flow.flows if one.blocked and one.source in carrying and one.target in to_output)
        places = dict.fromkeys(f"{one.blocked} at {reported_name(one.source)}{_consumer(one)}" for one in blocked)
        lines[name] = join_names(places, 3) or NO_PATH
    return lines


def _consumer(flow: Flow) -> str:
    return "" if is_mark(flow.node) else f" -> {flow.node.name}"
