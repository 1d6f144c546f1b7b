"""BatchNormalization and Dropout are in the file as their modules' modes said."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import gradcut
from gradcut.errors import GradcutWarning, TorchExportError
from tests.torch_export.exported import check_gradients, export, run, torch_gradients

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


class Scored(nn.Module):
    """Layers in a row, and the mean square of what they give."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layers(x) - 0.5).square().mean()


def scored(*layers: nn.Module) -> Scored:
    """Fresh layers: zeros and ones where torch begins with them."""
    torch.manual_seed(5)
    return Scored(nn.Linear(4, 4), nn.Tanh(), *layers, nn.Linear(4, 3))


def nodes(path: Path, kind: str) -> list[dict[str, Any]]:
    found = [node for node in onnx.load(path).graph.node if node.op_type == kind]
    return [{one.name: onnx.helper.get_attribute_value(one) for one in node.attribute} for node in found]


def agree(module: nn.Module, path: Path) -> None:
    mine = copy.deepcopy(module)
    loss = mine(X)
    for _ in range(2):  # the second time as the first: nothing moves in a file
        np.testing.assert_allclose(run(path, {"x": X})[0], loss.item(), rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradcutWarning)
        session = gradcut.TrainingSession(gradcut.compile(path), threads=1)
    check_gradients(session.gradients({"x": X.numpy()}), torch_gradients(mine, loss))


NORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.25, "eps": 1e-2},
    "no scale": {"affine": False},
    "no statistics": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
}


MODES = [(options, training) for options in NORMS for training in (True, False)]


class Beside(nn.Module):
    """Each norm, in each mode, between layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(scored(nn.BatchNorm1d(4, **NORMS[one])).train(mode) for one, mode in MODES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum()


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Beside, Path]:
    module = Beside()
    return module, export(module, X[:3], tmp_path_factory.mktemp("norms") / "m.onnx")


def test_batch_norms_keep_their_modes(beside: tuple[Beside, Path]) -> None:
    module, path = beside
    found = nodes(path, "BatchNormalization")
    assert len(found) == len(MODES)
    for (options, training), part, node in zip(MODES, module.parts, found, strict=True):
        norm = part.layers[2]
        batch = training and norm.track_running_stats  # without statistics of its own it is written out
        assert node.get("training_mode", 0) == int(batch), options
        if batch:
            assert node["momentum"] == pytest.approx(1 - norm.momentum)
            assert node["epsilon"] == pytest.approx(norm.eps)


def test_batch_norms_compute_and_train_as_in_torch(beside: tuple[Beside, Path]) -> None:
    agree(*beside)


def test_each_norm_has_its_own_mode(tmp_path: Path) -> None:
    module = scored(nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)).train()
    module.layers[3].eval()
    path = export(module, X[:3], tmp_path / "m.onnx")
    assert [one.get("training_mode", 0) for one in nodes(path, "BatchNormalization")] == [1, 0, 1]
    agree(module, path)
    with pytest.warns(GradcutWarning, match=r"^BatchNormalization \S+ stays in inference mode, as in the torch module"):
        artifacts = gradcut.compile(path)
    assert sorted(artifacts.manifest["batch_norm"].values()) == ["eval", "train", "train"]
    assert set(gradcut.compile(path, batch_norm="train").manifest["batch_norm"].values()) == {"train"}
    assert set(gradcut.compile(path, batch_norm="eval").manifest["batch_norm"].values()) == {"eval"}
    with pytest.warns(GradcutWarning):
        frozen = gradcut.compile(path, freeze=["layers.2"])  # a freeze asked for is inference
    assert list(frozen.manifest["batch_norm"].values()) == ["eval", "eval", "train"]


def test_a_frozen_norm_in_training_mode_still_takes_the_batch(tmp_path: Path) -> None:
    """As in torch: its scale and bias stay, its statistics move."""
    module = scored(nn.BatchNorm1d(4)).train()
    module.layers[2].requires_grad_(False)
    path = export(module, X[:3], tmp_path / "m.onnx")
    agree(module, path)
    session = gradcut.TrainingSession(gradcut.compile(path, optimizer=gradcut.SGD(lr=0.0)), threads=1)
    session.step({"x": X.numpy()})
    module(X)
    found = session._slots["layers.2.running_var"].numpy()
    np.testing.assert_allclose(found, module.layers[2].running_var.numpy(), rtol=1e-5)
    assert set(session.artifacts.trainable) == {"layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"}


def test_the_module_does_not_move(tmp_path: Path) -> None:
    module = scored(nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(module.state_dict())
    export(module, X, tmp_path / "m.onnx")
    assert module.training and all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_buffers_that_move_are_no_outputs(tmp_path: Path) -> None:
    path = export(scored(nn.BatchNorm1d(4)).train(), X, tmp_path / "m.onnx")
    graph = onnx.load(path).graph
    assert [value.name for value in graph.output] == ["output"] and [value.name for value in graph.input] == ["x"]
    assert "layers.2.num_batches_tracked" not in {name for node in graph.node for name in node.input}


def test_a_cumulative_average_is_refused(tmp_path: Path) -> None:
    module = scored(nn.BatchNorm1d(4, momentum=None)).train()
    message = r"^layers\.2 \(BatchNorm1d\) has momentum=None, a cumulative average, which ONNX does not have: give it"
    with pytest.raises(TorchExportError, match=message):
        gradcut.torch.export(module, X, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    agree(module.eval(), export(module.eval(), X, tmp_path / "m.onnx"))


def test_an_instance_norm_whose_statistics_move_is_warned_of(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Scored(nn.Conv1d(4, 4, 1), nn.InstanceNorm1d(4, affine=True, track_running_stats=True))
    with pytest.warns(GradcutWarning, match=r"^layers\.1: an InstanceNorm in training mode moves its"):
        gradcut.torch.export(module, torch.randn(3, 4, 5), tmp_path / "m.onnx")
    export(module.eval(), torch.randn(3, 4, 5), tmp_path / "m.onnx")


# --- Dropout -------------------------------------------------------------------------------------------------


def dropouts(path: Path) -> list[tuple[float, bool]]:
    """Ratio and mode of each Dropout."""
    graph = onnx.load(path).graph
    constants = {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    found = [node for node in graph.node if node.op_type == "Dropout"]
    return [
        (round(float(constants[node.input[1]]), 6), len(node.input) > 2 and bool(constants[node.input[2]]))
        for node in found
    ]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_keeps_its_mode(training: bool, tmp_path: Path) -> None:
    module = scored(nn.Dropout(0.25)).train(training)
    path = export(module, X, tmp_path / "m.onnx")
    artifacts = gradcut.compile(path)
    draws = artifacts.manifest["names"]["seed"] is not None
    assert dropouts(path) == [(0.25, training)] and draws == training
    if not training:
        agree(module, path)
        assert gradcut.compile(path, dropout="train").manifest["names"]["seed"] is not None


def test_each_dropout_has_its_own_mode(tmp_path: Path) -> None:
    module = scored(nn.Dropout(0.25), nn.Dropout(0.5), nn.Dropout(0.75)).train()
    module.layers[3].eval()
    assert dropouts(export(module, X, tmp_path / "m.onnx")) == [(0.25, True), (0.5, False), (0.75, True)]


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.125, batch_first=True)
        self.recurrent = nn.LSTM(8, 4, num_layers=2, dropout=0.25, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(self.layer(x))[0]


@pytest.mark.parametrize(("opset", "training"), [(21, True), (23, False)])
def test_attention_and_recurrence_drop_as_their_modules_say(opset: int, training: bool, tmp_path: Path) -> None:
    """Attention's own Dropout has no mode in what torch writes."""
    path = export(Sequences().train(training), torch.randn(3, 5, 8), tmp_path / "a.onnx", opset=opset)
    if training:
        assert dropouts(path) == [(0.125, True)] * 4 + [(0.25, True)]
    else:
        assert not any(mode for _, mode in dropouts(path))


def test_a_whole_channel_is_dropped(tmp_path: Path) -> None:
    """Dropout2d is drawn by hand in what torch writes; gradcut draws it from seed and step."""
    torch.manual_seed(0)
    module = Scored(nn.Conv2d(2, 8, 1), nn.Dropout2d(0.5)).train()
    module.forward = lambda x: module.layers(x)  # type: ignore[method-assign]
    path = export(module, torch.randn(3, 2, 4, 4), tmp_path / "m.onnx")
    x = torch.rand(16, 2, 4, 4) + 1.0
    ratio = run(path, {"x": x})[0] / module.layers[0](x).detach().numpy()
    assert set(np.unique(ratio.round(2))) == {0.0, 2.0} and ratio.reshape(16, 8, -1).std(-1).max() < 1e-3
    assert gradcut.compile(path, loss="mse").manifest["names"]["seed"] is not None


def test_a_norm_without_statistics_of_its_own_is_not_warned_of(tmp_path: Path) -> None:
    path = export(scored(nn.BatchNorm1d(4, track_running_stats=False)), X, tmp_path / "m.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradcutWarning)
        gradcut.compile(path)
