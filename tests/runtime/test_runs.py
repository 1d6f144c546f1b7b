"""Whole runs: every kind of data, schedules, evaluations between, early stopping, the best checkpoint, TensorBoard.

Whatever a run is asked to do, one that was killed at any step and resumed ends as if nothing had happened.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

import gradcut
from gradcut import checkpoint
from gradcut.errors import ArtifactsError, CheckpointError, DataError, FeedError, MissingExtraError, SpecError
from gradcut.runtime import averaging
from gradcut.runtime.export import trained
from gradcut.runtime.plan import Plan
from gradcut.runtime.records import Record
from gradcut.runtime.session import StepResult, TrainingSession
from gradcut.runtime.train import Trainer
from tests.exported import text
from tests.runtime.test_sources import KINDS, write
from tests.runtime.test_train import KilledAt, Quiet, artifacts, numbers, train, written

BEST = "best.safetensors"


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """61 rows of six features, three classes."""
    x = np.random.default_rng(0).normal(size=(61, 6)).astype(np.float32)
    return {"x": x, "labels": x[:, :3].argmax(1)}


@pytest.fixture
def data(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    return Path(write("npz", tmp_path, arrays)[0])


def record_of(path: Path) -> dict[str, Any]:
    return checkpoint.load(path)[1]


def state(folder: Path, name: str = "checkpoint.safetensors") -> dict[str, np.ndarray]:
    return checkpoint.load(folder / name)[0]


def ended(folder: Path) -> list[Any]:
    """Checkpoint, best checkpoint and metrics of a run, but for the time it took."""
    found: list[Any] = [written(folder)[1]]
    for name in ("checkpoint.safetensors", BEST):
        tensors, record = checkpoint.load(folder / name)
        record["extra"]["position"]["seconds"] = 0.0
        found += [{name: array.tobytes() for name, array in tensors.items()}, record]
    return found


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in {*a, *b})


def trainer(folder: Path, data: Any, **options: Any) -> Trainer:
    return Trainer(folder, Plan(data, **{"batch_size": 8, **options}))


# --- data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_kind_of_data_trains_alike(kind: str, tmp_path: Path, data: Path, arrays: dict[str, Any]) -> None:
    """Bit for bit, and what one began the other goes on with, for the data are the same."""
    whole, other = artifacts(tmp_path / "whole"), artifacts(tmp_path / "other")
    train(whole, data, epochs=2)
    given = write(kind, tmp_path, arrays)
    if kind == "parquet":  # lists of Python floats are written as float64
        arrays = {**arrays, "x": arrays["x"].astype(np.float64)}
        data = Path(write("npz", tmp_path, arrays)[0])
    train(other, given, epochs=1)
    train(other, data, epochs=2, resume=True)
    assert same(state(other), state(whole)) and written(other)[1] == written(whole)[1]


@pytest.mark.parametrize("held", KINDS)
def test_held_out_data_of_another_kind(held: str, tmp_path: Path, data: Path, arrays: dict[str, Any]) -> None:
    """The first twenty rows; what is trained on is an npz file, or .npy files where that is what is held out."""
    rows, other = slice(20), tmp_path / "other"
    other.mkdir()
    given = write(held, other, {name: array[rows] for name, array in arrays.items()})
    folder, watcher = artifacts(tmp_path / "d"), Quiet()
    train(folder, data if held != "npz" else write("pairs", tmp_path, arrays), watcher, eval_data=given)
    whole = TrainingSession(folder).evaluate({name: array[rows] for name, array in arrays.items()})
    assert watcher.epochs[0].eval_loss == pytest.approx(whole.loss, rel=1e-5)
    assert watcher.epochs[0].accuracy == np.mean(whole.outputs["y"].argmax(1) == arrays["labels"][rows])
    with pytest.raises(DataError, match=r"started with --eval-data .*, not --eval-split 0.1; leave --eval-split away"):
        trainer(folder, data, eval_split=0.1, resume=True)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_no_head_has_are_said_before_a_step_with_the_files_name(
    kind: str, tmp_path: Path, arrays: dict[str, Any]
) -> None:
    folder = artifacts(tmp_path / "d")
    before = (folder / "checkpoint.safetensors").read_bytes()
    for labels in (arrays["labels"].astype(np.float32), np.where(np.arange(61) == 60, 3, arrays["labels"])):
        given = write(kind, tmp_path, {**arrays, "labels": labels})
        with pytest.raises(FeedError, match=r"labels") as caught:
            trainer(folder, given)
        for one in given:
            assert one.partition("=")[2] in str(caught.value) if kind == "pairs" else one in str(caught.value)
        (tmp_path / "good").mkdir(exist_ok=True)
        good = write("npz", tmp_path / "good", arrays)
        with pytest.raises(FeedError, match=r"labels"):
            trainer(folder, good, eval_data=given)
    assert (folder / "checkpoint.safetensors").read_bytes() == before and not (folder / "metrics.jsonl").exists()


# --- functions that yield batches ----------------------------------------------------------------------------

BATCHES = """
import numpy as np
CALLS = []

def rows(epoch, seed, count=7, size=8):
    CALLS.append(epoch)
    rng = np.random.default_rng((seed, epoch))
    for _ in range(count):
        x = rng.normal(size=(size, 6))
        yield {"x": x, "labels": x[:, :3].argmax(1).astype(np.int32)}

def held():
    yield from rows(99, 0, 3, 5)

def endless(epoch, seed):
    return rows(epoch, seed, 10**9)

def late(epoch, seed):
    yield from rows(epoch, seed, 3)
    raise ValueError("late")

def bad():
    for feeds in rows(0, 0):
        yield {**feeds, "labels": feeds["labels"] + 1}
"""


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "run_batches.py").write_text(BATCHES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda: sys.modules["run_batches"]
    sys.modules.pop("run_batches", None)


STREAM: dict[str, Any] = {"batch_size": None, "seed": 3, "eval_data": "run_batches:held"}


@pytest.mark.parametrize("source", ["run_batches:endless", "run_batches:late"])
def test_no_thread_is_left_behind(source: str, tmp_path: Path, batches: Any) -> None:
    """Of a run that dies, one that is interrupted, and one whose data fail in the middle."""
    before = set(threading.enumerate())
    if source.endswith("late"):
        with pytest.raises(DataError, match=r"run_batches:late failed with ValueError: late \(.*run_batches\.py:\d+\)"):
            train(artifacts(tmp_path / "late"), source, **STREAM)
    else:
        with pytest.raises(SystemExit):
            train(artifacts(tmp_path / "died"), source, KilledAt(3), **STREAM)
        assert train(artifacts(tmp_path / "left"), source, InterruptedAt(3), **STREAM).interrupted
    assert set(threading.enumerate()) <= before


def test_a_function_is_called_once_an_epoch_and_its_length_is_its_own(tmp_path: Path, batches: Any) -> None:
    folder, watcher = artifacts(tmp_path / "d"), Quiet()
    outcome = train(folder, "run_batches:rows", watcher, epochs=3, **STREAM)
    assert batches().CALLS.count(0) == batches().CALLS.count(1) == batches().CALLS.count(2) == 1
    assert watcher.starts == [(epoch, 3, None, 0) for epoch in (1, 2, 3)] and outcome.step == 21
    held = list(batches().held())
    whole = {name: np.concatenate([one[name] for one in held]) for name in ("x", "labels")}
    result = TrainingSession(folder).evaluate(
        {"x": whole["x"].astype(np.float32), "labels": whole["labels"].astype(np.int64)}
    )
    assert watcher.epochs[-1].eval_loss == pytest.approx(result.loss, rel=1e-5)


@pytest.mark.parametrize("step", [1, 7, 10, 14, 20])
def test_a_killed_run_over_a_function_goes_on_behind_the_batches_done(step: int, tmp_path: Path, batches: Any) -> None:
    whole, folder = artifacts(tmp_path / "whole"), artifacts(tmp_path / "d")
    train(whole, "run_batches:rows", epochs=3, **STREAM)
    with pytest.raises(SystemExit):
        train(folder, "run_batches:rows", KilledAt(step), epochs=3, checkpoint_every=2, **STREAM)
    train(folder, "run_batches:rows", epochs=3, resume=True, **STREAM)
    assert written(folder) == written(whole)


def test_an_endless_function_and_a_limit(tmp_path: Path, batches: Any) -> None:
    folder, watcher = artifacts(tmp_path / "d"), Quiet()
    with pytest.raises(SpecError, match="run_batches:endless yields nobody knows how many batches; say --steps-per-"):
        trainer(folder, "run_batches:endless", schedule="cosine", **STREAM)
    train(folder, "run_batches:endless", watcher, epochs=2, steps_per_epoch=4, schedule="cosine", **STREAM)
    assert watcher.starts == [(1, 2, 4, 0), (2, 2, 4, 0)] and len(watcher.losses) == 8
    assert watcher.epochs[-1].lr == pytest.approx(0.01 * (1 + np.cos(np.pi * 7 / 8)) / 2)
    with pytest.raises(DataError, match="the run was started with --steps-per-epoch 4, not 5; leave"):
        trainer(folder, "run_batches:endless", resume=True, steps_per_epoch=5, **STREAM)


def test_what_does_not_go_with_a_function(tmp_path: Path, batches: Any, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    with pytest.raises(
        DataError, match=r"--eval-split takes a share of the rows, and run_batches:rows yields batches; g"
    ):
        Plan("run_batches:rows", eval_split=0.2)
    with pytest.raises(DataError, match="--batch-size does not apply to run_batches:rows, which makes its own batches"):
        Plan("run_batches:rows", batch_size=8)
    assert Plan("run_batches:rows", batch_size=8, eval_data=data).batch_size == 8
    for option in ({"patience": 1}, {"eval_every": 1}, {"metrics": ["f1"]}):
        with pytest.raises(DataError, match=r"needs held-out rows; give --eval-data, or an --eval-split above 0"):
            trainer(folder, "run_batches:rows", batch_size=None, **option)
    assert trainer(folder, "run_batches:rows", batch_size=None).data.notes == [
        "run_batches:rows makes the batches: no --batch-size, no shuffling"
    ]
    with pytest.raises(FeedError, match=r"run_batches:bad, batch 1: .*label 3"):
        trainer(folder, data, eval_data="run_batches:bad")
    before = (folder / "checkpoint.safetensors").read_bytes()
    with pytest.raises(FeedError, match=r"run_batches:bad, batch 1: .*label 3"):
        train(folder, "run_batches:bad", batch_size=None)
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    train(folder, data)
    with pytest.raises(DataError, match="run_batches:rows does not hold the data that the run was started with"):
        trainer(folder, "run_batches:rows", batch_size=None, resume=True)


# --- a run with everything, killed ---------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "epochs": 3,
    "eval_every": 4,
    "metrics": ["f1", "loss"],
    "patience": 3,
    "min_delta": 0.01,
    "schedule": "cosine:warmup=3",
    "lr": 0.3,
}


@pytest.mark.parametrize("step", [3, 4, 6, 7, 8, 12, 13])
@pytest.mark.parametrize("every", [1, 4, 5])
def test_a_killed_run_with_everything_ends_as_the_whole(step: int, every: int, tmp_path: Path, data: Path) -> None:
    whole, folder = artifacts(tmp_path / "whole"), artifacts(tmp_path / "d")
    outcome = train(whole, data, **EVERYTHING)
    assert outcome.stopped and 13 < outcome.step < 21
    with pytest.raises(SystemExit):
        train(folder, data, KilledAt(step), checkpoint_every=every, **EVERYTHING)
    train(folder, data, resume=True, **(EVERYTHING if step <= every else {}))  # nothing was recorded before `every`
    assert ended(folder) == ended(whole)


class InterruptedAt(Quiet):
    """Ctrl-C at a step, as the handler has it."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def step(self, result: StepResult, rows: int) -> None:
        super().step(result, rows)
        if result.step == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", [3, 4, 6, 7, 8])
def test_an_interrupted_run_with_everything_ends_as_the_whole(step: int, tmp_path: Path, data: Path) -> None:
    whole, folder = artifacts(tmp_path / "whole"), artifacts(tmp_path / "d")
    train(whole, data, **EVERYTHING)
    outcome = train(folder, data, InterruptedAt(step), **EVERYTHING)
    assert outcome.interrupted and outcome.step == step == record_of(folder / "checkpoint.safetensors")["step"]
    train(folder, data, resume=True)
    assert ended(folder) == ended(whole)


def test_a_kill_between_the_checkpoint_and_its_copy_is_made_good(tmp_path: Path, data: Path, monkeypatch: Any) -> None:
    whole, folder = artifacts(tmp_path / "whole"), artifacts(tmp_path / "d")
    train(whole, data, epochs=2, eval_every=3)

    def die(self: Trainer) -> None:
        raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trainer, "_keep_best", die)
        train(folder, data, epochs=2, eval_every=3)
    assert not (folder / BEST).exists()
    first = record_of(folder / "checkpoint.safetensors")
    assert first["extra"]["position"]["best_step"] == first["step"] == 3
    resumed = trainer(folder, data, resume=True)
    resumed._tidy()
    assert record_of(folder / BEST) == first
    resumed.run(Quiet())
    assert ended(folder) == ended(whole)


# --- evaluation, the best checkpoint, patience ---------------------------------------------------------------


def test_metrics_are_those_of_the_held_out_rows_at_that_step(tmp_path: Path, data: Path, arrays: Any) -> None:
    """One line an evaluation, none twice; the first metric decides what is best."""
    folder, watcher = artifacts(tmp_path / "d"), Quiet()
    train(folder, data, watcher, epochs=2, eval_every=3, metrics=["f1", "top2", "loss"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(one["epoch"], one["step"]) for one in lines] == [(1, 3), (1, 6), (1, 7), (2, 9), (2, 12), (2, 14)]
    assert [one["step"] for one in lines] == [record.step for record in watcher.epochs]
    for one in lines:
        steps = slice(0, one["step"]) if one["epoch"] == 1 else slice(7, one["step"])
        sizes = [8] * 6 + [1]
        weights = (sizes + sizes)[steps]
        assert one["loss"] == pytest.approx(np.average(watcher.losses[steps], weights=weights), rel=1e-9)
        assert one["lr"] == 0.01 and one["accuracy"] is None and one["metrics"]["loss"] == one["eval_loss"]
    values = [one["metrics"]["f1"] for one in lines]
    best = record_of(folder / BEST)
    assert best["step"] == lines[int(np.argmax(values))]["step"]
    _, held = gradcut.runtime.data.split_indices(61, 0.2, 0)
    session = TrainingSession(folder)
    session.load_checkpoint(folder / BEST)
    chosen = session.evaluate({name: array[held] for name, array in arrays.items()}).outputs["y"].argmax(1)
    score = reference.f1_score(arrays["labels"][held], chosen, average="macro", zero_division=0)
    assert max(values) == pytest.approx(score, rel=1e-12)


@pytest.mark.parametrize(
    ("metric", "loss"), [("r2", "mse"), ("mae", "mse"), (None, "mse"), ("recall", "cross_entropy")]
)
def test_what_is_best(metric: str | None, loss: str, tmp_path: Path, data: Path, arrays: Any) -> None:
    if loss == "mse":
        data = Path(write("npz", tmp_path, {**arrays, "labels": np.eye(3)[arrays["labels"]]})[0])
    folder, watcher = artifacts(tmp_path / "d", loss=loss), Quiet()
    train(folder, data, watcher, epochs=4, lr=0.5, metrics=metric and [metric])
    values = [one.metrics[metric] if metric else one.eval_loss for one in watcher.epochs]
    at = int(np.argmax(values) if metric in ("r2", "recall") else np.argmin(values))
    assert record_of(folder / BEST)["step"] == watcher.epochs[at].step


def test_patience(tmp_path: Path, data: Path) -> None:
    """With a rate of 0 nothing improves on the first evaluation; a larger patience goes on, and ends there too."""
    folder = artifacts(tmp_path / "d")
    outcome = train(folder, data, epochs=9, lr=0.0, patience=2)
    assert outcome.stopped and outcome.step == 3 * 7
    assert record_of(folder / BEST)["step"] == 7
    assert train(folder, data, resume=True).step == 21
    assert train(folder, data, resume=True, patience=4).step == 5 * 7
    never = artifacts(tmp_path / "never")
    assert not train(never, data, epochs=4, lr=0.0).stopped
    middle = artifacts(tmp_path / "middle")
    outcome = train(middle, data, epochs=9, lr=0.0, patience=2, eval_every=3)
    assert outcome.step == 7 and record_of(middle / "checkpoint.safetensors")["step"] == 7


def test_a_small_improvement_is_the_best_but_spends_patience(tmp_path: Path, data: Path) -> None:
    folder, watcher = artifacts(tmp_path / "d"), Quiet()
    outcome = train(folder, data, watcher, epochs=20, lr=1e-4, metrics=["loss"], patience=3, min_delta=0.5)
    losses = [one.eval_loss for one in watcher.epochs]
    assert outcome.stopped and len(losses) == 4 and losses == sorted(losses, reverse=True)
    assert record_of(folder / BEST)["step"] == outcome.step


def test_a_best_checkpoint_is_exported(tmp_path: Path, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    art = gradcut.TrainingArtifacts.load(folder)
    with pytest.raises(ArtifactsError, match=r"best\.safetensors: no such checkpoint; gradcut train writes it where"):
        trained(art, best=True)
    train(folder, data, epochs=4, lr=0.0)
    art = gradcut.TrainingArtifacts.load(folder)
    tensors, step = trained(art, best=True)
    assert step == 7 and trained(art)[1] == 28 and same(trained(art)[0], state(folder))
    assert same(tensors, state(folder, BEST))
    other = artifacts(tmp_path / "other", train=["w1"])
    train(other, data)
    (folder / BEST).write_bytes((other / BEST).read_bytes())
    with pytest.raises(CheckpointError, match=r"best\.safetensors is of another model, or of another choice of what t"):
        trained(art, best=True)
    gradcut.compile(text(LINEAR % numbers(18, 1)), loss="cross_entropy").save(folder, force=True)
    assert not (folder / BEST).exists()


LINEAR = "g (float[N,6] x) => (float[N,3] y) <float[6,3] w = {%s}> { y = MatMul (x, w) }"


def test_metrics_that_do_not_fit(tmp_path: Path, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    with pytest.raises(
        SpecError, match="--metric r2 does not fit the loss cross_entropy; what does: accuracy, precision"
    ):
        trainer(folder, data, metrics=["f1", "r2"])
    with pytest.raises(DataError, match="--metric needs held-out rows"):
        trainer(folder, data, metrics=["f1"], eval_split=0.0)
    inner = LINEAR.replace("y)", "p)").replace(" }", "  p = Softmax<axis=1> (y) }")
    gradcut.compile(text(inner % numbers(18, 1)), loss="cross_entropy:output=y").save(tmp_path / "inner")
    with pytest.raises(SpecError, match="--metric f1 judges 'y', which the loss reads and which is no output of the m"):
        trainer(tmp_path / "inner", data, metrics=["f1"])
    watcher = Quiet()
    train(tmp_path / "inner", data, watcher, metrics=["loss"])
    assert watcher.epochs[0].metrics == {"loss": watcher.epochs[0].eval_loss} and watcher.epochs[0].eval_loss
    train(folder, data)
    with pytest.raises(DataError, match="the run was started without --metric; leave --metric away to resume it"):
        trainer(folder, data, metrics=["f1"], resume=True)
    folder = artifacts(tmp_path / "f1")
    train(folder, data, metrics=["f1"])
    with pytest.raises(DataError, match="the run was started with --metric f1, not accuracy; leave --metric away"):
        trainer(folder, data, metrics=["accuracy"], resume=True)


# --- the learning rate ---------------------------------------------------------------------------------------


class Rates(Quiet):
    """The rates that a session is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.rates: list[float | None] = []
        step = TrainingSession.step

        def noted(session: TrainingSession, feeds: Any, lr: float | None = None) -> StepResult:
            self.rates.append(lr)
            return step(session, feeds, lr)

        monkeypatch.setattr(TrainingSession, "step", noted)


def test_a_schedule_over_the_run_is_torchs(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(monkeypatch)
    train(artifacts(tmp_path / "d"), data, rates, epochs=3, lr=0.2, schedule="cosine")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=21)
    expected = []
    for _ in range(21):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(np.array(rates.rates, float), expected, rtol=1e-12, atol=1e-15)


def test_a_schedule_is_remembered_and_stretches_over_more_epochs(tmp_path: Path, data: Path, monkeypatch: Any) -> None:
    folder, rates = artifacts(tmp_path / "d"), Rates(monkeypatch)
    train(folder, data, rates, epochs=1, lr=0.2, schedule="linear")
    train(folder, data, rates, epochs=2, resume=True)
    half = [0.2 * (1 - step / 7) for step in range(7)]
    np.testing.assert_allclose(np.array(rates.rates, float), half + [0.2 * (1 - step / 14) for step in range(7, 14)])


@pytest.mark.parametrize("schedule", ["cosine:warmup=15", "linear:steps=15", "step:every=15"])
def test_a_schedule_longer_than_the_run(schedule: str, tmp_path: Path, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    with pytest.raises(SpecError, match=f"the schedule is longer than the run: {schedule} .* and the run has 14"):
        trainer(folder, data, epochs=2, schedule=schedule)
    trainer(folder, data, epochs=3, schedule=schedule)
    with pytest.raises(SpecError, match="and the run has 8"):  # seven batches are four updates
        trainer(folder, data, epochs=2, schedule="constant:warmup=9", accumulate=2)
    with pytest.raises(SpecError, match=r"'cosin' is no schedule. Nearest: cosine\."):
        Plan(data, schedule="cosin")


# --- accumulation --------------------------------------------------------------------------------------------


def test_batches_are_handed_over_together(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven batches of 8, 8, ..., 1 rows: updates of three, three and one; a resumed run goes on with the next."""
    handed: list[list[int]] = []
    step = TrainingSession.step

    def noted(session: TrainingSession, feeds: Any, lr: float | None = None) -> StepResult:
        parts: Sequence[Any] = [feeds] if isinstance(feeds, Mapping) else feeds
        handed.append([len(part["x"]) for part in parts])
        return step(session, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, lr)

    monkeypatch.setattr(TrainingSession, "step", noted)
    whole, folder, watcher = artifacts(tmp_path / "whole"), artifacts(tmp_path / "d"), Quiet()
    train(whole, data, watcher, epochs=2, accumulate=3)
    assert handed == [[8, 8, 8], [8, 8, 8], [1]] * 2 and watcher.starts == [(1, 2, 3, 0), (2, 2, 3, 0)]
    assert watcher.epochs[0].loss == pytest.approx(np.average(watcher.losses[:3], weights=[24, 24, 1]), rel=1e-12)
    with pytest.raises(SystemExit):
        train(folder, data, KilledAt(5), epochs=2, accumulate=3, checkpoint_every=1)
    later = Quiet()
    train(folder, data, later, resume=True)
    assert later.starts == [(2, 2, 3, 1)] and written(folder) == written(whole)
    with pytest.raises(DataError, match="the run was started with --accumulate 3, not 2; leave --accumulate away"):
        trainer(folder, data, accumulate=2, resume=True)


# --- TensorBoard ---------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What the event files hold, by tensorboardX's own protobufs; records are length, crc, bytes, crc."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_shows_what_the_run_did(tmp_path: Path, data: Path) -> None:
    folder, watcher = artifacts(tmp_path / "d"), Quiet()
    train(folder, data, watcher, epochs=2, log_dir=tmp_path / "logs", schedule="linear", metrics=["f1"], eval_every=5)
    found = scalars(tmp_path / "logs")
    assert set(found) == {"loss", "lr", "samples_per_second", "eval/loss", "eval/f1"}
    np.testing.assert_allclose([found["loss"][step] for step in range(1, 15)], watcher.losses, rtol=1e-6)
    np.testing.assert_allclose([found["lr"][s] for s in range(1, 15)], [0.01 * (1 - s / 14) for s in range(14)], 1e-6)
    assert all(value > 0 for value in found["samples_per_second"].values())
    assert list(found["eval/f1"]) == [5, 7, 10, 14]
    np.testing.assert_allclose([*found["eval/f1"].values()], [one.metrics["f1"] for one in watcher.epochs], 1e-6)


def test_a_resumed_run_has_an_event_file_of_its_own(tmp_path: Path, data: Path) -> None:
    """Within the same second, too; the steps that a kill took back are shown once, as they were made again."""
    folder, logs, first, rest = artifacts(tmp_path / "d"), tmp_path / "logs", KilledAt(12), Quiet()
    with pytest.raises(SystemExit):
        train(folder, data, first, epochs=2, log_dir=logs)
    train(folder, data, rest, epochs=2, log_dir=logs, resume=True)
    assert len([*logs.iterdir()]) == 2
    found = scalars(logs)["loss"]
    np.testing.assert_allclose([found[s] for s in range(1, 15)], first.losses[:7] + rest.losses, rtol=1e-6)


def test_tensorboard_is_an_extra(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifacts(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        MissingExtraError, match=r"--log-dir \(TensorBoard\) needs .* pip install 'gradcut\[tensorboard\]"
    ):
        trainer(folder, data, log_dir=tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


# --- plans ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "--patience is 0; it is at least 1"),
        ({"eval_every": 0}, "--eval-every is 0; it is at least 1"),
        ({"accumulate": 0}, "--accumulate is 0; it is at least 1"),
        ({"steps_per_epoch": 0}, "--steps-per-epoch is 0; it is at least 1"),
        ({"min_delta": -0.1}, "--min-delta is -0.1; it is a finite number of at least 0"),
        ({"min_delta": float("nan")}, "--min-delta is nan"),
        ({"metrics": ["acc"]}, "--metric: 'acc' is no metric. Nearest: accuracy"),
        ({"schedule": "cosine:warm=1"}, "'warm' is no option of the schedule cosine"),
    ],
)
def test_plans_that_no_run_can_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, SpecError), match=message):
        Plan("f.npz", **options)


def test_a_batch_of_ignored_labels_counts_for_nothing_in_an_evaluation(tmp_path: Path, data: Path, arrays: Any) -> None:
    """Its mean over no labels is NaN."""
    held = {**arrays, "labels": np.where(np.arange(61) < 16, -100, arrays["labels"])}
    np.savez(tmp_path / "held.npz", **held)
    folder, watcher = artifacts(tmp_path / "d"), Quiet()
    train(folder, data, watcher, eval_data=tmp_path / "held.npz")
    rest = {name: array[16:] for name, array in held.items()}
    record: Record = watcher.epochs[0]
    assert record.eval_loss == pytest.approx(TrainingSession(folder).evaluate(rest).loss, rel=1e-5)
    assert averaging.weight({"kind": "cross_entropy", "labels": "labels", "ignore_index": -100}, rest) == 45


def test_accumulated_batches_are_the_large_batch(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Four batches of four rows an update, and one of sixteen, over the same rows in the same order."""
    small, large = artifacts(tmp_path / "small", dropout="eval"), artifacts(tmp_path / "large", dropout="eval")
    x = write("npz", tmp_path, arrays)[0]
    watchers = Quiet(), Quiet()
    Trainer(small, Plan(x, batch_size=4, accumulate=4, epochs=2)).run(watchers[0])
    Trainer(large, Plan(x, batch_size=16, epochs=2)).run(watchers[1])
    np.testing.assert_allclose(watchers[0].losses, watchers[1].losses, rtol=1e-5)
    assert [one.step for one in watchers[0].epochs] == [4, 8] == [one.step for one in watchers[1].epochs]
    assert watchers[0].epochs[-1].loss == pytest.approx(watchers[1].epochs[-1].loss, rel=1e-5)
    for name, array in state(large).items():
        np.testing.assert_allclose(state(small)[name], array, rtol=1e-4, atol=1e-5)
