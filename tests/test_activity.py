"""`gradcut.analyze` against brute force on a thousand random graphs, and by hand where a reason is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import onnx
import onnx_ir as ir
import pytest
from onnx import AttributeProto, NodeProto, TensorProto

import gradcut
from tests.graphs import Case, generate, shrink

# --- brute force: a plain list of edges, and walks over it ---------------------------------------------------

#: op -> the (operand, output) pairs with a derivative; every other pair has none.
PAIRS = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Neg", "Identity", "Exp", "Cast", "Reshape", "Gather"), {(0, 0)}),
    **dict.fromkeys(("GatherElements", "Dropout", "TopK", "ReduceMax", "ReduceSum"), {(0, 0)}),
    **dict.fromkeys(("Add", "Mul", "Sub", "Concat"), {(0, 0), (1, 0)}),
    "Where": {(1, 0), (2, 0)},
    "Clip": {(0, 0), (1, 0), (2, 0)},
    "Split": {(0, 0), (0, 1)},
    "LayerNormalization": {(0, 0), (1, 0), (2, 0), (0, 1), (0, 2)},
}
FLOAT = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


class Edge(NamedTuple):
    source: str
    target: str
    node: str
    index: int  # of the operand; -1 for what an If hands out
    reasons: tuple[str, ...]  # why it carries no derivative, the first that applies first

    @property
    def reason(self) -> str | None:
        return self.reasons[0] if self.reasons else None


def edges_of(case: Case) -> list[Edge]:
    types = _types(case.model)
    return [edge for node in _nodes(case.model.graph.node) for edge in _edges(node, types, case.stop_at)]


def _nodes(nodes) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g.node)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Every value's element type, by a table of what each op of the generator gives."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in _nodes(model.graph.node):
        types |= dict.fromkeys(node.output, TensorProto.FLOAT)
        if node.op_type == "Cast":
            types[node.output[0]] = next(a.i for a in node.attribute if a.name == "to")
        elif node.op_type == "Shape":
            types[node.output[0]] = TensorProto.INT64
        elif node.op_type == "Greater":
            types[node.output[0]] = TensorProto.BOOL
        elif node.op_type == "Sigmoid":
            types[node.output[0]] = types[node.input[0]]
        elif node.op_type == "TopK":
            types[node.output[1]] = TensorProto.INT64
        elif node.op_type == "Dropout" and len(node.output) > 1:
            types[node.output[1]] = TensorProto.BOOL
    return types


def _edges(node: NodeProto, types: dict[str, int], stop_at: list[str]) -> Iterator[Edge]:
    for index, source in enumerate(node.input):
        for position, target in enumerate(node.output):
            if not source or not target:
                continue
            mark = node.op_type == "StopGradient"
            applies = {
                "mark": mark,
                "stop-at": source in stop_at or f"{source}->{node.name}" in stop_at,
                "dtype": types[source] not in FLOAT or types[target] not in FLOAT,
                "zero-derivative": not mark and (index, position) not in PAIRS.get(node.op_type, ()),
            }
            yield Edge(source, target, node.name, index, tuple(reason for reason in applies if applies[reason]))
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield Edge(attribute.g.output[0].name, node.output[0], node.name, -1, ())


def walk(starts: set[str], edges: list[tuple[str, str]]) -> set[str]:
    """Everything at the end of a path from one of `starts`, by following every edge until nothing is new."""
    found = set(starts)
    while new := {target for source, target in edges if source in found} - found:
        found |= new
    return found


class Brute:
    """The three sets and the cut of a case, straight from their definitions."""

    def __init__(self, case: Case) -> None:
        self.case, self.edges = case, edges_of(case)
        carrying = [(e.source, e.target) for e in self.edges if e.reason is None]
        flowing = [(e.source, e.target) for e in self.edges]
        back = lambda pairs: [(target, source) for source, target in pairs]
        self.varied, self.useful = walk(set(case.wrt), carrying), walk(set(case.of), back(carrying))
        self.active = self.varied & self.useful
        floats = {v.name for v in case.model.graph.input if v.type.tensor_type.elem_type in FLOAT}
        self.on_path = walk({*floats, *case.parameters}, flowing) & walk(set(case.of), back(flowing))
        self.reached = walk(set(case.of), back(flowing))

    def cut(self) -> dict[tuple[str, str, int], str | None]:
        """The cut uses; with the reason where the words leave only one."""
        found: dict[tuple[str, str, int], str | None] = {}
        uses = itertools.groupby(sorted(self.edges), key=lambda e: (e.source, e.node, e.index))
        for use, group in uses:
            live = [e for e in group if e.target in self.active]
            if use[2] < 0 or not live or use[0] not in self.on_path:
                continue
            if not any(e.reason is None and e.source in self.active for e in live):
                found[use] = self.reason(live)
        found |= {(name, "", -1): "no-path-to-loss" for name in self.case.wrt if name not in self.reached}
        return found

    def reason(self, live: list[Edge]) -> str | None:
        source, blocked = live[0].source, {e.reason for e in live}
        if any(e.target == source and e.reason == "mark" for e in self.edges):
            return "mark"
        if None not in blocked:
            return blocked.pop() if len(blocked) == 1 else None
        if source in self.case.parameters:
            return "frozen" if source in self.case.frozen else "not-trained"
        return "data" if source.startswith("x") else None

    def occurs_behind(self, value: str, reason: str) -> bool:
        """Whether a reason stands anywhere on the way to a value."""
        behind = walk({value}, [(e.target, e.source) for e in self.edges])
        on_edges = {reason for e in self.edges if e.target in behind for reason in e.reasons}
        kinds = {
            "frozen": behind & set(self.case.frozen),
            "not-trained": behind & set(self.case.parameters) - set(self.case.frozen),
            "data": {name for name in behind if name.startswith(("x", "ids", "flag"))},
        }
        return bool(kinds.get(reason)) if reason in kinds else reason in on_edges


def disagreement(case: Case) -> str | None:
    """What `analyze` says otherwise than brute force, or None."""
    brute = Brute(case)
    found = gradcut.analyze(case.model, of=case.of, wrt=case.wrt, stop_at=case.stop_at)
    for name in ("varied", "useful", "active"):
        if getattr(found, name) != getattr(brute, name):
            return f"{name}: {sorted(getattr(found, name) ^ getattr(brute, name))} differ"
    reasons = {(edge.value, edge.node, edge.index): edge.reason for edge in found.cut}
    expected = brute.cut()
    if reasons.keys() != expected.keys() or len(reasons) != len(found.cut):
        return f"cut: {sorted(reasons.keys() ^ expected.keys())} differ"
    for use, reason in expected.items():
        if reason is not None and reasons[use] != reason:
            return f"{use} is cut for {reasons[use]!r} and not for {reason!r}"
        if reason is None and not brute.occurs_behind(use[0], reasons[use]):
            return f"{use} is cut for {reasons[use]!r}, which is nowhere behind it"
    return None


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_random_graphs_agree_with_brute_force(block: int) -> None:
    for seed in range(100 * block, 100 * (block + 1)):
        case = generate(seed)
        if disagreement(case) is not None:
            case = shrink(case, lambda smaller: disagreement(smaller) is not None)
            pytest.fail(f"{disagreement(case)}\n{case}")


def test_the_random_graphs_hold_what_matters() -> None:
    cases = [generate(seed) for seed in range(1000)]
    cuts = [Brute(case).cut() for case in cases]
    reasons = {reason for cut in cuts for reason in cut.values()}
    assert reasons >= {"mark", "stop-at", "dtype", "zero-derivative", "frozen", "not-trained", "data"}
    assert sum(bool(Brute(case).active) for case in cases) > 400
    assert sum(any(e.index < 0 and e.target in b.active for e in b.edges) for b in map(Brute, cases)) > 20
