"""Models with bodies are compiled, trained and exported; weights inside bodies are parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import gradcut
from gradcut.runtime.widen import runtime
from tests.control_flow.subjects import Array, model

#: Both branches have a weight of one name, and one of them a Constant.
BRANCHES = """(float[N, 2] x, bool c) => (float[N, 3] y) <float[2, 2] v = {1, 0.5, -0.25, 1}> {
    h = MatMul(x, v)
    y = If(c) <
        then_branch = yes () => (float[N, 3] t) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { t = MatMul(h, w) },
        else_branch = no () => (float[N, 3] e) <float[2, 3] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}> {
            b = Constant<value = float[3] {1, 2, 3}>()
            k = MatMul(h, w)
            e = Add(k, b)
        }>
}"""
LOOP = """(float[N, 3] x, int64 n) => (float[N, 3] y) <float[3, 3] w = {1, 2, 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}> {
    y = Loop(n, , x) <body = step (int64 i, bool on, float[N, 3] h) => (bool still, float[N, 3] next) {
        still = Identity(on)
        r = MatMul(h, w)
        t = Tanh(r)
        next = Add(t, x)
    }>
}"""
LABELS = np.array([0, 1, 2, 0])


def batch(width: int, **more: object) -> dict[str, Array]:
    x = np.random.default_rng(5).standard_normal((4, width)).astype(np.float32)
    return {"x": x, **{name: np.asarray(value) for name, value in more.items()}}


def trained(text: str, feeds: list[dict[str, Array]]) -> gradcut.TrainingSession:
    art = gradcut.compile(model(text), loss="cross_entropy", optimizer=gradcut.SGD(lr=0.1))
    session = gradcut.TrainingSession(art, threads=1)
    losses = [[session.step({**one, "labels": LABELS}).loss for one in feeds] for _ in range(4)]
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))
    return session


def test_weights_of_branches_train_and_go_back(tmp_path: Path) -> None:
    feeds = [batch(2, c=True), batch(2, c=False)]
    session = trained(BRANCHES, feeds)
    assert set(session.parameters()) == {"v", "w", "y/else_branch/w", "b"}
    session.export(tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    (node,) = (node for node in tuned.graph.node if node.op_type == "If")
    then, other = (next(a.g for a in node.attribute if a.name == f"{kind}_branch") for kind in ("then", "else"))
    assert [[w.name for w in graph.initializer] for graph in (then, other)] == [["w"], ["w"]]
    for one in feeds:
        expected = session.evaluate({**one, "labels": LABELS}).outputs["y"]
        np.testing.assert_allclose(runtime(tuned)(one)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_branch_not_taken_gets_zeros() -> None:
    art = gradcut.compile(model(BRANCHES), loss="cross_entropy")
    gradients = gradcut.TrainingSession(art, threads=1).gradients({**batch(2, c=True), "labels": LABELS})
    assert not gradients["y/else_branch/w"].any() and not gradients["b"].any()
    assert gradients["w"].any() and gradients["v"].any()


@pytest.mark.parametrize("turns", [0, 3])
def test_a_weight_that_a_loop_captures(turns: int) -> None:
    art = gradcut.compile(model(LOOP), loss="cross_entropy")
    gradients = gradcut.TrainingSession(art, threads=1).gradients({**batch(3, n=turns), "labels": LABELS})
    assert gradients["w"].any() == (turns > 0)


def test_a_loop_trains() -> None:
    trained(LOOP, [batch(3, n=3)])
