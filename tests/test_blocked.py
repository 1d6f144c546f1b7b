"""What cut a value off: all values at once give what a walk for each gives, and the cost grows with the model alone."""

from __future__ import annotations

import onnx_ir as ir
import pytest

import gradcut
from gradcut import compilation
from gradcut.activity import NO_PATH, FlowGraph
from gradcut.blocked import blocked_by
from gradcut.dialect import is_mark, reported_name
from gradcut.passes import Import, StopGradient
from gradcut.passes.propagate import main_values
from gradcut.rules import REGISTRY
from gradcut.text import join_names
from tests.graphs import generate
from tests.written import parse


def one_by_one(model: ir.Model, of: list[str], name: str) -> str:
    """By a walk from the value over what carries, to each use on a way to an output that does not."""
    graph, known = FlowGraph(model.graph, REGISTRY), main_values(model.graph)
    to_output = graph.backward([known[one] for one in of], lambda _: True)
    carrying = graph.forward([known[name]], lambda flow: flow.blocked is None)
    found = [
        f"{flow.blocked} at {reported_name(flow.source)}" + ("" if is_mark(flow.node) else f" -> {flow.node.name}")
        for flow in graph.flows
        if flow.blocked and flow.source in carrying and flow.target in to_output
    ]
    return join_names(dict.fromkeys(found), 3) or NO_PATH


@pytest.mark.parametrize("block", range(4))
def test_all_at_once_is_one_by_one(block: int) -> None:
    """Seeds from 100 * block."""
    several = 0
    for seed in range(100 * block, 100 * block + 100):
        case = generate(seed)
        model = ir.from_proto(case.model)
        Import()(model)
        StopGradient(at=tuple(case.stop_at))(model)
        names = list(main_values(model.graph))
        found = blocked_by(model, case.of, names)
        assert found == {name: one_by_one(model, case.of, name) for name in names}, case
        several += any(", " in line for line in found.values())
    assert several > 3


LOOP = """g (float[2] x, int64 n) => (float[2] y) <float[2] w = {1, 2}, bool yes = {1}> {
    h = Mul (x, w)
    a, b = Loop (n, yes, h, h) <body = body (int64 i, bool go, float[2] p, float[2] q) =>
        (bool on, float[2] p_next, float[2] q_next) {
        on = Identity (go)  p_next = Relu (q)  q_next = gradcut.StopGradient (p) }>
    s = gradcut.StopGradient (b)  y = Floor (a) }"""


def test_what_a_loop_carries_is_followed_round() -> None:
    model = ir.from_proto(parse(LOOP))
    Import()(model)
    for name in ("w", "x", "h"):
        assert blocked_by(model, ["y"], [name])[name] == one_by_one(model, ["y"], name)


def test_a_compilation_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(compilation, "blocked_by", lambda *args: calls.append(args) or blocked_by(*args))
    layers = "".join(f"h{i + 1} = Mul (h{i}, w{i})\n" for i in range(20))
    weights = ", ".join(f"float[2] w{i} = {{1, 2}}" for i in range(21))
    model = parse(f"g (float[n,2] h0) => (float[n,2] y) <{weights}> {{ {layers} y = Mul (h20, w20) }}")
    artifacts = gradcut.compile(model, "mse", train=[f"w{i}" for i in range(21)], stop_at="h20")
    assert artifacts.manifest["unreached"] == {f"w{i}": "stop-at at h20" for i in range(20)}
    assert len(calls) == 1
