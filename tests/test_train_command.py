"""``gradcut train`` as a process: Ctrl-C at any moment, a full disk, the summary, a line for every mistake."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from gradcut import checkpoint
from gradcut.cli.progress import Bar, Lines
from gradcut.runtime.data import split_indices
from gradcut.runtime.records import Record
from gradcut.runtime.session import StepResult
from tests.exported import text
from tests.runtime.test_train import COMMAND, artifacts, numbers
from tests.test_cli import good, refused

CHECKPOINT, BEST, METRICS = "checkpoint.safetensors", "best.safetensors", "metrics.jsonl"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(61, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=x[:, :3].argmax(1))
    return tmp_path / "data.npz"


def process(folder: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [*COMMAND, str(folder), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{"preexec_fn": hear, **streams, **options})


def hear() -> None:
    """Ctrl-C reaches the command also where these tests run in the background of a shell, which ignores it there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(there: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not there() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert there(), running.communicate()


# --- Ctrl-C --------------------------------------------------------------------------------------------------

SLOW = """
import pathlib, time
import numpy as np

def rows(count, slow_at):
    rng = np.random.default_rng(0)
    for number in range(count):
        if number == slow_at:
            pathlib.Path("slow").touch()
            time.sleep(600)
        x = rng.normal(size=(8, 6))
        yield {"x": x, "labels": x[:, :3].argmax(1)}

def quick():
    yield from rows(6, None)

def first():
    yield from rows(6, 0)

def fourth():
    yield from rows(6, 3)

def held_second():
    global calls
    calls = globals().get("calls", 0) + 1
    yield from rows(4, None if calls == 1 else 1)
"""


@pytest.mark.parametrize(
    ("source", "held", "steps"),
    [("first", "quick", 0), ("fourth", "quick", 3), ("quick", "held_second", 6)],
    ids=["the first batch", "prefetch", "evaluation"],
)
def test_ctrl_c_while_data_are_waited_for(source: str, held: str, steps: int, tmp_path: Path) -> None:
    """The function sleeps for ten minutes; the command is gone in seconds, with all its updates saved."""
    (tmp_path / "slow_batches.py").write_text(SLOW)
    folder = artifacts(tmp_path / "d")
    arguments = ["--data", f"slow_batches:{source}", "--eval-data", f"slow_batches:{held}", "--checkpoint-every", 1]
    running = process(folder, *arguments, cwd=tmp_path)
    until((tmp_path / "slow").exists, running)
    until(lambda: checkpoint.load(folder / CHECKPOINT)[1]["step"] == steps, running)
    begun = time.monotonic()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "") and time.monotonic() - begun < 20
    record = checkpoint.load(folder / CHECKPOINT)[1]
    assert record["step"] == record["extra"]["position"]["batch"] == steps
    where = folder / CHECKPOINT
    assert out.splitlines()[-1] == f"interrupted after step {steps}; saved {where}; go on with --resume"
    assert not [one for one in folder.iterdir() if one.suffix == ".tmp"]


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, data: Path) -> None:
    """The watcher's step is slow: the first signal waits for its end, the second does not."""
    (tmp_path / "slow_step.py").write_text(
        "import pathlib, time\n"
        "from gradcut.cli.progress import Lines\n"
        "def step(self, result, rows):\n"
        "    pathlib.Path('slow').touch()\n"
        "    time.sleep(600)\n"
        "Lines.step = step\n"
        "from gradcut.cli import main\n"
        "main()\n"
    )
    folder = artifacts(tmp_path / "d")
    before = (folder / CHECKPOINT).read_bytes()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    command = [sys.executable, "slow_step.py", "train", str(folder), "--data", str(data)]
    streams: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, preexec_fn=hear, **streams)
    until((tmp_path / "slow").exists, running)
    running.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=90)
    assert (running.returncode, err) == (130, "error: interrupted\n")
    assert (folder / CHECKPOINT).read_bytes() == before


def test_ctrl_c_while_a_module_is_imported(tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text("import pathlib, time\npathlib.Path('slow').touch()\ntime.sleep(600)\n")
    folder = artifacts(tmp_path / "d")
    before = (folder / CHECKPOINT).read_bytes()
    running = process(folder, "--data", "slow_module:f", cwd=tmp_path)
    until((tmp_path / "slow").exists, running)
    time.sleep(0.3)  # until it sleeps: in a callback of the import itself, Python drops what the signal raises
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=90)
    assert (running.returncode, err) == (130, "error: interrupted\n")
    assert (folder / CHECKPOINT).read_bytes() == before and not (folder / METRICS).exists()


# --- one run a directory -------------------------------------------------------------------------------------


def test_two_runs_in_one_directory(tmp_path: Path, data: Path) -> None:
    """The second is refused, and so is compiling over the first, until that is killed; what the kill left goes."""
    (tmp_path / "slow_batches.py").write_text(SLOW)
    folder = artifacts(tmp_path / "d")
    arguments = ["--data", "slow_batches:fourth", "--checkpoint-every", 1]
    running = process(folder, *arguments, cwd=tmp_path)
    until(lambda: checkpoint.load(folder / CHECKPOINT)[1]["step"] == 3, running)
    line = f"{folder} is being trained by another process; wait for its end, or stop it"
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    assert refused("train", folder, "--data", data, "--resume") == line
    onnx.save(text(WIDE % numbers(18, 1)), tmp_path / "m.onnx")
    assert refused("compile", tmp_path / "m.onnx", "--loss", "cross_entropy", "-o", folder, "--force") == line
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
    running.kill()
    running.communicate()
    left = folder / f".{CHECKPOINT}.abcdefgh.tmp"
    left.write_bytes(b"half")
    good("compile", tmp_path / "m.onnx", "--loss", "cross_entropy", "-o", folder, "--force")
    assert not left.exists()
    good("train", folder, "--data", data)


def test_a_directory_that_cannot_be_written(data: Path) -> None:
    """Said before the first step; whoever may write anywhere becomes nobody for it."""
    with tempfile.TemporaryDirectory() as place:
        folder = artifacts(Path(place) / "d")
        rows = Path(shutil.copy(data, place))
        for one in (Path(place), folder, *folder.iterdir(), rows):
            one.chmod(0o755)
        folder.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            line = refused("train", folder, "--data", rows)
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
    assert line == (
        f"{folder} cannot be written (Permission denied), and checkpoints go there; make it writable, or copy it to a "
        "place that is"
    )


# --- a full disk ---------------------------------------------------------------------------------------------

WIDE = "g (float[N,6] x) => (float[N,3] y) <float[6,3] w = {%s}> { y = MatMul (x, w) }"


def limited(size: int) -> Callable[[], None]:
    """No file may grow above `size` bytes: what a write gets then is an error, as from a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path: Path, data: Path) -> None:
    """The last one stays good, and the run goes on from it once there is room."""
    whole, folder = artifacts(tmp_path / "whole"), artifacts(tmp_path / "d")
    good("train", whole, "--data", data, "--batch-size", 8, "--epochs", 2)
    good("train", folder, "--data", data, "--batch-size", 8)
    before = {name: (folder / name).read_bytes() for name in (CHECKPOINT, BEST)}
    small = len(before[CHECKPOINT]) - 100
    running = process(folder, "--data", data, "--epochs", 2, "--resume", preexec_fn=limited(small))
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert re.fullmatch(
        rf"error: {folder / CHECKPOINT}: the checkpoint could not be written \(.*File too large.*\); an earlier one "
        r"there is untouched. Free some space, or choose another place\n",
        err,
    )
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not [one for one in folder.iterdir() if one.suffix == ".tmp"]
    good("train", folder, "--data", data, "--epochs", 2, "--resume")
    assert (folder / CHECKPOINT).read_bytes() == (whole / CHECKPOINT).read_bytes()


def test_a_full_disk_while_metrics_are_written(tmp_path: Path, data: Path) -> None:
    """Their file is larger than the checkpoint of a small model; its lines are those before."""
    folder = tmp_path / "d"
    onnx.save(text(WIDE % numbers(18, 1)), tmp_path / "m.onnx")
    good("compile", tmp_path / "m.onnx", "--loss", "cross_entropy", "--optimizer", "sgd:lr=0.01", "-o", folder)
    good("train", folder, "--data", data, "--epochs", 20)
    before = {name: (folder / name).read_bytes() for name in (CHECKPOINT, BEST, METRICS)}
    limit = len(before[METRICS]) + 10
    assert limit > len(before[CHECKPOINT]) + 200
    running = process(folder, "--data", data, "--epochs", 21, "--resume", preexec_fn=limited(limit))
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert err == (
        f"error: {folder / METRICS} could not be written (File too large); what was there is untouched, and so is the "
        "checkpoint. Free some space, and go on with --resume\n"
    )
    assert {name: (folder / name).read_bytes() for name in before} == before
    good("train", folder, "--data", data, "--epochs", 21, "--resume")


def test_a_best_checkpoint_that_cannot_be_written(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint beside it is good, and a resumed run writes the best one after all."""
    folder = artifacts(tmp_path / "d")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gradcut.runtime.train._copy", full)
        line = refused("train", folder, "--data", data)
    assert line == (
        f"{folder / BEST} could not be written (No space left on device); what was there is untouched, and the "
        "checkpoint of step 2 is good. Free some space, and go on with --resume"
    )
    assert checkpoint.load(folder / CHECKPOINT)[1]["step"] == 2
    assert sorted(one.name for one in folder.iterdir() if one.name.startswith((".", "best"))) == []
    good("train", folder, "--data", data, "--resume")
    assert (folder / BEST).read_bytes() == (folder / CHECKPOINT).read_bytes()


def test_a_full_disk_while_events_are_written(tmp_path: Path, data: Path) -> None:
    """One line and no hang; the checkpoint of the epoch before is there."""
    folder, logs = artifacts(tmp_path / "d"), tmp_path / "logs"
    size = (folder / CHECKPOINT).stat().st_size + 2000
    arguments = ["--data", data, "--batch-size", 1, "--epochs", 100, "--log-dir", logs]
    _, err = (running := process(folder, *arguments, preexec_fn=limited(size))).communicate(timeout=60)
    assert (running.returncode, err) == (
        2,
        f"error: --log-dir {logs}: its event file could not be written (File too large); the last checkpoint is good\n",
    )
    assert checkpoint.load(folder / CHECKPOINT)[1]["step"] > 0


def test_a_log_folder_that_cannot_be_written(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused("train", artifacts(tmp_path / "d"), "--data", data, "--log-dir", tmp_path / "file")
    assert line.startswith(f"--log-dir {tmp_path / 'file'}: its event file could not be written (")


# --- what is said --------------------------------------------------------------------------------------------


def test_the_summary_and_the_export_of_the_best(tmp_path: Path, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    options = ["--epochs", 3, "--lr", 0, "--metric", "f1", "--metric", "loss"]
    said = good("train", folder, "--data", data, "--batch-size", 8, *options)
    rows = {row[:12].strip(): row[12:] for row in said.out.splitlines() if not row.startswith("epoch ")}
    assert list(rows) == ["run", "loss", "held out", "best", "checkpoint", "next"]
    assert re.fullmatch(r"3 of 3 epochs, 21 steps; \d+\.\d s, \d+ samples/s", rows["run"])
    assert re.fullmatch(r"\d\.\d{4} at the first step, \d\.\d{4} at the last", rows["loss"])
    assert re.fullmatch(r"f1 0\.\d{4}, loss \d\.\d{4} at step 21", rows["held out"])
    f1 = json.loads((folder / METRICS).read_text().splitlines()[0])["metrics"]["f1"]
    assert rows["best"] == f"f1 {f1:.4f} at step 7: {folder / BEST}"
    assert rows["next"] == f"gradcut export {folder} -o d.onnx --best"
    out = tmp_path / "best.onnx"
    assert good("export", folder, "-o", out, "--best").out.startswith(f"{out}: 3 tensors as of step 7, ")
    assert refused("export", folder, "-o", folder / BEST).startswith(f"{folder / BEST} is a file of the artifacts in ")


def test_the_running_averages_are_evaluated_and_exported(tmp_path: Path, data: Path) -> None:
    """Held-out figures are those of what `export --best --ema` writes, by ONNX Runtime alone."""
    folder, out = artifacts(tmp_path / "d", ema=0.9), tmp_path / "best.onnx"
    options = ["--data", data, "--batch-size", 8, "--epochs", 3]
    said = good("train", folder, *options, "--eval-ema", "--metric", "loss")
    assert said.line("held out").endswith(" at step 21, of the running averages")
    assert said.line("next").endswith(" --ema")
    best = json.loads((folder / METRICS).read_text().splitlines()[-1])
    good("export", folder, "-o", out, "--best", "--ema")
    arrays, held = np.load(data), split_indices(61, 0.2, 0)[1]
    (logits,) = ort.InferenceSession(out).run(None, {"x": arrays["x"][held]})
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(arrays["labels"][held]))
    assert best["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    plain = artifacts(tmp_path / "plain", ema=0.9)
    good("train", plain, *options, "--metric", "loss")
    assert json.loads((plain / METRICS).read_text().splitlines()[-1])["eval_loss"] != pytest.approx(
        loss.item(), rel=1e-3
    )
    good("train", folder, "--data", data, "--epochs", 4, "--resume")
    assert refused("train", plain, "--data", data, "--epochs", 4, "--resume", "--eval-ema") == (
        "the run was started without --eval-ema; leave --eval-ema away to resume it"
    )
    assert refused("train", artifacts(tmp_path / "no"), "--data", data, "--eval-ema").startswith(
        "there are no running averages; compile with --ema 0.999"
    )


def test_early_stopping_is_said(tmp_path: Path, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    said = good("train", folder, "--data", data, "--epochs", 9, "--lr", 0, "--patience", 2)
    assert said.line("run").startswith("3 of 9 epochs, 6 steps; ")
    assert said.line("stopped") == (
        "early: no better accuracy in 2 evaluations; a larger --patience goes on with --resume"
    )


def test_casts_are_said_once(tmp_path: Path, data: Path) -> None:
    arrays = dict(np.load(data))
    arrays = {"x": arrays["x"].astype(np.float64), "labels": arrays["labels"].astype(np.int32)}
    np.savez(tmp_path / "double.npz", **arrays)
    said = good("train", artifacts(tmp_path / "d"), "--data", tmp_path / "double.npz", "--epochs", 2).out
    assert said.count("note: ") == 1
    assert said.startswith(f"note: {tmp_path / 'double.npz'}: x is float64 and is fed as float32\n")


def test_pairs_on_the_command_line(tmp_path: Path, data: Path) -> None:
    arrays = dict(np.load(data))
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}_.npy", array)
    pairs = [word for name in arrays for word in ("--data", f"{name}={tmp_path / name}_.npy")]
    folder, same = artifacts(tmp_path / "d"), artifacts(tmp_path / "e")
    good("train", folder, *pairs, "--schedule", "cosine:warmup=1", "--eval-every", 1)
    good("train", same, "--data", data, "--schedule", "cosine:warmup=1", "--eval-every", 1)
    assert (folder / CHECKPOINT).read_bytes() == (same / CHECKPOINT).read_bytes()


def test_mistakes_are_one_line_and_change_nothing(tmp_path: Path, data: Path) -> None:
    folder = artifacts(tmp_path / "d")
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    (tmp_path / "empty.npz").write_bytes(b"")
    for arguments, line in [
        (["--data", tmp_path / "empty.npz"], f"{tmp_path / 'empty.npz'} is no readable npz file ("),
        (["--data", data, "--schedule", "cosine:warmup=9"], "the schedule is longer than the run: cosine:warmup=9 "),
        (["--data", data, "--metric", "mse"], "--metric mse does not fit the loss cross_entropy; what does: acc"),
        (["--data", data, "--patience", 1, "--eval-split", 0], "--patience needs held-out rows; give --eval-data"),
        (["--data", "no_such_module:f"], "no_such_module:f: there is no module 'no_such_module', installed or in "),
        (["--data", data, "--eval-data", tmp_path / "no.npz"], f"{tmp_path / 'no.npz'}: no such file"),
        (["--data", data, "--metric", "acc"], "--metric: 'acc' is no metric. Nearest: accuracy. There are accuracy, "),
    ]:
        assert refused("train", folder, *arguments).startswith(line)
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before


def test_help_is_in_groups() -> None:
    said = good("train", "--help").out
    headings = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Data:", "Steps and learning rate:", "Evaluation:", "Running:"]
    given = set(re.findall(r"^  (--[a-z-]+)", said, re.MULTILINE))
    assert {"--data", "--patience", "--schedule", "--log-dir", "--eval-ema", "--help"} < given and len(given) == 20


@pytest.mark.parametrize("total", [3, None])
def test_progress_with_and_without_a_known_length(total: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(1, 3, 0.5, 0.25, 1.0, 0.1, {"accuracy": 1.0, "loss": 0.25}, 0.1)
    for shown in (Bar(), Lines()):
        with shown as watching:
            watching.start(1, 2, total, 1)
            if isinstance(shown, Lines):
                shown.said -= 100
            watching.step(StepResult(0.5, {}, 1), 8)
            watching.record(record)
    out = capsys.readouterr().out
    assert out.count("epoch 1, step 3, loss 0.5000, eval loss 0.2500, accuracy 1.0000, 0.1 s") == 2
    left = " s left" if total else " samples/s"
    assert re.search(rf"^epoch 1 of 2, step 2{' of 3' if total else ''}, loss 0\.5000, \d+ samples/s", out, re.M)
    assert re.search(rf"{left}$", out, re.M)
