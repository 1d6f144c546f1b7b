"""Inputs that have no row per example: scalars, tables that are the same for every batch, batches on another axis."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import gradcut
from gradcut import checkpoint
from gradcut.errors import DataError, FeedError, NotFiniteError
from gradcut.runtime import averaging
from gradcut.runtime.inputs import batch_of
from gradcut.runtime.plan import Plan
from gradcut.runtime.train import Trainer
from tests.exported import text
from tests.runtime.test_sources import write
from tests.runtime.test_train import Quiet, numbers, train, written
from tests.test_cli import good

GRAPH = """g (%s) => (float[N,3] y) <float[6,3] w = {%s}%s> {
 shifted = Sub (x, mean) scaled = Mul (shifted, scale) y = MatMul (scaled, w) }"""
MEAN, SCALE = np.arange(6, dtype=np.float32), np.array(0.25, np.float32)


def graph(inputs: str, constants: str = "") -> onnx.ModelProto:
    return text(GRAPH % (inputs, numbers(18, 0), constants))


def compiled(model: Any, folder: Path, loss: Any = "cross_entropy") -> Path:
    gradcut.compile(model, loss=loss, train=["w"], optimizer=gradcut.SGD(lr=0.1)).save(folder)
    return folder


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(61, 6)).astype(np.float32)
    return {"x": x, "labels": x[:, :3].argmax(1)}


def ports(*given: tuple[str, str, list[Any] | None]) -> list[dict[str, Any]]:
    return [{"name": name, "role": role, "shape": shape} for name, role, shape in given]


@pytest.mark.parametrize(
    ("given", "whole", "fixed"),
    [
        (ports(("x", "user", ["N", 6]), ("y", "label", ["N"])), (), None),
        (ports(("s", "user", []), ("x", "user", ["N", 6]), ("y", "label", ["N"])), ("s",), None),
        (ports(("m", "user", [6]), ("x", "user", ["N", 6]), ("y", "label", [None])), ("m",), None),
        (ports(("x", "user", [8, 6]), ("y", "label", [8])), (), 8),
        (ports(("m", "user", [6]), ("x", "user", [8, 6]), ("y", "label", [8])), ("m",), 8),
        (ports(("x", "user", [8, 6]), ("y", "label", [None, 3])), (), 8),
        (ports(("x", "user", [8, 6]), ("y", "label", None)), (), 8),
        (ports(("x", "user", None), ("y", "label", ["N"])), (), None),
        (ports(("a", "user", ["N", 6]), ("b", "user", ["M", 6]), ("y", "label", ["N"])), (), None),
        (ports(("s", "user", [])), ("s",), None),
    ],
)
def test_which_inputs_have_rows(given: list[dict[str, Any]], whole: tuple[str, ...], fixed: int | None) -> None:
    assert batch_of(given) == (whole, fixed)


@pytest.mark.parametrize("kind", ["npz", "pairs", "folder", "safetensors"])
def test_an_input_without_rows_is_fed_as_it_is(kind: str, tmp_path: Path, arrays: dict[str, Any]) -> None:
    """As if it were in the file of the model; a last short batch and a resumed run included."""
    inner = graph("float[N,6] x", f", float[6] mean = {{{','.join(map(str, MEAN))}}}, float scale = {{{SCALE}}}")
    other = compiled(graph("float scale, float[6] mean, float[N,6] x"), tmp_path / "other")
    whole = compiled(inner, tmp_path / "whole")
    np.savez(tmp_path / "plain.npz", **arrays)
    train(whole, tmp_path / "plain.npz", epochs=2)
    (tmp_path / "data").mkdir()
    given = write(kind, tmp_path / "data", {**arrays, "mean": MEAN.astype(np.float64), "scale": SCALE})
    train(other, given, epochs=1)
    train(other, given, epochs=2, resume=True)
    kept = {"epoch", "step", "loss", "eval_loss", "accuracy"}
    found, wanted = ([{k: v for k, v in one.items() if k in kept} for one in written(f)[1]] for f in (other, whole))
    assert len(found) == 2
    for one, other_one in zip(found, wanted, strict=True):
        assert one == pytest.approx(other_one, rel=1e-5)  # the same products, in another order
    trainer = Trainer(other, Plan(given, resume=True))
    assert f"{trainer.data._source.name}: scale, mean is fed as it is to every batch" in trainer.data.notes


def test_what_does_not_fit_such_an_input(tmp_path: Path, arrays: dict[str, Any]) -> None:
    folder, file = compiled(graph("float scale, float[6] mean, float[N,6] x"), tmp_path / "d"), tmp_path / "f.npz"
    np.savez(file, **arrays, mean=MEAN, scale=np.ones(61, np.float32))
    with pytest.raises(FeedError, match=r"f.npz: feed 'scale' has shape \[61\]; the graph takes \[\]"):
        train(folder, file)
    np.savez(file, **arrays, mean=MEAN[:5], scale=SCALE)
    with pytest.raises(FeedError, match=r"f.npz: feed 'mean' has shape \[5\]; the graph takes \[6\]"):
        train(folder, file)
    np.savez(file, x=arrays["x"], labels=np.int64(1), mean=MEAN, scale=SCALE)
    with pytest.raises(DataError, match=r"f.npz: 'labels' is a scalar; every array needs one row per example"):
        train(folder, file)


STREAM = """
import numpy as np
def batches():
    rng = np.random.default_rng(0)
    for rows in (8, 8, 5):
        x = rng.normal(size=(rows, 6))
        yield {"scale": 0.25, "mean": np.zeros(6), "x": x, "labels": x[:, :3].argmax(1)}
"""


def test_rows_of_a_batch_whose_first_input_is_a_scalar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scalar_first.py").write_text(STREAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = compiled(graph("float scale, float[6] mean, float[N,6] x"), tmp_path / "d")
    outcome = Trainer(folder, Plan("scalar_first:batches")).run(Quiet())
    sys.modules.pop("scalar_first")
    assert (outcome.steps, outcome.rows) == (3, 21)


def test_a_batch_counts_by_its_labels_where_a_loss_does_not_say(arrays: dict[str, Any]) -> None:
    feeds = {"scale": SCALE, "mean": MEAN, **arrays}
    assert averaging.weight({"inputs": ["labels"], "over": None}, feeds) == 61
    assert averaging.weight({"inputs": [], "over": None}, {"scale": SCALE, "x": arrays["x"]}) == 61
    assert averaging.weight({"inputs": [], "over": None}, {}) == 0


def test_a_batch_on_another_axis_is_refused(tmp_path: Path) -> None:
    graph = "g (float[5,N,6] x) => (float[N,3] y) <float[6,3] w = {%s}, int64[1] t = {0}>"
    body = "{ m = ReduceMean <keepdims = 0> (x, t) y = MatMul (m, w) }"
    folder = compiled(text(graph % numbers(18, 0) + body), tmp_path / "d")
    np.savez(tmp_path / "f.npz", x=np.zeros((5, 61, 6), np.float32), labels=np.zeros(61, int))
    with pytest.raises(
        DataError, match=r"the batch of 'x' is its axis 1 \(N\), and files hold a row per example; write"
    ):
        train(folder, tmp_path / "f.npz")


def test_a_graph_without_a_batch_is_refused(tmp_path: Path) -> None:
    square = text("g (float a) => (float y) <float[1] w = {1}, int64[0] s = {}> { b = Mul (a, w) y = Reshape (b, s) }")
    folder = compiled(square, tmp_path / "d", "mse")
    np.savez(tmp_path / "f.npz", a=np.float32(1), labels=np.float32(1))
    with pytest.raises(DataError, match="no input of the graph has a batch as its first dimension; write a function"):
        train(folder, tmp_path / "f.npz")


# --- rows that nobody looks at -------------------------------------------------------------------------------

FIXED = "g (float[8,6] x) => (float[8,3] y) <float[6,3] w = {%s}> { y = MatMul (x, w) }"
NORM = """g (float[N,6] x) => (float[N,3] y)
<float[6,3] w = {%s}, float[3] scale = {1,1,1}, float[3] b = {0,0,0}, float[3] m = {0,0,0}, float[3] v = {1,1,1}>
{ h = MatMul (x, w)  y = BatchNormalization (h, scale, b, m, v) }"""


def rows(folder: Path, count: int) -> Path:
    x = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    np.savez(folder / f"{count}.npz", x=x, labels=x[:, :3].argmax(1))
    return folder / f"{count}.npz"


def test_a_fixed_batch_and_what_does_not_fill_it(tmp_path: Path) -> None:
    folder = compiled(text(FIXED % numbers(18, 0)), tmp_path / "d")
    trainer = Trainer(folder, Plan(rows(tmp_path, 61)))
    assert trainer.data.notes == [
        "the model's batch is fixed at 8: an epoch leaves out 1 row, others each time",
        "the model's batch is fixed at 8: 4 of 12 held-out rows left out",
    ]
    assert len(list(trainer.data.held_out())) == 1 and trainer.data.steps_per_epoch == 6


def test_patience_does_not_wait_for_evaluations_that_cannot_be(tmp_path: Path) -> None:
    """Two held-out rows never fill a fixed batch of eight."""
    folder, few = compiled(text(FIXED % numbers(18, 0)), tmp_path / "d"), rows(tmp_path, 10)
    with pytest.raises(DataError, match="--patience needs held-out rows; give --eval-data, or an --eval-split above 0"):
        train(folder, few, batch_size=None, patience=1)
    trainer = Trainer(folder, Plan(few, epochs=3))
    assert "the model's batch is fixed at 8: 2 of 2 held-out rows left out" in trainer.data.notes
    assert not trainer.data.holds_out and trainer.run(Quiet()).step == 3


def test_a_last_batch_of_one_row_moves_no_batch_statistics(tmp_path: Path) -> None:
    """Its variance is 0, and torch refuses it; the others' alone is what the running variance is of."""
    model = text(NORM % numbers(18, 0))
    gradcut.compile(model, loss="cross_entropy", optimizer=gradcut.SGD(lr=0.0)).save(tmp_path / "d")
    trainer = Trainer(tmp_path / "d", Plan(rows(tmp_path, 9), eval_split=0.0, batch_size=8))
    first = next(trainer.data.training(0, 0))[0]["x"]
    assert trainer.run(Quiet()).step == 2
    w = gradcut.TrainingSession(tmp_path / "d").parameters()["w"]
    found = checkpoint.load(tmp_path / "d" / "checkpoint.safetensors")[0]["v"]
    np.testing.assert_allclose(found, 0.9 + 0.1 * (first @ w).var(axis=0, ddof=1), rtol=1e-5)


def test_a_share_that_is_no_row_and_one_that_is_all(tmp_path: Path) -> None:
    folder = compiled(
        graph("float[N,6] x", f", float[6] mean = {{{','.join('0' * 6)}}}, float scale = {{1}}"), tmp_path / "d"
    )
    trainer = Trainer(folder, Plan(rows(tmp_path, 2)))
    assert trainer.data.notes == ["0.2 of 2 rows is no row: nothing is held out, so nothing is evaluated"]
    with pytest.raises(
        DataError, match=r"--eval-split 0.9 holds out all of .*2.npz \(2 rows\) and leaves none to train on"
    ):
        Trainer(folder, Plan(rows(tmp_path, 2), eval_split=0.9))


def test_nan_in_the_data_is_said(tmp_path: Path) -> None:
    folder = compiled(text(FIXED.replace("8", "N") % numbers(18, 0)), tmp_path / "d")
    x = np.zeros((8, 6), np.float32)
    x[3, 4] = np.nan
    np.savez(tmp_path / "f.npz", x=x, labels=np.zeros(8, int))
    with pytest.raises(
        NotFiniteError, match=r"the loss is nan at step 1 .*The feed 'x' holds nan, first at \[\d, 4\] of"
    ):
        train(folder, tmp_path / "f.npz", eval_split=0.0)


def test_fewer_epochs_than_are_done_and_metrics_that_are_no_text(tmp_path: Path) -> None:
    folder, file = compiled(text(FIXED.replace("8", "N") % numbers(18, 0)), tmp_path / "d"), rows(tmp_path, 61)
    train(folder, file, epochs=3)
    with pytest.raises(DataError, match="--epochs 2 is of the whole run, and 3 epochs of it are done"):
        train(folder, file, epochs=2, resume=True)
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    train(folder, file, epochs=4, resume=True)
    assert [one["epoch"] for one in written(folder)[1]] == [4]


def test_compiling_says_what_the_data_must_have(tmp_path: Path) -> None:
    head = "g (float[N,6] x, float s) => (float[N,3] y, float[N,6] z)"
    onnx.save(
        text(f"{head} <float[6,3] w = {{{numbers(18, 0)}}}> {{ z = Mul (x, s)  y = MatMul (z, w) }}"),
        tmp_path / "m.onnx",
    )
    losses = ["--loss", "cross_entropy:output=y", "--loss", "mse:output=z"]
    said = good("compile", tmp_path / "m.onnx", *losses, "-o", tmp_path / "d")
    assert said.line("data") == "x float32[N, 6], s float32[], labels int64[N], labels_2 float32[N, 6]"
