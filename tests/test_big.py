"""A model whose weights are more than one ONNX file holds: every command, in processes of their own."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.errors import ArtifactsError, ImportModelError
from gradcut.runtime.export import export
from models import zoo
from tests.benchmarks import big
from tests.exported import exported

GIGABYTE = 1_000_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("big")
    assert big.write_model(folder / "big.onnx", 2.3) > 2**31
    yield folder
    shutil.rmtree(folder)  # pytest would keep it for three runs


@pytest.fixture(scope="module")
def compiled(folder: Path) -> big.Usage:
    command = ["-m", "gradcut", "compile", "big.onnx", "--loss", "cross_entropy", "--train", "head.*", "-o", "out"]
    return big.measured(command, folder)


@pytest.fixture(scope="module")
def trained(folder: Path, compiled: big.Usage) -> big.Usage:
    return big.measured(["-c", big.TRAIN_STEP, "out"], folder)


def test_compiling_takes_little_memory_and_writes_the_weights_once(folder: Path, compiled: big.Usage) -> None:
    size = (folder / "big.data").stat().st_size
    assert compiled.own < GIGABYTE and compiled.resident < 6 * GIGABYTE, compiled
    assert size <= big.folder_size(folder / "out") < 1.01 * size
    assert (folder / "out" / "weights.bin").stat().st_size >= size
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert {one["name"] for one in manifest["trainable"]} == {"head.weight", "head.bias"}


def test_training_holds_the_weights_once(folder: Path, trained: big.Usage) -> None:
    size = (folder / "big.data").stat().st_size
    assert trained.own < size + GIGABYTE, trained
    assert trained.resident < 6 * GIGABYTE, trained


def test_export_writes_the_weights_beside_the_file(folder: Path, trained: big.Usage) -> None:
    usage = big.measured(["-m", "gradcut", "export", "out", "-o", "tuned.onnx"], folder)
    assert usage.own < GIGABYTE and usage.resident < 6 * GIGABYTE, usage
    given, tuned = (ir.load(folder / name) for name in ("big.onnx", "tuned.onnx"))
    assert (folder / "tuned.onnx").stat().st_size < 1_000_000
    moved = []
    for name, value in tuned.graph.initializers.items():
        same = np.array_equal(value.const_value.numpy(), given.graph.initializers[name].const_value.numpy())
        moved += [] if same else [name]
    assert sorted(moved) == ["head.bias", "head.weight"]
    assert onnx.load(folder / "tuned.onnx", load_external_data=False).graph.initializer[0].external_data[0].value == (
        "tuned.onnx.data"
    )
    del given, tuned
    gc.collect()
    (folder / "tuned.onnx.data").unlink()


def test_what_is_one_message_says_so(folder: Path, trained: big.Usage) -> None:
    with pytest.raises(ImportModelError, match=r"what vjp gives is one .* the model has 2.\d\d GB"):
        gradcut.vjp(folder / "big.onnx", wrt=["head.bias"], of=["logits"])
    artifacts = gradcut.TrainingArtifacts.load(folder / "out")
    with pytest.raises(ArtifactsError, match=r"t.onnxtxt: text holds the weights, which are over 1.9 GB here"):
        export(artifacts.model, {}, folder / "t.onnxtxt")
    assert not list(folder.glob("*t.onnxtxt*"))


def test_weights_handed_to_the_runtime_beside_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, of artifacts that were never saved; the limit is lowered here."""
    artifacts = gradcut.compile(exported("mlp"), "cross_entropy", train=["body.2.*"])
    feeds = {**zoo.example_inputs("mlp", 8, 0), "labels": zoo.example_labels("mlp", 8, 0)}
    inside = gradcut.TrainingSession(artifacts, threads=1)
    monkeypatch.setattr("gradcut.runtime.backend.MAX_BYTES", 1000)
    monkeypatch.setattr("gradcut.runtime.backend._HANDED_OVER", 1000)
    beside = gradcut.TrainingSession(artifacts, threads=1)
    assert beside.programs[""].training._beside and not inside.programs[""].training._beside
    for _ in range(3):
        assert beside.step(feeds).loss == inside.step(feeds).loss
    for name, array in inside.parameters().items():
        np.testing.assert_array_equal(beside.parameters()[name], array, err_msg=name)
