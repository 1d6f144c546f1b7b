"""The operators on sequences, in models whose inputs and outputs are tensors; first and second order, zero turns too.

Sequences of known elements are none after import, so these come from Loops and Ifs, or are read at run-time places.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.passes import Import
from gradcut.rules import REGISTRY
from gradcut.runtime.check import check_gradients, require
from tests.written import gradients, parse, session

X = np.random.default_rng(3).uniform(-1, 1, (3, 2)).astype(np.float32)
W = np.array([0.4, -0.7], np.float32)
#: A list that a Loop collects; its rows have the shape of w.
COLLECT = """list = Loop(n, , empty) <body = step (int64 i, bool on, seq(float[2]) s) => (bool still, seq(float[2]) t) {
        still = Identity(on)
        row = Gather(x, i)
        u = Mul(row, w)
        v = Tanh(u)
        t = SequenceInsert(s, v)
    }>"""
CASES = {
    "SequenceAt": "v = SequenceAt(list, at) y = Exp(v)",
    "SequenceInsert": """k = SequenceInsert(list, w, at) a = SequenceAt(k, at) b = SequenceAt(k, last)
        c = Mul(a, b) d = SequenceAt(k, zero) y = Add(c, d)""",
    "SequenceErase": """k = SequenceErase(list, at) l = SequenceInsert(k, w) m = SequenceErase(l)
        a = SequenceAt(m, last) c = SequenceAt(list, zero) y = Mul(a, c)""",
    "SequenceConstruct": """first = Less(at, one)
        k = If(first) <then_branch = yes () => (seq(float[2]) p) { h = Sin(w) p = SequenceConstruct(h, w) },
                       else_branch = no () => (seq(float[2]) q) { q = SequenceConstruct(w, w, w) }>
        a = SequenceAt(k, at) b = SequenceAt(list, zero) y = Mul(a, b)""",
    "ConcatFromSequence": "k = ConcatFromSequence<axis = 0>(list) y = Mul(k, k)",
    "ConcatFromSequence-stacked": "k = ConcatFromSequence<axis = -1, new_axis = 1>(list) y = Mul(k, k)",
    "SplitToSequence": """sizes = Constant<value_ints = [2, 1]>() k = SplitToSequence(x, sizes)
        a = SequenceAt(k, at) b = SequenceAt(list, zero) y = Mul(a, b)""",
    "SplitToSequence-rows": """k = SplitToSequence<keepdims = 0>(x) l = SequenceInsert(k, w)
        a = SequenceAt(l, at) b = SequenceAt(list, zero) y = Mul(a, b)""",
    "read_in_a_loop": """y = Loop(n, , w) <body = sum (int64 i, bool on, float[2] h) => (bool still, float[2] next) {
        still = Identity(on) a = SequenceAt(list, i) b = Mul(h, a) next = Sin(b) }>""",
    "carried": """k, y = Loop(n, , list, w) <body = sum (int64 i, bool on, seq(float[2]) s, float[2] h) =>
            (bool still, seq(float[2]) t, float[2] next) {
        still = Identity(on) a = SequenceAt(s, last) b = SequenceAt(s, at) c = Mul(a, b) d = Mul(c, h) next = Cos(d)
        t = SequenceInsert(s, next, zero) }>""",
}


def written(case: str) -> onnx.ModelProto:
    shape = "Any, Some" if "stacked" in case or (case.startswith("Split") and "rows" not in case) else "Any"
    return parse(
        f"""g (float[N, 2] x, float[2] w, int64 n, int64 at) => (float[{shape}] y)
        <int64 zero = {{0}}, int64 one = {{1}}, int64 last = {{-1}}> {{
            empty = SequenceEmpty() {COLLECT} {CASES[case]} }}"""
    )


def feeds(at: int) -> dict[str, np.ndarray]:
    return {"x": X, "w": W, "n": np.array(3), "at": np.array(at)}


def test_every_rule_of_sequences_is_here() -> None:
    rules = {rule.op_type for rule in REGISTRY if rule.vjp is not None and "Sequence" in rule.op_type}
    assert rules - {"ReverseSequence"} == {name.partition("-")[0] for name in CASES if "Sequence" in name}


@pytest.mark.parametrize("at", [0, 1, -1])
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str, at: int) -> None:
    require(check_gradients(written(case), feeds(at), seed=2))


@pytest.mark.parametrize("case", CASES)
def test_second_order(case: str) -> None:
    (y,) = session(written(case)).run(None, feeds(1))
    twice = gradcut.vjp(written(case), ["x", "w"], ["y"])
    require(check_gradients(twice, {**feeds(1), "y_grad": np.full_like(y, 0.7)}, directions=1, seed=2))


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_turns_of_another_type_are_kept_in_it(kind: str, dtype: type) -> None:
    text = f"""g ({kind}[1, 2] x, int64 n) => ({kind}[R, 2] y) {{
        y = Loop(n, , x) <body = step (int64 i, bool on, {kind}[P, 2] h) => (bool still, {kind}[Q, 2] next) {{
            still = Identity(on) t = Sin(h) next = Concat<axis = 0>(h, t) }}> }}"""
    require(check_gradients(parse(text), {"x": W[None].astype(dtype), "n": np.array(2)}, seed=2))


# --- what import makes of them -----------------------------------------------------------------------------------

ROWS = """g (float[N, 2] x, float[2] w) => (float[Any] y) <int64 one = {{1}}> {{
    rows = SplitToSequence<keepdims = {keep}>({operands})
    n = SequenceLength(rows)
    y = Loop(n, , w) <body = step (int64 i, bool on, float[2] h) => (bool still, float[2] next) {{
        still = Identity(on)
        row = SequenceAt(rows, i) s = ReduceSum<keepdims = 0>(row) t = Mul(h, s) next = Sin(t) }}> }}"""


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("operands", ["x", "x, one"])
@pytest.mark.parametrize("keep", [0, 1])
def test_a_loop_over_rows_reads_the_tensor(keep: int, operands: str, rows: int) -> None:
    """ONNX Runtime heeds keepdims=0 beside a size too, which torch's exporter counts on."""
    proto = parse(ROWS.format(keep=keep, operands=operands))
    model = ir.from_proto(proto)
    Import()(model)
    assert not [node for node in model.graph.all_nodes() if "Sequence" in node.op_type]
    require(check_gradients(proto, {"x": X[:rows], "w": W}, seed=2))
    (y,) = session(gradcut.vjp(proto, ["x"], ["y"])).run(["y"], {"x": X[:rows], "w": W, "y_grad": W})
    expected = W
    for row in X[:rows]:
        expected = np.sin(expected * row.sum())
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.parametrize("at", [0, 1, -1])
def test_parts_of_one_size_at_any_place(at: int) -> None:
    text = """g (float[2, N] x, int64 at) => (float[2, M] y) <int64 two = {2}> {
        parts = SplitToSequence<axis = 1>(x, two) part = SequenceAt(parts, at) y = Exp(part) }"""
    require(check_gradients(parse(text), {"x": X.T, "at": np.array(at)}, seed=2))


def test_a_map_over_a_sequence_of_any_length() -> None:
    text = """g (float[N, 2] x, float[2] w) => (float[N, 2] y) {
        rows = SplitToSequence(x)
        a, b = SequenceMap(rows, w, rows) <body = f (float[1, 2] r, float[2] v, float[1, 2] q) =>
            (float[1, 2] c, float[1, 2] d) { p = Mul(r, v) c = Tanh(p) d = Mul(p, q) }>
        k = ConcatFromSequence<axis = 0>(a) l = ConcatFromSequence<axis = 0>(b) y = Add(k, l) }"""
    require(check_gradients(parse(text), {"x": X, "w": W}, seed=2))


@pytest.mark.parametrize("given", ["Optional(x)", "Identity(x)", "Optional(s) d = OptionalGetElement(o)"])
def test_optionals_that_hold_something(given: str) -> None:
    text = f"""g (float[2] x, float[2] w) => (float[2] y) <int64 one = {{1}}> {{
        s = SequenceConstruct(w, x)
        o = {given}
        e = {"SequenceAt(d, one)" if "d =" in given else "OptionalGetElement(o)"}
        some = OptionalHasElement(o)
        none = Optional<type = float[2]>()
        never = OptionalHasElement(none)
        no = Not(never) both = And(some, no)
        y = If(both) <then_branch = a () => (float[2] p) {{ p = Mul(e, w) }},
                      else_branch = b () => (float[2] q) {{ q = OptionalGetElement(none) }}> }}"""
    dx, dw = gradients(parse(text), {"x": X[0], "w": W}, ["x", "w"], ["y"])
    np.testing.assert_array_equal(dx, W)
    np.testing.assert_array_equal(dw, X[0])
