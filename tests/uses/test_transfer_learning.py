"""Transfer learning, the backbone as a fixed feature extractor: only the head trains, and only it has a backward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradcut
from tests.uses.common import backward, close, export, leaves, normal, operators, seeded, torch_gradients


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(image).mean((2, 3)))


BATCH = {"image": normal(0, 8, 1, 8, 8), "labels": np.arange(8) % 3}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transfer") / "classifier.onnx"
    return export(seeded(Classifier), {"image": BATCH["image"]}, path, ["logits"])


#: Three ways to say it.
WAYS = {"train": {"train": "head.*"}, "freeze": {"freeze": "backbone.*"}, "mark": {"stop_at": "backbone"}}


@pytest.mark.parametrize("way", WAYS)
def test_frozen_parameters_are_bit_identical_after_training(way: str, file: Path) -> None:
    session = gradcut.TrainingSession(gradcut.compile(file, "cross_entropy", optimizer="adamw:lr=1e-2", **WAYS[way]))
    before, first = session.parameters(), session.step(BATCH).loss
    for _ in range(20):
        last = session.step(BATCH).loss
    after = session.parameters()
    assert last < first
    for name, array in after.items():
        assert (array.tobytes() == before[name].tobytes()) == name.startswith("backbone."), name


def test_no_running_statistic_of_the_backbone_moves(file: Path, tmp_path: Path) -> None:
    session = gradcut.TrainingSession(gradcut.compile(file, "cross_entropy", train="head.*"))
    session.step(BATCH)
    session.export(tmp_path / "tuned.onnx")
    given, tuned = (gradcut.load(path).graph.initializers for path in (file, tmp_path / "tuned.onnx"))
    assert {name for name in given if "running" in name} == {"backbone.1.running_mean", "backbone.1.running_var"}
    moved = {name for name, value in given.items() if value.const_value.tobytes() != tuned[name].const_value.tobytes()}
    assert moved == {"head.weight", "head.bias"}


@pytest.mark.parametrize("way", WAYS)
def test_no_backward_node_in_the_backbone(way: str, file: Path) -> None:
    training = gradcut.compile(file, "cross_entropy", **WAYS[way]).training_model
    assert {node for node in backward(training) if not node.startswith("cross_entropy")} == {"node_linear"}
    assert backward(training)["node_linear"] == {"B", "C"}  # and no cotangent of what the head reads
    assert operators(training).count("Conv") == 2
    assert not {"ConvTranspose", "Col2Im"} & set(operators(training))


def test_the_heads_gradient_is_torchs(file: Path) -> None:
    module = seeded(Classifier).eval()
    for parameter in module.backbone.parameters():
        parameter.requires_grad_(False)
    loss = cross_entropy(module(torch.tensor(BATCH["image"])), torch.tensor(BATCH["labels"]))
    expected = torch_gradients(module, loss)
    assert expected.keys() == {"head.weight", "head.bias"} < leaves(module).keys()
    for options in WAYS.values():
        session = gradcut.TrainingSession(gradcut.compile(file, "cross_entropy", batch_norm="eval", **options))
        close(session.gradients(BATCH), expected)
