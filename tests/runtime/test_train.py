"""Training from a file: what is evaluated and written, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import gradcut
from gradcut import checkpoint
from gradcut.cli.progress import line
from gradcut.errors import ArtifactsError, CheckpointError, DataError, FeedError, LossError, NotFiniteError, SpecError
from gradcut.runtime.outcome import Outcome
from gradcut.runtime.plan import Plan
from gradcut.runtime.records import Record
from gradcut.runtime.session import StepResult
from gradcut.runtime.train import Trainer
from models.zoo import MODELS
from tests.exported import text

DROPOUT = """g (float[N,6] x) => (float[N,3] y)
<float[6,16] w1 = {%s}, float[16] b1 = {%s}, float[16,3] w2 = {%s}, float r = {0.3}, bool t = {1}>
{ a = MatMul (x, w1)  c = Add (a, b1)  h = Relu (c)  d = Dropout (h, r, t)  y = MatMul (d, w2) }"""


class Quiet:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.epochs: list[Record] = []
        self.starts: list[tuple[int, int, int | None, int]] = []

    def start(self, epoch: int, epochs: int, steps: int | None, done: int) -> None:
        self.starts.append((epoch, epochs, steps, done))

    def step(self, result: StepResult, rows: int) -> None:
        self.losses.append(result.loss)

    def record(self, record: Record) -> None:
        self.epochs.append(record)


class KilledAt(Quiet):
    """Dies at a step, as a kill does: nothing behind it runs."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def step(self, result: StepResult, rows: int) -> None:
        super().step(result, rows)
        if result.step == self.at:
            raise SystemExit


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """103 rows of six features, three classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(103, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=(x[:, :3].argmax(1)).astype(np.int64))
    return tmp_path / "data.npz"


def artifacts(folder: Path, loss: str | None = "cross_entropy", **options: Any) -> Path:
    model = text(DROPOUT % (numbers(96, 1), numbers(16, 2), numbers(48, 3)))
    gradcut.compile(model, loss=loss, optimizer=gradcut.AdamW(lr=1e-2), seed=5, **options).save(folder)
    return folder


def numbers(count: int, seed: int) -> str:
    return ",".join(f"{value:.6f}" for value in np.random.default_rng(seed).normal(size=count) * 0.3)


def train(folder: Path, data: Path, watcher: Quiet | None = None, **options: Any) -> Outcome:
    return Trainer(folder, Plan(data, **{"batch_size": 8, **options})).run(watcher or Quiet())


def written(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The checkpoint, and the metrics but for the time they took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "checkpoint.safetensors").read_bytes(), [{**one, "seconds": 0} for one in lines]


# --- what is counted and written -----------------------------------------------------------------------------


def test_an_epoch_is_evaluated_by_rows_and_written_down(tmp_path: Path, data: Path) -> None:
    folder, watcher = artifacts(tmp_path / "d"), Quiet()
    outcome = train(folder, data, watcher, epochs=2, eval_split=0.2)
    assert watcher.starts == [(1, 2, 11, 0), (2, 2, 11, 0)]  # 82 rows to train on, the last batch has two
    assert len(watcher.losses) == outcome.step == 22 and not outcome.interrupted
    last = watcher.epochs[-1]
    assert outcome.last == last and json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) == asdict(last)
    weights = [8] * 10 + [2]
    assert last.loss == pytest.approx(np.average(watcher.losses[11:], weights=weights), rel=1e-12)

    arrays = np.load(data)
    _, held = gradcut.runtime.data.split_indices(103, 0.2, 0)
    session = gradcut.TrainingSession(folder)
    whole = session.evaluate({"x": arrays["x"][held], "labels": arrays["labels"][held]})
    assert last.eval_loss == pytest.approx(whole.loss, rel=1e-5)
    assert last.accuracy == np.mean(whole.outputs["y"].argmax(1) == arrays["labels"][held])


def test_held_out_rows_may_come_from_a_file_or_not_at_all(tmp_path: Path, data: Path) -> None:
    own = artifacts(tmp_path / "own")
    watcher = Quiet()
    train(own, data, watcher, eval_data=data)
    assert watcher.starts == [(1, 1, 13, 0)] and watcher.epochs[0].accuracy is not None
    none = artifacts(tmp_path / "none")
    train(none, data, watcher, eval_split=0)
    assert (watcher.epochs[1].eval_loss, watcher.epochs[1].accuracy) == (None, None)
    with pytest.raises(DataError, match="exclude each other"):
        Plan(data, eval_data=data, eval_split=0.1)


def test_a_loss_without_classes_has_no_accuracy(tmp_path: Path, data: Path) -> None:
    arrays = np.load(data)
    np.savez(tmp_path / "mse.npz", x=arrays["x"], labels=np.eye(3, dtype=np.float32)[arrays["labels"]])
    watcher = Quiet()
    train(artifacts(tmp_path / "d", loss="mse"), tmp_path / "mse.npz", watcher)
    assert watcher.epochs[0].accuracy is None and watcher.epochs[0].eval_loss is not None


def test_ignored_labels_count_for_nothing(tmp_path: Path, data: Path) -> None:
    arrays = dict(np.load(data))
    arrays["labels"][::2] = -100
    np.savez(tmp_path / "ignored.npz", **arrays)
    watcher = Quiet()
    folder = artifacts(tmp_path / "d")
    train(folder, tmp_path / "ignored.npz", watcher)
    _, held = gradcut.runtime.data.split_indices(103, 0.2, 0)
    whole = gradcut.TrainingSession(folder).evaluate({name: array[held] for name, array in arrays.items()})
    assert watcher.epochs[0].eval_loss == pytest.approx(whole.loss, rel=1e-5)


def test_a_batch_that_the_file_fixes(tmp_path: Path, data: Path) -> None:
    weight = f"<float[6,3] w = {{{numbers(18, 1)}}}>"
    model = text("g (float[4,6] x) => (float[4,3] y) " + weight + " { y = MatMul (x, w) }")
    gradcut.compile(model, loss="cross_entropy").save(tmp_path / "d")
    with pytest.raises(DataError, match="the model's batch is fixed at 4; say --batch-size 4"):
        train(tmp_path / "d", data)
    watcher = Quiet()
    Trainer(tmp_path / "d", Plan(data)).run(watcher)
    assert watcher.starts == [(1, 1, 20, 0)]  # 82 rows: two are left over


# --- refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused_before_a_step(tmp_path: Path, data: Path) -> None:
    with pytest.raises(LossError, match="these artifacts have no loss; compile with one"):
        train(artifacts(tmp_path / "bare", loss=None), data)
    folder = artifacts(tmp_path / "d")
    arrays = dict(np.load(data))
    arrays["labels"][7] = 3
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(FeedError, match=r"label 3 at row 7; the model has 3 classes, 0 to 2"):
        train(folder, tmp_path / "bad.npz")
    train(folder, data)
    with pytest.raises(ArtifactsError, match="was trained for 11 steps; go on with --resume"):
        train(folder, data)


def test_a_run_is_resumed_on_the_data_and_batches_it_was_started_with(tmp_path: Path, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    train(folder, data)
    with pytest.raises(DataError, match="started with --batch-size 8, not 4; leave --batch-size away"):
        Trainer(folder, Plan(data, batch_size=4, resume=True))
    with pytest.raises(DataError, match="started with --seed 0, not 1"):
        Trainer(folder, Plan(data, seed=1, resume=True))
    arrays = dict(np.load(data))
    arrays["x"][0, 0] += 1
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match="does not hold the data that the run was started with"):
        Trainer(folder, Plan(tmp_path / "other.npz", resume=True))
    session = gradcut.TrainingSession(folder)
    session.save_checkpoint(folder / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="does not say where in the data it is"):
        Trainer(folder, Plan(data, resume=True))


def test_a_resumed_run_keeps_its_options_and_takes_new_ones(tmp_path: Path, data: Path) -> None:
    """Records, learning rate and held-out file; what is given again counts from there on."""
    folder, whole, watcher = artifacts(tmp_path / "d"), artifacts(tmp_path / "whole"), Quiet()
    options: dict[str, Any] = {"eval_data": data, "lr": 0.05}
    train(whole, data, epochs=2, **options)
    with pytest.raises(SystemExit):
        train(folder, data, KilledAt(17), epochs=2, checkpoint_every=5, **options)
    assert not Trainer(artifacts(tmp_path / "new"), Plan(data, resume=True)).goes_on
    trainer = Trainer(folder, Plan(data, resume=True))
    assert trainer.goes_on and trainer.session.steps == 15
    trainer.run(watcher)
    assert watcher.starts == [(2, 2, 13, 2)] and written(folder) == written(whole)
    trainer = Trainer(folder, Plan(data, epochs=3, lr=0.0, resume=True))
    before = trainer.session.parameters()
    trainer.run(watcher)
    assert (trainer.position.epochs, trainer.position.lr) == (3, 0.0)
    assert all(np.allclose(array, before[name]) for name, array in trainer.session.parameters().items())


def test_held_out_rows_are_the_same_after_a_resume(tmp_path: Path, data: Path) -> None:
    by_file, by_share = artifacts(tmp_path / "file"), artifacts(tmp_path / "share")
    held = tmp_path / "held.npz"
    held.write_bytes(data.read_bytes())
    train(by_file, data, eval_data=held)
    train(by_share, data)
    with pytest.raises(DataError, match=r"started with --eval-data .*held.npz, not --eval-split 0.1; leave --eval-sp"):
        Trainer(by_file, Plan(data, eval_split=0.1, resume=True))
    with pytest.raises(DataError, match=r"started with --eval-split 0.2, not --eval-data .*held.npz; leave --eval-da"):
        Trainer(by_share, Plan(data, eval_data=held, resume=True))
    moved = held.rename(tmp_path / "moved.npz")
    with pytest.raises(DataError, match=r"held.npz: no such file"):
        Trainer(by_file, Plan(data, resume=True))
    assert Trainer(by_file, Plan(data, eval_data=moved, resume=True)).position.eval_data == [str(moved)]
    arrays = dict(np.load(moved))
    np.savez(held, **{**arrays, "x": arrays["x"] + 1})
    with pytest.raises(DataError, match=r"held.npz does not hold the data that the run was started with"):
        Trainer(by_file, Plan(data, resume=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "--seed is -1; it is at least 0"),
        ({"checkpoint_every": -1}, "--checkpoint-every is -1; it is at least 0"),
        ({"epochs": 0}, "--epochs is 0; it is at least 1"),
        ({"batch_size": 0}, "--batch-size is 0; it is at least 1"),
        ({"lr": -1.0}, "--lr must be at least 0, and is -1.0"),
        ({"lr": float("nan")}, "--lr is a finite number, not nan"),
        ({"lr": 1e300}, "--lr must be at most 3.4e"),
    ],
)
def test_plans_that_no_run_can_have(options: dict[str, Any], message: str, data: Path) -> None:
    with pytest.raises((DataError, SpecError), match=message):
        Plan(data, **options)


def test_weights_that_are_not_finite_end_a_run_and_are_not_saved(tmp_path: Path, data: Path) -> None:
    """The gradient of sqrt at 0 is infinite, the loss is not; and a NaN among the held-out rows is shown."""
    root = text("g (float[N,6] x) => (float[N,6] y) <float[6] w = {1,1,1,1,1,1}> { m = Mul (x, w)  y = Sqrt (m) }")
    gradcut.compile(root, loss="mse").save(tmp_path / "d")
    rows = np.ones((32, 6), np.float32)
    good, bad, held = (tmp_path / f"{name}.npz" for name in ("good", "bad", "held"))
    np.savez(good, x=rows, labels=rows * 2)
    np.savez(bad, x=rows * 0, labels=rows)
    np.savez(held, x=-rows, labels=rows)
    watcher = Quiet()
    train(tmp_path / "d", good, watcher, eval_data=held)
    assert np.isnan(watcher.epochs[0].eval_loss or 0) and line(watcher.epochs[0]).count("eval loss nan") == 1
    assert json.loads((tmp_path / "d" / "metrics.jsonl").read_text())["eval_loss"] is None
    gradcut.compile(root, loss="mse").save(tmp_path / "e")
    before = (tmp_path / "e" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(NotFiniteError, match="'w' is not finite after step 1"):
        train(tmp_path / "e", bad, batch_size=32)
    assert (tmp_path / "e" / "checkpoint.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    train(folder, data)
    before = (folder / "checkpoint.safetensors").read_bytes()
    with pytest.raises(NotFiniteError, match=r"the loss is (nan|inf) at step \d+ \(learning rate 1e\+30\)"):
        train(folder, data, resume=True, epochs=3, lr=1e30)
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    train(folder, data, resume=True, epochs=2)


# --- resuming ------------------------------------------------------------------------------------------------


@pytest.fixture
def uninterrupted(tmp_path: Path, data: Path) -> tuple[bytes, list[dict[str, Any]]]:
    folder = artifacts(tmp_path / "whole")
    train(folder, data, epochs=3)
    return written(folder)


@pytest.mark.parametrize("step", [1, 10, 11, 15, 22, 30])
def test_ten_steps_a_save_a_death_and_the_rest_are_the_whole(
    step: int, tmp_path: Path, data: Path, uninterrupted: tuple[bytes, list[dict[str, Any]]]
) -> None:
    folder = artifacts(tmp_path / "d")
    with pytest.raises(SystemExit):
        train(folder, data, KilledAt(step), epochs=3, checkpoint_every=5)
    train(folder, data, epochs=3, resume=True)
    assert written(folder) == uninterrupted


def test_lines_ahead_of_the_checkpoint_are_written_again(
    tmp_path: Path, data: Path, uninterrupted: tuple[bytes, list[dict[str, Any]]]
) -> None:
    folder = artifacts(tmp_path / "d")
    train(folder, data, epochs=1)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "step": 22, "loss": 9, "eval_loss": 9, "accuracy": 0, "seconds": 1}\n{"epoch": 3, "st')
    train(folder, data, epochs=3, resume=True)
    assert written(folder) == uninterrupted


COMMAND = [sys.executable, "-m", "gradcut", "train"]


def test_kills_at_random_moments_change_nothing(
    tmp_path: Path, data: Path, uninterrupted: tuple[bytes, list[dict[str, Any]]]
) -> None:
    """kill -9 in a process of its own, shortly after one of its checkpoints; every round gets further."""
    folder, moments = artifacts(tmp_path / "d"), random.Random(0)
    arguments = [str(folder), "--data", str(data), "--epochs", "3", "--checkpoint-every", "1", "--resume"]
    options = ["--batch-size", "8"]
    file, kills = folder / "checkpoint.safetensors", 0
    while kills < 3:
        before, reached = file.stat().st_mtime_ns, _reached(file)
        process = subprocess.Popen([*COMMAND, *arguments, *options], stdout=subprocess.DEVNULL)
        while process.poll() is None and file.stat().st_mtime_ns == before:
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
        assert _reached(file) > reached
    assert kills
    subprocess.run([*COMMAND, *arguments, *options], check=True, stdout=subprocess.DEVNULL)
    assert written(folder) == uninterrupted


def _reached(file: Path) -> tuple[int, int]:
    """Steps and epochs that are done: an epoch's last step may be saved, and then its end."""
    record = checkpoint.load(file)[1]
    return record["step"], record["extra"].get("position", {"epoch": 0})["epoch"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_leaves_cleanly(number: int, tmp_path: Path, data: Path) -> None:
    """The run is long; the signal comes when its first epoch is on paper."""
    folder = artifacts(tmp_path / "d")
    arguments = [str(folder), "--data", str(data), "--epochs", "100000", "--batch-size", "8"]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    record = checkpoint.load(folder / "checkpoint.safetensors")[1]
    where = folder / "checkpoint.safetensors"
    line = f"interrupted after step {record['step']}; saved {where}; go on with --resume"
    assert out.splitlines()[-1] == line
    position = record["extra"]["position"]
    assert record["step"] == position["epoch"] * 11 + position["batch"]
    whole = artifacts(tmp_path / "whole")
    train(whole, data, epochs=position["epoch"] + 1)
    train(folder, data, epochs=position["epoch"] + 1, resume=True)
    assert written(folder) == written(whole)


def test_digits_learn_all_ten(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    gradcut.compile(MODELS / "digits.onnx", loss="cross_entropy", train=["head.*"]).save(folder)
    outcome = Trainer(folder, Plan(MODELS / "digits.npz", epochs=5)).run(Quiet())
    assert outcome.last is not None and outcome.last.accuracy is not None and outcome.last.accuracy >= 0.90
    onnx.checker.check_model(str(folder / "training_model.onnx"))
