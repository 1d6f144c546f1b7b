"""Sparse updates: biases, norms or single tensors train, and of each operator only the half that they need is built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import gradcut
from tests.uses.common import backward, close, export, normal, operators, seeded, torch_gradients


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.second = nn.Linear(7, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(self.norm(self.first(x)))))


BATCH = {"x": normal(0, 9, 5), "labels": normal(1, 9, 2)}
FIRST, SECOND, LAST = "node_linear", "node_linear_1", "node_linear_2"
NORM, TANH = "node_layer_norm", "node_tanh"

#: What trains -> the operands (of the ONNX operator pages) that get a cotangent in each node, and the number of matrix
#: products that the backward takes: one for each A and each B.
CASES = {
    "*.bias": ({FIRST: "C", NORM: "X B", SECOND: "A C", TANH: "input", LAST: "A C"}, 2),
    "norm.*": ({NORM: "Scale B", SECOND: "A", TANH: "input", LAST: "A"}, 2),
    "norm.weight": ({NORM: "Scale", SECOND: "A", TANH: "input", LAST: "A"}, 2),
    "second.weight": ({SECOND: "B", TANH: "input", LAST: "A"}, 2),
    "second.bias": ({SECOND: "C", TANH: "input", LAST: "A"}, 1),
    "last.bias": ({LAST: "C"}, 0),
    "first.weight": ({FIRST: "B", NORM: "X", SECOND: "A", TANH: "input", LAST: "A"}, 3),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(seeded(Network), {"x": BATCH["x"]}, tmp_path_factory.mktemp("sparse") / "network.onnx")


@pytest.mark.parametrize("train", CASES)
def test_the_half_that_is_not_needed_is_absent(train: str, file: Path) -> None:
    operands, products = CASES[train]
    artifacts = gradcut.compile(file, "mse", train=train)
    built = {node: found for node, found in backward(artifacts.training_model).items() if not node.startswith("mse")}
    assert built == {node: set(names.split()) for node, names in operands.items()}
    count = lambda model: sum(op in ("Gemm", "MatMul") for op in operators(model))
    assert count(artifacts.training_model) == count(artifacts.eval_model) + products


@pytest.mark.parametrize("train", CASES)
def test_what_is_built_is_torchs_gradient(train: str, file: Path) -> None:
    module = seeded(Network)
    loss = mse_loss(module(torch.tensor(BATCH["x"])), torch.tensor(BATCH["labels"]))
    wanted = lambda name: name == train or name.startswith(train.rstrip("*")) or name.endswith(train.lstrip("*"))
    expected = {name: array for name, array in torch_gradients(module, loss).items() if wanted(name)}
    close(gradcut.TrainingSession(gradcut.compile(file, "mse", train=train)).gradients(BATCH), expected)


def test_only_what_trains_has_state_and_moves(file: Path) -> None:
    session = gradcut.TrainingSession(gradcut.compile(file, "mse", train="*.bias", optimizer="adamw:weight_decay=0.5"))
    biases = {"first.bias", "norm.bias", "second.bias", "last.bias"}
    before = session.parameters()
    for _ in range(3):
        session.step(BATCH)
    moved = {name for name, array in session.parameters().items() if not np.array_equal(array, before[name])}
    assert moved == biases
    stateful = {name for name in session.artifacts.tensors if name not in session.parameters()}
    assert len(stateful) == 2 * len(biases)  # AdamW's two moments


KEPT = np.array([1, 0, 0, 1, 0, 0], bool)


def test_per_channel_only_the_channels_that_are_kept_are_computed_and_move(file: Path) -> None:
    """Two of the six output channels of `second`: the product that makes its weight's gradient has two rows."""
    masked = gradcut.gradient_mask(gradcut.load(file), ["second.weight", "second.bias"], KEPT, axis=0)
    session = gradcut.TrainingSession(gradcut.compile(masked, "mse", train="second", optimizer="sgd:lr=0.1"))
    module = seeded(Network)
    loss = mse_loss(module(torch.tensor(BATCH["x"])), torch.tensor(BATCH["labels"]))
    whole = {name: g for name, g in torch_gradients(module, loss).items() if name.startswith("second")}
    close(session.gradients(BATCH), {name: (g.T * KEPT).T for name, g in whole.items()})
    products = [n for n in session.artifacts.training_model.graph if n.op_type in ("Gemm", "MatMul")]
    shapes = [
        list(n.outputs[0].shape) for n in products if "node_linear_1:B" in n.metadata_props.get("gradcut.adjoint", "")
    ]
    assert shapes == [[2, 7]]
    before = session.parameters()
    session.step(BATCH)
    for name in ("second.weight", "second.bias"):
        changed = session.parameters()[name] != before[name]
        assert changed.reshape(6, -1).any(1).tolist() == KEPT.tolist()
