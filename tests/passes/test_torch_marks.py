"""What torch stopped and its exporter wrote into metadata alone: ``Embedding(padding_idx=k)``; detach: test_detach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import gradcut
from gradcut.runtime.check import check_gradients, require
from models import zoo


class Padded(torch.nn.Module):
    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(6, 3, padding_idx=padding)
        with torch.no_grad():
            self.table.weight.normal_()  # torch writes zeros at the padding; what is there does not matter
        self.head = torch.nn.Linear(3, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.head(torch.tanh(self.table(ids))).sum(1)
        return rows


IDS = np.array([[2, 0, 2, 5], [1, 2, 4, 0]])


def export(padding: int | None, folder: Path) -> tuple[Padded, Path]:
    module = zoo.seeded(lambda: Padded(padding)).eval()
    return module, zoo.export_module(module, {"ids": IDS}, folder / "padded.onnx")


@pytest.mark.parametrize("padding", [2, 0, -1, None])
def test_the_padding_row_has_no_gradient_where_torch_gives_it_none(padding: int | None, tmp_path: Path) -> None:
    module, path = export(padding, tmp_path)
    session = gradcut.TrainingSession(gradcut.compile(path, loss="mse"), threads=1)
    found = session.gradients({"ids": IDS, "labels": np.zeros((2, 2), np.float32)})
    (module(torch.from_numpy(IDS)) ** 2).mean().backward()
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)
    rows = np.flatnonzero(found["table.weight"].any(1))
    assert list(rows) == [row for row in (0, 1, 2, 4, 5) if padding is None or row != padding % 6]


def test_it_is_a_mark_for_every_question_and_costs_nothing_in_what_runs_forward(tmp_path: Path) -> None:
    _, path = export(2, tmp_path)
    cut = gradcut.analyze(path, of=["logits"], wrt=["table.weight"]).cut
    assert [edge.reason for edge in cut if edge.node.startswith("embedding")] == ["mark"]
    require(check_gradients(str(path), {"ids": IDS}, ["table.weight", "embedding"]))
    artifacts = gradcut.compile(path, loss="mse", train=["head"])
    given = [node.op_type for node in onnx.load(path).graph.node]
    for graph in (artifacts.eval_model, artifacts.training_model):
        kinds = [node.op_type for node in graph.graph]
        assert given.count("Where") == kinds.count("Where") == kinds.count("Equal") == 0
    emitted = [node.op_type for node in gradcut.compile(path, loss="mse").training_model.graph]
    assert emitted.count("Where") == 1
