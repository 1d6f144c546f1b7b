"""Fine-tuning by depth: a frozen prefix that shrinks, and a phase goes on from where the last one ended."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradcut
from tests.uses.common import backward, close, export, normal, seeded, torch_gradients


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


BATCH = {"x": normal(0, 12, 6), "labels": np.arange(12) % 3}
PHASES = [["head.*"], ["layers.2.*", "head.*"], ["layers.1.*", "layers.2.*", "head.*"]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(seeded(Deep), {"x": BATCH["x"]}, tmp_path_factory.mktemp("depth") / "deep.onnx", ["logits"])


def in_phase(name: str, phase: list[str]) -> bool:
    return any(name.startswith(pattern.rstrip("*")) for pattern in phase)


def test_parameters_move_only_in_the_phases_that_name_them(file: Path, tmp_path: Path) -> None:
    current, losses = file, []
    for number, phase in enumerate(PHASES):
        session = gradcut.TrainingSession(gradcut.compile(current, "cross_entropy", train=phase, optimizer="sgd:lr=.3"))
        before = session.parameters()
        losses += [session.step(BATCH).loss for _ in range(15)]
        ended = session.evaluate(BATCH).loss
        for name, array in session.parameters().items():
            assert (array.tobytes() != before[name].tobytes()) == in_phase(name, phase), (number, name)
        current = tmp_path / f"phase{number}.onnx"
        session.export(current)
        assert gradcut.TrainingSession(gradcut.compile(current, "cross_entropy")).evaluate(BATCH).loss == ended
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))  # no step back anywhere


def test_a_phase_starts_with_torchs_gradient_at_the_weights_of_the_last(file: Path, tmp_path: Path) -> None:
    first = gradcut.TrainingSession(gradcut.compile(file, "cross_entropy", train=PHASES[0], optimizer="sgd:lr=.3"))
    first.step(BATCH)
    first.export(tmp_path / "first.onnx")
    module = Deep()
    module.load_state_dict({name: torch.tensor(array) for name, array in first.parameters().items()})
    loss = cross_entropy(module(torch.tensor(BATCH["x"])), torch.tensor(BATCH["labels"]))
    expected = {name: g for name, g in torch_gradients(module, loss).items() if in_phase(name, PHASES[1])}
    second = gradcut.TrainingSession(gradcut.compile(tmp_path / "first.onnx", "cross_entropy", train=PHASES[1]))
    close(second.gradients(BATCH), expected)


def test_the_backward_reaches_as_deep_as_the_phase(file: Path) -> None:
    depth = lambda phase: sum(
        not node.startswith("cross_entropy")
        for node in backward(gradcut.compile(file, "cross_entropy", train=phase).training_model)
    )
    assert [depth(phase) for phase in PHASES] == [1, 3, 5]  # a layer is a product and a Tanh


def test_a_file_that_unfreezes_layer_by_layer(file: Path) -> None:
    """The same schedule with the freezes kept in the model."""
    model = gradcut.freeze(gradcut.load(file), "*")
    for phase in PHASES:
        model = gradcut.unfreeze(model, phase)
        trainable = gradcut.compile(model, "cross_entropy").trainable
        assert trainable and all(in_phase(name, phase) for name in trainable)
        assert len(trainable) == 2 * len(phase)


def test_one_checkpoint_goes_through_all_phases(file: Path, tmp_path: Path) -> None:
    """One run by a schedule: a phase goes on from the checkpoint of the last, and moves what it names."""
    texts = [f"epochs=1,train={','.join(phase)}" for phase in PHASES]
    gradcut.compile(file, "cross_entropy", phases=texts, optimizer="sgd:lr=.3").save(tmp_path / "run")
    for number, phase in enumerate(PHASES, 1):
        session = gradcut.TrainingSession(tmp_path / "run")
        if number > 1:
            session.load_checkpoint(tmp_path / "one.safetensors")
        session.phase = f"phase{number}"
        before = session.parameters()
        for _ in range(3):
            session.step(BATCH)
        for name, array in session.parameters().items():
            assert (array.tobytes() != before[name].tobytes()) == in_phase(name, phase), (number, name)
        session.save_checkpoint(tmp_path / "one.safetensors")
    assert session.steps == 9
