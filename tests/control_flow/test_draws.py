"""Bodies that draw: the backward sees what the forward drew, each turn draws anew, a step repeats its draws."""

from __future__ import annotations

import numpy as np
import pytest

import gradcut
from gradcut.runtime.check import check_gradients, require
from tests.control_flow.subjects import W, X
from tests.written import parse, session

A = np.random.default_rng(1).uniform(-1, 1, (3, 2)).astype(np.float32)
HALF = "p = Constant<value_float = 0.5>() yes = Constant<value = bool {1}>()"
#: What makes `q` of a state h.
DRAWS = {
    "normal": "q = RandomNormalLike(h)",
    "uniform": "q = RandomUniform<shape = [2]>()",
    "bernoulli": "p = Sigmoid(h) q = Bernoulli(p)",
    "dropout": f"{HALF} q, mask = Dropout(h, p, yes)",
}
BODY = "DRAW u = Mul(q, w) v = Add(u, h) next = Tanh(v)"
IN_SCAN = f"""Scan<num_scan_inputs = 1, body = row (float[2] h, float[2] r) => (float[2] last, float[2] s) {{
    {BODY} last = Add(next, r) s = Sin(last) }}>"""
GRAPHS = {
    "loop": f"""y = Loop(n, , x) <body = step (int64 i, bool on, float[2] h) => (bool still, float[2] next) {{
        still = Identity(on) {BODY} }}>""",
    "scan": f"""y0, rows = {IN_SCAN}(x, a) z = Constant<value_ints = [0]>()
        y1 = ReduceSum<keepdims = 0>(rows, z) y = Add(y0, y1)""",
    "scan_in_loop": f"""y = Loop(n, , x) <body = step (int64 i, bool on, float[2] g) => (bool still, float[2] f) {{
        still = Identity(on) f, rows = {IN_SCAN}(g, a) }}>""",
    "if": f"""h = Sin(x) two = Constant<value_int = 2>() c = Less(n, two)
        y = If(c) <then_branch = yes () => (float[2] next) {{ {BODY} }},
                   else_branch = no () => (float[2] e) {{ e = Mul(h, w) }}>""",
}


def text(graph: str, draw: str) -> str:
    body = GRAPHS[graph].replace("DRAW", DRAWS[draw])
    return f"g (float[2] x, float[2] w, float[3, 2] a, int64 n) => (float[2] y) {{ {body} }}"


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    ("graph", "n"), [("loop", 0), ("loop", 3), ("scan", 0), ("scan_in_loop", 2), ("if", 1), ("if", 2)]
)
def test_the_backward_sees_what_the_forward_drew(graph: str, n: int, draw: str) -> None:
    feeds = {"x": X, "w": W, "a": A, "n": np.array(n)}
    require(check_gradients(parse(text(graph, draw)), feeds, wrt=["x", "w", "a"], seed=4))


TURNS = """g (float[N] x) => (float[K, N] y, float loss) <float w = {1.0}, int64 n = {5}> {
    last, y = Loop(n, , x) <body = step (int64 i, bool on, float[N] h) => (bool still, float[N] next, float[N] q) {
        still = Identity(on) DRAW next = Identity(h) }>
    s = Mul(y, w)
    loss = ReduceMean<keepdims = 0>(s)
}"""
COUNT = 20_000
X1 = np.ones(COUNT, np.float32)


def drawn_by_a_step(draw: str = DRAWS["dropout"], **options: str) -> tuple[gradcut.TrainingSession, np.ndarray]:
    model = parse(TURNS.replace("DRAW", draw))
    art = gradcut.compile(model, train=["w"], optimizer=gradcut.SGD(lr=0.0), **options)  # type: ignore[arg-type]
    training = gradcut.TrainingSession(art, threads=1)
    return training, training.step({"x": X1}).outputs["y"]


def correlations(rows: np.ndarray) -> np.ndarray:
    """Of each two rows, in standard errors."""
    found = np.corrcoef(rows) * np.sqrt(rows.shape[1])
    return found[~np.eye(len(rows), dtype=bool)]


@pytest.mark.parametrize("draw", ["normal", "dropout"])
def test_turns_draw_independently_of_each_other(draw: str) -> None:
    training, first = drawn_by_a_step(DRAWS[draw])
    second = training.step({"x": X1}).outputs["y"]
    assert np.abs(correlations(np.concatenate([first, second]))).max() < 5
    np.testing.assert_array_equal(drawn_by_a_step(DRAWS[draw])[1], first)


def test_a_product_that_vjp_gives_draws_each_turn_and_each_run_anew() -> None:
    proto = gradcut.vjp(parse(TURNS.replace("DRAW", DRAWS["dropout"])), ["x"], ["y"])
    feeds = {"x": X1, "y_grad": np.ones((5, COUNT), np.float32)}
    running = session(proto)
    y, dx = running.run(None, feeds)
    np.testing.assert_allclose(dx, y.sum(0))
    assert set(np.unique(y)) == {0.0, 2.0}
    assert np.abs(correlations(np.concatenate([y, running.run(None, feeds)[0]]))).max() < 5
    assert np.abs(y.mean(1) - 1).max() < 5 / np.sqrt(COUNT)


def test_modes_of_a_dropout_in_a_loop() -> None:
    training, y = drawn_by_a_step()
    assert set(np.unique(y)) == {0.0, 2.0}
    assert set(np.unique(training.evaluate({"x": X1}).outputs["y"])) == {1.0}
    assert set(np.unique(drawn_by_a_step(dropout="eval")[1])) == {1.0}
    off = DRAWS["dropout"].replace(", yes)", ")")
    assert set(np.unique(drawn_by_a_step(off)[1])) == {1.0}
    assert set(np.unique(drawn_by_a_step(off, dropout="train")[1])) == {0.0, 2.0}
