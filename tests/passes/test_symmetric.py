"""A loss whose target is a value of the model behind a mark, and the symmetric loss of two views: all against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradcut
from gradcut import losses
from gradcut.dialect import is_mark
from gradcut.errors import FeedError, LossError, SpecError
from tests.exported import text

Torch = Callable[[Tensor, Tensor], Tensor]
SEED = 5
DRAW = np.random.default_rng(SEED)
A = DRAW.normal(size=(2, 3)).astype(np.float32)
C = DRAW.normal(size=(3, 3)).astype(np.float32)
FEEDS = {name: DRAW.normal(size=(5, 2)).astype(np.float32) for name in ("x", "y")}


def numbers(array: np.ndarray[Any, Any]) -> str:
    return ", ".join(map(str, array.reshape(-1).tolist()))


MODEL = text(f"""
g (float[n, 2] x, float[n, 2] y) => (float[n, 3] p1, float[n, 3] p2, float[n, 3] z1, float[n, 3] z2)
<float[2, 3] a = {{{numbers(A)}}}, float[3, 3] c = {{{numbers(C)}}}>
{{ z1 = MatMul (x, a) z2 = MatMul (y, a) p1 = MatMul (z1, c) p2 = MatMul (z2, c) }}""")
SQUARES = text("""
g (float[n, 3] guess, float[n, 3] truth) => (float value)
{ d = Sub (guess, truth) s = Mul (d, d) value = ReduceMean <keepdims = 0> (s) }""")


def ours(loss: Any) -> tuple[float, dict[str, np.ndarray[Any, Any]]]:
    session = gradcut.TrainingSession(gradcut.compile(MODEL, loss), threads=1)
    return session.evaluate(FEEDS).loss, session.gradients(FEEDS)


def torchs(D: Torch, factor: float, stop: bool) -> tuple[float, dict[str, np.ndarray[Any, Any]]]:
    a, c = (torch.from_numpy(one.copy()).requires_grad_() for one in (A, C))
    z1, z2 = (torch.from_numpy(FEEDS[name]) @ a for name in ("x", "y"))
    t1, t2 = (z1.detach(), z2.detach()) if stop else (z1, z2)
    value = factor * D(z1 @ c, t2) + factor * D(z2 @ c, t1)
    value.backward()
    assert a.grad is not None and c.grad is not None
    return value.item(), {"a": a.grad.numpy(), "c": c.grad.numpy()}


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p, z).mean()


def agree(loss: Any, expected: tuple[float, dict[str, np.ndarray[Any, Any]]]) -> None:
    value, gradients = ours(loss)
    np.testing.assert_allclose(value, expected[0], rtol=2e-6, err_msg=f"seed {SEED}")
    for name, gradient in expected[1].items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=2e-5, atol=1e-6, err_msg=f"{name}, seed {SEED}")


INSIDE: list[tuple[Any, Torch]] = [
    (None, negative_cosine),
    ("neg_cosine", negative_cosine),
    (losses.NegCosine(reduction="sum"), lambda p, z: -F.cosine_similarity(p, z).sum()),
    ("mse", F.mse_loss),
    (losses.Huber(delta=0.5), lambda p, z: F.huber_loss(p, z, delta=0.5)),
    ("l1:reduction=sum", lambda p, z: F.l1_loss(p, z, reduction="sum")),
]


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize(("loss", "D"), INSIDE)
def test_symmetric_takes_any_loss(loss: Any, D: Torch, stop: bool) -> None:
    objective = losses.symmetric("p1", "p2", "z1", "z2", loss=loss, stop_gradient=stop)
    agree(objective, torchs(D, 0.5, stop))


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_the_factor_is_adjustable(factor: float) -> None:
    agree(losses.symmetric("p1", "p2", "z1", "z2", factor=factor), torchs(negative_cosine, factor, True))


def test_its_text_says_the_same() -> None:
    said = "0.5*neg_cosine:output=p1,target=z2 + 0.5*neg_cosine:output=p2,target=z1"
    agree(said, torchs(negative_cosine, 0.5, True))
    art = gradcut.compile(MODEL, losses.symmetric("p1", "p2", "z1", "z2"))
    assert art.manifest["loss"]["spec"] == said
    assert [term["target"] for term in art.manifest["loss"]["terms"]] == ["z2", "z1"]


@pytest.mark.parametrize("stop", [True, False])
def test_a_loss_graph_inside(tmp_path: Path, stop: bool) -> None:
    onnx.save(SQUARES, tmp_path / "squares.onnx")
    wired = f"{tmp_path / 'squares.onnx'}:guess=p,truth=z"
    agree(losses.symmetric("p1", "p2", "z1", "z2", loss=wired, stop_gradient=stop), torchs(F.mse_loss, 0.5, stop))


def test_two_marks_cut() -> None:
    art = gradcut.compile(MODEL, losses.symmetric("p1", "p2", "z1", "z2"))
    assert sorted(edge["reason"] for edge in art.manifest["cut"]) == ["data", "data", "mark", "mark"]
    assert not any(map(is_mark, art.training_model.graph))


def test_micro_batches_are_weighed_by_their_rows() -> None:
    """Two of 2 and 3 rows give the gradient of the batch of 5."""
    loss = losses.symmetric("p1", "p2", "z1", "z2")
    whole, parts = (gradcut.TrainingSession(gradcut.compile(MODEL, loss, optimizer="sgd:lr=0.1")) for _ in range(2))
    whole.step(FEEDS)
    parts.step([{name: array[rows] for name, array in FEEDS.items()} for rows in (slice(0, 2), slice(2, 5))])
    for name, value in whole.parameters().items():
        np.testing.assert_allclose(parts.parameters()[name], value, rtol=1e-5, atol=1e-6)


LABELLED = text(f"""
g (float[n, 2] x, int64[n] kind) => (float[n, 3] scores)
<float[2, 3] a = {{{numbers(A)}}}> {{ scores = MatMul (x, a) }}""")


def test_class_numbers_may_be_the_target_and_micro_batches_then_are_refused() -> None:
    session = gradcut.TrainingSession(gradcut.compile(LABELLED, "cross_entropy:target=kind"), threads=1)
    kind = np.array([0, 2, -100, 1, 1])
    feeds = {"x": FEEDS["x"], "kind": kind}
    expected = F.cross_entropy(torch.from_numpy(FEEDS["x"] @ A), torch.from_numpy(kind)).item()
    np.testing.assert_allclose(session.evaluate(feeds).loss, expected, rtol=1e-5)
    with pytest.raises(FeedError, match="which labels count is known only within a run"):
        session.step([feeds, feeds])


REFUSED = {
    "neg_cosine:output=p1,target=z3": "neg_cosine: target: the model has no value 'z3'. Nearest: z2, z1.",
    "neg_cosine:output=p1,target=x": "neg_cosine reads labels of FLOAT[n,3], and the target 'x' is FLOAT[n,2]; "
    "name one like its output",
    "cross_entropy:output=p1,target=z2": "cross_entropy reads labels of INT64[n], and the target 'z2' is FLOAT[n,3]; "
    "name one like its output",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_targets_that_do_not_fit(spec: str) -> None:
    with pytest.raises(LossError) as caught:
        gradcut.compile(MODEL, spec)
    assert str(caught.value) == REFUSED[spec]


def test_what_symmetric_refuses(tmp_path: Path) -> None:
    four = ("p1", "p2", "z1", "z2")
    with pytest.raises(LossError, match="symmetric says itself what mse reads"):
        losses.symmetric(*four, loss="mse:output=p1")
    with pytest.raises(LossError, match="symmetric takes a loss such as"):
        losses.symmetric(*four, loss=3)  # type: ignore[arg-type]
    with pytest.raises(LossError, match=r"say which input of its\.onnx is which"):
        losses.symmetric(*four, loss="its.onnx")
    with pytest.raises(LossError, match="there is no loss 'negcosine'"):
        losses.symmetric(*four, loss="negcosine")
    with pytest.raises(SpecError, match="labels=a is a new input and target=b a value of the model"):
        losses.MSE(labels="a", target="b")
