"""Several losses with factors: values, gradients and terms against torch, the texts, shared labels, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

import gradcut
from gradcut import losses
from gradcut.errors import FeedError, LossError, SpecError
from gradcut.losses import as_text, parse_terms
from gradcut.passes import Pipeline
from gradcut.runtime import averaging
from tests.exported import text
from tests.test_cli import good, refused

Feeds = dict[str, np.ndarray[Any, Any]]
CALM = np.random.default_rng(3)
X = CALM.normal(size=(5, 2)).astype(np.float32)
CLASSES = CALM.integers(0, 3, 5)
TARGET = CALM.normal(size=(5, 4)).astype(np.float32)
FEEDS: Feeds = {"x": X, "labels": CLASSES, "labels_2": TARGET}

MODEL = text("""
g (float[n, 2] x) => (float[n, 3] logits, float[n, 4] value)
<float[2, 3] a = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, float[2, 4] c = {1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0}>
{
    logits = MatMul (x, a)
    value = MatMul (x, c)
}""")
TEXT = "cross_entropy:output=logits + 0.5*mse:output=value"


def session_of(loss: Any, model: Any = MODEL) -> gradcut.TrainingSession:
    return gradcut.TrainingSession(gradcut.compile(model, loss), threads=1)


def torchs() -> tuple[float, float, dict[str, np.ndarray[Any, Any]]]:
    """The two terms, and the gradients of a and c."""
    a = torch.arange(1.0, 7.0).reshape(2, 3).requires_grad_()
    c = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8]).reshape(2, 4).requires_grad_()
    first = F.cross_entropy(torch.from_numpy(X) @ a, torch.from_numpy(CLASSES))
    second = F.mse_loss(torch.from_numpy(X) @ c, torch.from_numpy(TARGET))
    (first + 0.5 * second).backward()
    assert a.grad is not None and c.grad is not None
    return first.item(), second.item(), {"a": a.grad.numpy(), "c": c.grad.numpy()}


FORMS = [
    TEXT,
    "  1.0*cross_entropy:output=logits  +  5e-1 * mse:output=value ",
    ["cross_entropy:output=logits", (0.5, "mse:output=value")],
    [losses.CrossEntropy(output="logits"), (0.5, losses.MSE(output="value"))],
    ("cross_entropy:output=logits", (np.float32(0.5), losses.MSE(output="value"))),
]


@pytest.mark.parametrize("loss", FORMS)
def test_the_sum_is_torchs(loss: Any) -> None:
    first, second, gradients = torchs()
    session = session_of(loss)
    result = session.evaluate(FEEDS)
    assert result.loss == pytest.approx(first + 0.5 * second, rel=1e-5)
    assert float(result.outputs["loss_1"]) == pytest.approx(first, rel=1e-5)
    assert float(result.outputs["loss_2"]) == pytest.approx(second, rel=1e-5)
    for name, gradient in session.gradients(FEEDS).items():
        np.testing.assert_allclose(gradient, gradients[name], rtol=1e-5, atol=1e-6)
    assert session.step(FEEDS).loss == pytest.approx(result.loss, rel=1e-6)


def test_the_manifest_says_every_term() -> None:
    loss = gradcut.compile(MODEL, TEXT).manifest["loss"]
    assert {key: loss[key] for key in ("kind", "loss", "inputs", "spec")} == {
        "kind": "sum",
        "loss": "loss",
        "inputs": ["labels", "labels_2"],
        "spec": TEXT,
    }
    first, second = loss["terms"]
    assert (first["kind"], first["factor"], first["value"], first["output"], first["labels"]) == (
        *("cross_entropy", 1.0, "loss_1", "logits", "labels"),
    )
    assert (second["kind"], second["factor"], second["value"], second["output"], second["labels"]) == (
        *("mse", 0.5, "loss_2", "value", "labels_2"),
    )


@pytest.mark.parametrize("loss", [*FORMS, losses.CrossEntropy(output="logits", weight=[1, 2, 3]), "2*mse:output=value"])
def test_the_pipelines_text_comes_back(loss: Any) -> None:
    artifacts = gradcut.compile(MODEL, loss)
    written = artifacts.manifest["pipeline"]
    assert str(Pipeline.parse(written)) == written
    spec = artifacts.manifest["loss"]["spec"]
    again = gradcut.compile(MODEL, spec)
    assert again.manifest["pipeline"].split("loss{")[1].startswith(f"spec={spec!r}") or "'" not in spec
    assert again.manifest["loss"] == artifacts.manifest["loss"]


def test_a_factor_on_a_single_loss() -> None:
    result = session_of("2*mse:output=value").evaluate({"x": X, "labels": TARGET})
    assert result.loss == pytest.approx(2 * torchs()[1], rel=1e-5)
    result = session_of((2, "mse:output=value")).evaluate({"x": X, "labels": TARGET})
    assert result.loss == pytest.approx(2 * torchs()[1], rel=1e-5)


def test_a_negative_factor_pushes_away() -> None:
    there = session_of("mse:output=value").gradients({"x": X, "labels": TARGET})["c"]
    away = session_of("-1*mse:output=value").gradients({"x": X, "labels": TARGET})["c"]
    np.testing.assert_allclose(away, -there, rtol=1e-6)


# --- labels --------------------------------------------------------------------------------------------------


def test_losses_that_say_the_same_labels_share_them() -> None:
    session = session_of("mse:output=value,labels=target + l1:output=value,labels=target")
    assert session.manifest["loss"]["inputs"] == ["target"]
    result = session.evaluate({"x": X, "target": TARGET})
    difference = X @ np.array([[1, -2, 3, -4], [5, -6, 7, -8]]) - TARGET
    assert result.loss == pytest.approx(np.mean(difference**2) + np.mean(np.abs(difference)), rel=1e-5)


def test_labels_may_be_an_input_of_the_model() -> None:
    """An autoencoder's target is what it was fed."""
    model = text("g (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> { y = Mul (x, w) }")
    session = session_of("mse:labels=x", model)
    assert session.manifest["loss"]["inputs"] == []
    assert session.evaluate({"x": TARGET}).loss == pytest.approx(np.mean((TARGET * [0, 1, 2, 3]) ** 2), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("cross_entropy:output=logits,labels=t + mse:output=value,labels=t",
         "mse reads labels of FLOAT[n,4], and the input 't' is INT64[n]; give it labels of its own: labels=NAME"),
        ("mse:output=logits,labels=t + mse:output=value,labels=t",
         "mse reads labels of FLOAT[n,4], and the input 't' is FLOAT[n,3]; give it labels of its own: labels=NAME"),
        ("mse:output=logits,labels=a",
         "mse: labels=a is a value of the model; name a new input, or one it has"),
        ("cross_entropy:output=logits + mse",
         "mse: which output is the loss's is unclear; the float outputs are logits, value. "
         "Say --loss mse:output=NAME."),
        ("cross_entropy:output=logits + ",
         "a term of 'cross_entropy:output=logits + ' is empty; write NAME:output=... + 0.5*NAME:output=..."),
        ("inf*mse:output=value", "the factor of 'mse:output=value' is inf; it is a finite number"),
        ([], "the list of losses is empty; give at least one, or loss=None"),
        (["mse:output=value", 3],
         "a term of the loss is text, gradcut.losses.NAME(...), or (factor, one of these); a loss graph is given by "
         "its path. This is none: 3"),
        ([("half", "mse:output=value")],
         "a term of the loss is text, gradcut.losses.NAME(...), or (factor, one of these); a loss graph is given by "
         "its path. This is none: ('half', 'mse:output=value')"),
    ],
)  # fmt: skip
def test_what_is_refused(loss: Any, message: str) -> None:
    with pytest.raises((LossError, SpecError)) as error:
        gradcut.compile(MODEL, loss)
    assert str(error.value) == message


def test_labels_of_every_term_are_checked() -> None:
    session = session_of("cross_entropy:output=logits,labels=a_class + nll:output=logits,labels=b_class")
    fitting = {"x": X, "a_class": CLASSES, "b_class": CLASSES}
    session.evaluate(fitting)
    for name in ("a_class", "b_class"):
        with pytest.raises(FeedError, match=f"feed '{name}' holds label 3 at row 4; the model has 3 classes, 0 to 2"):
            session.step({**fitting, name: np.array([0, 1, 2, 0, 3])})
        with pytest.raises(FeedError, match=rf"feed '{name}' is float64; the graph takes int64: use \.astype"):
            session.step({**fitting, name: CLASSES.astype(np.float64)})
    assert session.steps == 0


# --- loss graphs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [13, 21, 23])
def test_a_loss_graph_is_a_term(opset: int, tmp_path: Path) -> None:
    graph = text(
        """l (float[n, 4] value, float[n, 4] target) => (float[1] out) <int64[1] one = {1}>
        {
            d = Sub (value, target)
            size = Abs (d)
            mean = ReduceMean <keepdims = 0> (size)
            out = Reshape (mean, one)
        }""",
        opset,
    )
    onnx.save(graph, tmp_path / "l.onnx")
    session = session_of(["cross_entropy:output=logits", (0.25, tmp_path / "l.onnx")])
    feeds = {"x": X, "labels": CLASSES, "target": TARGET}
    result = session.evaluate(feeds)
    size = np.mean(np.abs(X @ np.array([[1, -2, 3, -4], [5, -6, 7, -8]]) - TARGET))
    assert result.loss == pytest.approx(torchs()[0] + 0.25 * size, rel=1e-5)
    assert float(result.outputs["loss_2"]) == pytest.approx(size, rel=1e-5)
    assert session.manifest["loss"]["inputs"] == ["labels", "target"]


def test_a_model_in_memory_is_no_term() -> None:
    with pytest.raises(LossError, match="a loss graph is given by its path"):
        gradcut.compile(MODEL, ["mse:output=value", MODEL])


# --- averaging -----------------------------------------------------------------------------------------------

AVERAGED = [
    ("cross_entropy", (6, 4), 5.0),
    ("cross_entropy:weight=[1 2 0.5 0]", (6, 4), 1 + 2 + 0.5 + 0 + 2),
    ("cross_entropy:reduction=sum", (6, 4), None),
    ("nll:weight=[1 2 0.5 0]", (6, 4), 5.5),
    ("mse", (6, 4), 24.0),
    ("l1:reduction=sum", (6, 4), None),
    ("bce_with_logits:weight=[1 2 0.5 0]", (6, 4), 24.0),
    ("kl_div", (6, 4), 24.0),
    ("kl_div:reduction=batchmean", (6, 4), 6.0),
    ("cosine", (6, 4), 6.0),
    ("cosine:axis=0", (6, 4), 4.0),
]


@pytest.mark.parametrize(("spec", "shape", "expected"), AVERAGED)
def test_parts_of_a_batch_add_up(spec: str, shape: tuple[int, int], expected: float | None) -> None:
    """The mean of the parts' losses by `averaging`'s weights, or their plain sum, is the whole batch's loss."""
    model = text("g (float[n, 4] x) => (float[n, 4] y) <float[1] w = {1.0}> { y = Mul (x, w) }")
    session = gradcut.TrainingSession(gradcut.compile(model, spec, train=["w"]), threads=1)
    wiring, x = session.manifest["loss"], CALM.normal(size=shape).astype(np.float32)
    y = np.array([0, 1, 2, 3, 1, -100]) if "classes" in wiring else np.abs(CALM.normal(size=shape)).astype(np.float32)
    whole = {"x": x, "labels": y}
    assert averaging.weights(wiring, whole) == [expected]
    assert averaging.weight(wiring, whole) == (1.0 if expected is None else expected)
    if spec == "cosine:axis=0":
        return  # vectors across the batch: its parts are other vectors
    parts = [{name: array[rows] for name, array in whole.items()} for rows in (slice(0, 2), slice(2, 5), slice(5, 6))]
    parts = [part for part in parts if averaging.weight(wiring, part)]
    values = [session.evaluate(part).loss for part in parts]
    counts = [averaging.weight(wiring, part) for part in parts]
    total = float(np.dot(values, counts)) / (1.0 if expected is None else sum(counts))
    assert total == pytest.approx(session.evaluate(whole).loss, rel=1e-5)


def test_each_term_has_its_own_count() -> None:
    wiring = session_of(f"{TEXT} + l1:output=value,reduction=sum,labels=labels_2").manifest["loss"]
    feeds = {**FEEDS, "labels": np.array([0, -100, 1, 2, -100])}
    assert averaging.weights(wiring, feeds) == [3.0, 20.0, None]
    assert averaging.weight(wiring, feeds) == 3.0
    assert averaging.weights({"kind": "output", "loss": "y", "inputs": []}, feeds) == [5.0]


# --- text, command line --------------------------------------------------------------------------------------


def test_terms_and_their_text() -> None:
    terms = parse_terms("mse + .5*l1:output=a  +  -2e-1 * cross_entropy:weight=[1 2]")
    assert [(term.factor, term.text) for term in terms] == [
        (1.0, "mse"),
        (0.5, "l1:output=a"),
        (-0.2, "cross_entropy:weight=[1 2]"),
    ]
    assert as_text([(3, "mse + 2*l1")]) == "3.0*mse + 6.0*l1"
    assert as_text(None) == "" and as_text(MODEL) is None


def test_the_command_takes_several(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    for name, losses_said in (("one", [TEXT]), ("two", TEXT.split(" + "))):
        arguments = [part for loss in losses_said for part in ("--loss", loss)]
        good("compile", tmp_path / "m.onnx", "-o", tmp_path / name, *arguments)
    one, two = (gradcut.TrainingArtifacts.load(tmp_path / name) for name in ("one", "two"))
    assert one.manifest["loss"] == two.manifest["loss"] and one.manifest["loss"]["spec"] == TEXT
    np.savez(tmp_path / "d.npz", **FEEDS)
    assert "accuracy" in good("train", tmp_path / "one", "--data", tmp_path / "d.npz", "--batch-size", "2").out
    good("visualize", tmp_path / "one", "-o", tmp_path / "g.svg")
    assert "cross_entropy + mse" in (tmp_path / "g.svg").read_text()
    good("explain", tmp_path / "one", "a")


@pytest.mark.parametrize("name", ["labels", "labels_2"])
def test_train_says_which_labels_are_wrong(name: str, tmp_path: Path) -> None:
    gradcut.compile(MODEL, "cross_entropy:output=logits + nll:output=logits").save(tmp_path / "m")
    fitting = {"x": X, "labels": CLASSES, "labels_2": CLASSES}
    row = int(np.argmax(CLASSES))
    beyond = CLASSES.copy()
    beyond[row] = 3
    wrong = [
        (CLASSES.astype(np.float32), f"feed '{name}' is float32; the graph takes int64: use .astype('int64')"),
        (beyond, f"feed '{name}' holds label 3 at row {row}; the model has 3 classes, 0 to 2"),
    ]
    for array, message in wrong:
        np.savez(tmp_path / "d.npz", **{**fitting, name: array})
        assert refused("train", tmp_path / "m", "--data", tmp_path / "d.npz") == f"{tmp_path}/d.npz: {message}"
