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
from tests.written import parse

# --- brute force: a plain list of edges, and walks over it ---------------------------------------------------

#: op -> the (operand, output) pairs with a derivative; every other pair has none.
PAIRS = {
    **{op: {(0, 0)} for op in ("Relu", "Sigmoid", "Tanh", "Neg", "Identity", "Exp", "Cast", "Reshape", "Gather")},
    **{op: {(0, 0)} for op in ("GatherElements", "Dropout", "TopK", "ReduceMax", "ReduceSum")},
    **{op: {(0, 0), (1, 0)} for op in ("Add", "Mul", "Sub", "Concat")},
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
        by_use = lambda edge: (edge.source, edge.node, edge.index)
        for use, group in itertools.groupby(sorted(self.edges, key=by_use), key=by_use):
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


# --- by hand: one case a reason ------------------------------------------------------------------------------

Cut = list[tuple[str, str, int, str]]


def cut(text: str, of: str, wrt: str, props: str = "", **options: object) -> Cut:
    return list(gradcut.analyze(parse(text, props=props), of=of.split(), wrt=wrt.split(), **options).cut)


LINE = "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { h = Mul (x, w)  k = %s  y = Mul (k, w) }"


def test_a_mark_is_a_cut_of_the_use_behind_it() -> None:
    assert cut(LINE % "gradcut.StopGradient (h)", "y", "w") == [("k", "Mul_y", 0, "mark")]


def test_a_stop_asked_for_is_named_after_the_value_it_stops() -> None:
    found = gradcut.analyze(parse(LINE % "Relu (h)"), of=["y"], wrt=["w"], stop_at="k")
    assert found.cut == (("k", "Mul_y", 0, "stop-at"),)
    assert found.varied == {"w", "h", "k", "y"}
    assert found.useful == {"y", "w"}


def test_a_stop_on_one_use_leaves_the_other() -> None:
    text = "g (float[2] x) => (float[2] y) { h = Mul (x, x)  a = Relu (h)  [last] y = Mul (a, h) }"
    assert cut(text, "y", "x", stop_at="h->last") == [("h", "last", 1, "stop-at")]


def test_both_uses_by_one_node_are_two_edges() -> None:
    text = "g (float[2] x) => (float[2] y) { h = Relu (x)  s = Mul (h, h)  y = Add (s, x) }"
    assert cut(text, "y", "x", stop_at="h->Mul_s") == [("s", "Add_y", 0, "stop-at")]
    assert cut(text, "y", "s x", stop_at="h") == [("h", "Mul_s", 0, "stop-at"), ("h", "Mul_s", 1, "stop-at")]


def test_integers_cut_for_their_type() -> None:
    text = "g (float[2] x) => (float[2] y) { i = Cast <to = 7> (x)  k = Cast <to = 1> (i)  y = Mul (k, x) }"
    assert cut(text, "y", "x") == [("k", "Mul_y", 0, "dtype")]


def test_a_condition_and_a_shape_cut_for_their_type() -> None:
    text = """g (float[2] x) => (float[2] y) {
        c = Greater (x, x)  s = Shape (x)  k = Reshape (x, s)  y = Where (c, k, x) }"""
    assert cut(text, "y", "x") == [("s", "Reshape_k", 1, "dtype"), ("c", "Where_y", 0, "dtype")]


@pytest.mark.parametrize("op", ["Floor", "Ceil", "Round", "Sign", "Hardmax"])
def test_a_step_has_no_derivative(op: str) -> None:
    assert cut(LINE % f"{op} (h)", "y", "w") == [("k", "Mul_y", 0, "zero-derivative")]


def test_an_operand_that_is_never_differentiable() -> None:
    ratio = "g (float[2] x, float r, bool t) => (float[2] y) { q = Sigmoid (r)  y = Dropout (x, q, t) }"
    assert cut(ratio, "y", "x r") == [("q", "Dropout_y", 1, "zero-derivative")]


def test_parameters_are_frozen_or_not_trained_and_inputs_are_data() -> None:
    text = """g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}> {
        h = Mul (x, v)  y = Mul (h, w) }"""
    assert cut(text, "y", "w") == [("h", "Mul_y", 0, "not-trained")]
    assert cut(text, "y", "v") == [("x", "Mul_h", 0, "data"), ("w", "Mul_y", 1, "not-trained")]
    frozen = '"gradcut.frozen": "[\\"w\\"]"'
    assert cut(text, "y", "v", props=frozen) == [("x", "Mul_h", 0, "data"), ("w", "Mul_y", 1, "frozen")]
    assert cut(text, "y", "v w") == [("x", "Mul_h", 0, "data")]


def test_freezing_changes_reasons_and_not_what_is_asked() -> None:
    model = gradcut.freeze(parse(LINE % "Relu (h)"), "w")
    assert gradcut.analyze(model, of=["y"], wrt=["w"]).active == {"w", "h", "k", "y"}


def test_a_wanted_value_without_any_path() -> None:
    text = "g (float[2] x, float[2] z) => (float[2] y, float[2] u) { y = Relu (x)  u = Relu (z) }"
    found = gradcut.analyze(parse(text), of=["y"], wrt=["z"])
    assert found.cut == (("z", "", -1, "no-path-to-loss"),)
    assert not found.active


def test_constants_that_are_no_parameters_are_no_cut() -> None:
    text = "g (float[2] x) => (float[2] y) <float eps = {0.1}> { h = Add (x, eps)  y = Relu (h) }"
    assert cut(text, "y", "x") == []


# --- where marks may stand -----------------------------------------------------------------------------------


def test_a_marked_output_keeps_its_name_and_gives_nothing_upstream() -> None:
    model = gradcut.stop_gradient(parse(LINE % "Relu (h)"), "y")
    assert [value.name for value in model.graph.outputs] == ["y"]
    found = gradcut.analyze(model, of=["y"], wrt=["x"])
    assert found.useful == {"y"} and not found.active


def test_an_output_stopped_for_one_question() -> None:
    found = gradcut.analyze(parse(LINE % "Relu (h)"), of=["y"], wrt=["x"], stop_at="y")
    assert (found.varied, found.useful, found.active) == ({"x", "h", "k"}, {"y"}, set())


def test_a_tied_weight_is_one_value_with_several_uses() -> None:
    text = "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { h = MatMul (x, w)  y = MatMul (h, w) }"
    assert cut(text, "y", "w") == [("x", "MatMul_h", 0, "data")]
    assert cut(text, "y", "w", stop_at="w->MatMul_h") == [("h", "MatMul_y", 0, "stop-at")]
    assert cut(text, "y", "w", stop_at="w->MatMul_y") == [
        ("x", "MatMul_h", 0, "data"),
        ("w", "MatMul_y", 1, "stop-at"),
    ]


def test_one_output_of_a_split() -> None:
    text = "g (float[4] x) => (float[2] y) { a, b = Split <num_outputs = 2> (x)  y = Mul (a, b) }"
    assert cut(text, "y", "x", stop_at="b") == [("b", "Mul_y", 1, "stop-at")]


def test_unused_outputs_left_out_by_the_file() -> None:
    text = """g (float[2,4] x) => (float[2,1] d) <float[4] s = {1, 1, 1, 1}> { y, , d = LayerNormalization (x, s) }"""
    found = gradcut.analyze(parse(text), of=["d"], wrt=["x", "s"])
    assert found.active == {"x", "d"}
    assert found.cut == (("s", "LayerNormalization_y", 1, "zero-derivative"),)


# --- If, Loop, Scan ------------------------------------------------------------------------------------------

IF = """g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {1, 2}> {
    h = Mul (x, w)
    y = If (c) <then_branch = a () => (float[2] p) { p = %s }, else_branch = b () => (float[2] q) { q = %s }>
}"""


def test_an_if_is_active_if_either_branch_makes_it_so() -> None:
    for branches in (("Relu (h)", "Relu (v)"), ("Relu (v)", "Relu (h)"), ("Floor (h)", "Relu (h)")):
        found = gradcut.analyze(parse(IF % branches), of=["y"], wrt=["w"])
        assert {"w", "h", "y"} <= found.active
    found = gradcut.analyze(parse(IF % ("Floor (h)", "Relu (v)")), of=["y"], wrt=["w"])
    assert not found.active


def test_a_mark_inside_one_branch() -> None:
    found = gradcut.analyze(parse(IF % ("gradcut.StopGradient (h)", "Relu (h)")), of=["y"], wrt=["w"])
    assert "q" in found.active and "p" not in found.active


def test_a_stop_on_a_captured_value_reaches_into_the_branches() -> None:
    found = gradcut.analyze(parse(IF % ("Relu (h)", "Mul (h, w)")), of=["y"], wrt=["w"], stop_at="h")
    assert found.cut == (("h", "Mul_q", 0, "stop-at"),)
    assert "p" not in found.active


def test_a_stop_on_a_name_that_both_branches_use_stops_both() -> None:
    text = IF.replace("p = %s", "t = Relu (h)  p = Neg (t)").replace("q = %s", "t = Sigmoid (h)  q = Neg (t)")
    assert not gradcut.analyze(parse(text), of=["y"], wrt=["w"], stop_at="t").active


def test_an_if_over_an_active_condition_cuts_it_for_its_type() -> None:
    condition = "m = ReduceMax <keepdims = 0> (h)  d = Cast <to = 9> (m)  y = If (d)"
    text = (IF % ("Relu (h)", "Relu (h)")).replace("y = If (c)", condition)
    assert ("d", "If_y", 0, "dtype") in cut(text, "y", "w")


LOOP = """g (int64 n, float[2] x) => (float[2] a_out, float[2] b_out) <float[2] w = {1, 2}, bool yes = {1}> {
    a_out, b_out = Loop (n, yes, x, x) <body = body (int64 i, bool go, float[2] a, float[2] b) =>
        (bool go_on, float[2] a_next, float[2] b_next) {
        go_on = Identity (go)
        a_next = %s
        b_next = Mul (b, w)
    }>
}"""


def test_a_loop_reaches_its_fixpoint_over_carried_values() -> None:
    """a takes from b, so w reaches a in the second trip."""
    found = gradcut.analyze(parse(LOOP % "Relu (b)"), of=["a_out"], wrt=["w"])
    assert found.active == {"w", "b_next", "b", "a_next", "a_out"}


def test_a_loop_may_make_no_trip() -> None:
    """With zero trips a_out is x, though the body's a_next does not depend on a."""
    found = gradcut.analyze(parse(LOOP % "Floor (a)"), of=["a_out"], wrt=["x"])
    assert found.active == {"x", "a_out"}


def test_a_mark_in_a_loop_body_stops_each_trip() -> None:
    text = LOOP % "gradcut.StopGradient (b)"
    found = gradcut.analyze(parse(text), of=["a_out"], wrt=["w"])
    assert not found.active
    assert "b_next" in gradcut.analyze(parse(text), of=["b_out"], wrt=["w"]).active


def test_a_stop_on_a_carried_value_inside_a_loop() -> None:
    found = gradcut.analyze(parse(LOOP % "Relu (b)"), of=["b_out"], wrt=["w"], stop_at="b")
    assert ("b", "Mul_b_next", 0, "stop-at") in found.cut
    assert {"w", "b_next", "b_out"} <= found.active


SCAN = """g (float[2] x, float[5,2] xs) => (float[2] last, float[5,2] ys) <float[2] w = {1, 2}> {
    last, ys = Scan <num_scan_inputs = 1, body = body (float[2] s, float[2] t) => (float[2] s_next,
    float[2] out) {
        s_next = Add (s, t)
        out = Mul (s, w)
    }> (x, xs)
}"""


def test_a_scan_carries_state_and_hands_out_each_step() -> None:
    found = gradcut.analyze(parse(SCAN), of=["ys"], wrt=["xs"])
    assert found.active == {"xs", "t", "s_next", "s", "out", "ys"}
    assert gradcut.analyze(parse(SCAN), of=["last"], wrt=["w"]).active == set()


def test_an_operator_that_is_not_known_may_do_anything_with_its_graph() -> None:
    text = """g (float[2] x) => (float[2] y) {
        y = my.Twice (x) <body = b (float[2] s) => (float[2] t) { t = Mul (s, x) }> }"""
    found = gradcut.analyze(parse(text, also=', "my" : 1'), of=["y"], wrt=["x"])
    assert found.active == {"x", "s", "t", "y"}


# --- purity --------------------------------------------------------------------------------------------------


def test_what_is_given_is_not_changed() -> None:
    for seed in range(0, 1000, 50):
        case = generate(seed)
        before, model = case.model.SerializeToString(deterministic=True), ir.from_proto(case.model)
        as_ir = ir.to_proto(model).SerializeToString(deterministic=True)
        for given in (case.model, model):
            gradcut.analyze(given, of=case.of, wrt=case.wrt, stop_at=case.stop_at)
        assert case.model.SerializeToString(deterministic=True) == before
        assert ir.to_proto(model).SerializeToString(deterministic=True) == as_ir


def test_the_answer_is_the_same_each_time() -> None:
    case = next(case for case in map(generate, range(1000)) if len(Brute(case).cut()) > 4)
    ask = lambda: gradcut.analyze(case.model, of=case.of, wrt=case.wrt, stop_at=case.stop_at)
    assert ask() == ask()
