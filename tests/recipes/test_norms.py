"""The modes of an encoder's norms: what trains runs on batch statistics, whatever the exporter had said of modes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradcut.torch
from gradcut import recipes

SEED = 12
X = np.random.default_rng(SEED).standard_normal((6, 4)).astype(np.float32)


def exported(folder: Path) -> tuple[nn.Module, Path]:
    """A norm that is in inference mode, with running statistics that differ from any batch's."""
    torch.manual_seed(SEED)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval()
    encoder[1].running_mean.fill_(2.0)
    return encoder, gradcut.torch.export(encoder, (torch.zeros(2, 4),), folder / "encoder.onnx")


@pytest.mark.parametrize("train", [None, ["*"], ["1.*", "projector.*"]])
def test_a_norm_that_trains_runs_on_the_batch_however_it_was_exported(train: list[str] | None, tmp_path: Path) -> None:
    encoder, path = exported(tmp_path)
    program = recipes.byol(path, projector=8, dim=6, predictor=4, train=train, optimizer="sgd:lr=0")
    session = program.session()
    start = session.tensors()
    result = session.step(X, X)
    head = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)).train()
    with torch.no_grad():
        for name, tensor in head.named_parameters():
            tensor.copy_(torch.from_numpy(start[f"projector.{name}"]))
        z = head(encoder.train()(torch.from_numpy(X))).numpy()
    np.testing.assert_allclose(result.outputs["z1"], z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.outputs["t1"], z, rtol=1e-4, atol=1e-5)
    moved = session.tensors()
    for scope in ("", "target."):
        assert not np.array_equal(moved[f"{scope}1.running_mean"], start[f"{scope}1.running_mean"])


def test_a_norm_that_does_not_train_stays_in_inference(tmp_path: Path) -> None:
    _, path = exported(tmp_path)
    session = recipes.simclr(path, projector=8, dim=6, train=["projector.*"], optimizer="sgd:lr=0.1").session()
    start = session.tensors()
    session.step(X, -X)
    still = [name for name in start if not name.startswith("projector.")]
    assert len(still) == 6
    assert all(session.tensors()[name].tobytes() == start[name].tobytes() for name in still)
