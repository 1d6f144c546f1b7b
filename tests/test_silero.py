"""A detector of speech as its makers ship it: a spectrum, convolutions, an LSTM over windows, a sigmoid.

One file of several holds no If; others choose by one between two networks, for 16 and 8 kHz, with further Ifs about
ranks around an LSTM; one of torch's newer exporter has a branch of written out LSTM cells.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import gradcut
from gradcut.runtime.check import check_gradients

SEED = 20260801
Arrays = dict[str, np.ndarray[Any, Any]]

#: The files with Ifs, by what the names of the network for 16 kHz begin with.
WITH_IFS = {"silero_vad": "If_0_then_branch", "silero_vad_op18_ifless": "model.", "silero_vad_16k_op15": "model."}


def silero(name: str) -> Path:
    spec = importlib.util.find_spec("silero_vad")  # its package itself wants torchaudio
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data" / f"{name}.onnx"


def windows(count: int) -> Arrays:
    """What the file without an If reads: one sound."""
    rng = np.random.default_rng(SEED)
    state = {name: rng.standard_normal((1, 1, 128)).astype(np.float32) * 0.1 for name in ("h", "c")}
    return {"input": rng.standard_normal((count, 576)).astype(np.float32) * 0.1, **state}


def sounds(count: int) -> Arrays:
    """What the others read: a window of each of several sounds."""
    rng = np.random.default_rng(SEED)
    state = rng.standard_normal((2, count, 128)).astype(np.float32) * 0.1
    sound = rng.standard_normal((count, 576)).astype(np.float32) * 0.1
    return {"input": sound, "state": state, "sr": np.array(16000)}


def test_gradients_without_ifs() -> None:
    report = check_gradients(silero("silero_vad_16k_sequence"), windows(4), directions=1)
    assert report.forward.startswith("float64"), report.notes
    assert report.ok, str(report)


@pytest.mark.parametrize("train", [None, ["output.*"]], ids=["all", "head"])
def test_training_without_ifs(train: list[str] | None) -> None:
    """The loss falls; the frozen rest stays as it is, and of the LSTM no backward is built for the head alone."""
    model = silero("silero_vad_16k_sequence")
    art = gradcut.compile(model, "mse:output=speech_probs", train, optimizer=gradcut.SGD(lr=0.05))
    kinds = [node.op_type for node in art.training_model.graph]
    assert ("Scan" in kinds) == (train is None)
    session = gradcut.TrainingSession(art)
    feeds = {**windows(6), "labels": np.linspace(0.2, 0.8, 6, dtype=np.float32)}
    before, losses = session.parameters(), [session.step(feeds).loss for _ in range(8)]
    assert losses[-1] < losses[0]
    assert moved(session, before) == set(art.trainable)


def moved(session: gradcut.TrainingSession, before: Arrays) -> set[str]:
    return {name for name, array in session.parameters().items() if not np.array_equal(array, before[name])}


# --- with Ifs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_IFS)
def test_gradients_with_ifs(name: str) -> None:
    """Of some weights before the LSTM, in it and behind it, of the inputs, and of the network that does not run."""
    model = silero(name)
    trainable = gradcut.compile(model, "mse:output=output").trainable
    names = [one for one in trainable if one.endswith(("weight_hh", "decoder.2.weight", "r.0.reparam_conv.bias"))]
    report = check_gradients(model, sounds(2), [*names, "input", "state"], directions=1)
    assert report.forward.startswith("float64"), report.notes
    assert report.ok, str(report)
    assert sum(value.analytic != 0 for value in report.values) == 5


@pytest.mark.parametrize("head", [False, True], ids=["all", "head"])
@pytest.mark.parametrize("name", WITH_IFS)
def test_training_with_ifs(name: str, head: bool, tmp_path: Path) -> None:
    """Only the network that runs moves; what is exported has the loss that the next step has."""
    train = ["*decoder.decoder.2.*"] if head else None
    art = gradcut.compile(silero(name), "mse:output=output", train, optimizer=gradcut.SGD(lr=0.02))
    session = gradcut.TrainingSession(art)
    before, labels = session.parameters(), np.linspace(0.2, 0.8, 3, dtype=np.float32)[:, None]
    session.export(tmp_path / "same.onnx")
    np.testing.assert_array_equal(run(tmp_path / "same.onnx"), run(silero(name)))
    losses = [session.step({**sounds(3), "labels": labels}).loss for _ in range(3)]
    assert losses[-1] < losses[0]
    assert moved(session, before) == {one for one in art.trainable if one.startswith(WITH_IFS[name])}
    session.export(tmp_path / "tuned.onnx")
    tuned = float(np.mean((run(tmp_path / "tuned.onnx") - labels) ** 2))
    assert tuned == pytest.approx(session.step({**sounds(3), "labels": labels}).loss, rel=1e-4)
    assert tuned < losses[-1]


def run(model: Path) -> np.ndarray[Any, Any]:
    """The probabilities that a file gives."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output"], sounds(3))[0])
