"""What torch's exporter leaves with its default optimize=True: what kept its name trains as in torch, the rest is told.

Folded weights, transposed or with a BatchNormalization in them, train where they are named.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

import gradcut
from gradcut.errors import GradcutWarning, SpecError
from gradcut.exporters import BETTER
from gradcut.inspection import inspect
from gradcut.runtime.check import check_gradients, require
from models import vision
from tests.test_tied import close, export

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 4}
ROWS = 3


class Logits(nn.Module):
    """A classifier of transformers that takes one tensor and gives one."""

    def __init__(self, inner: nn.Module, key: str) -> None:
        super().__init__()
        self.inner, self.key = inner, key

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(**{self.key: x}).logits


def tokens() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 50, (ROWS, 7)))


def images(size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((ROWS, 3, size, size)).astype(np.float32))


def bert() -> tuple[nn.Module, Tensor]:
    config = hf.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
    return Logits(hf.BertForSequenceClassification(config), "input_ids"), tokens()


def distilbert() -> tuple[nn.Module, Tensor]:
    config = hf.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=4, max_position_embeddings=16
    )
    return Logits(hf.DistilBertForSequenceClassification(config), "input_ids"), tokens()


def llama() -> tuple[nn.Module, Tensor]:
    config = hf.LlamaConfig(vocab_size=50, num_key_value_heads=1, pad_token_id=0, **SMALL)
    return Logits(hf.LlamaForSequenceClassification(config), "input_ids"), tokens()


def vit() -> tuple[nn.Module, Tensor]:
    return Logits(
        hf.ViTForImageClassification(hf.ViTConfig(image_size=16, patch_size=8, **SMALL)), "pixel_values"
    ), images(16)


def convnext() -> tuple[nn.Module, Tensor]:
    config = hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=4)
    return Logits(hf.ConvNextForImageClassification(config), "pixel_values"), images(32)


def mobilenet() -> tuple[nn.Module, Tensor]:
    config = hf.MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=4)
    return Logits(hf.MobileNetV2ForImageClassification(config), "pixel_values"), images(32)


def resnet18() -> tuple[nn.Module, Tensor]:
    return vision.ResNet18(8, 4), images(32)


#: How many parameters keep their names, and how many weights lose them.
MODELS: dict[Callable[[], tuple[nn.Module, Tensor]], tuple[int, int]] = {
    bert: (27, 12),
    distilbert: (27, 12),
    llama: (6, 15),
    vit: (27, 12),
    convnext: (26, 4),
    mobilenet: (2, 104),
    resnet18: (2, 40),
}


@dataclass(frozen=True)
class Case:
    path: Path
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    kept: int
    lost: int
    norms: bool


@pytest.fixture(scope="module", params=MODELS, ids=lambda build: build.__name__)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(1)
    module, x = request.param()
    shaken(module.eval())
    path = export(module, (x,), tmp_path_factory.mktemp("optimised") / "m.onnx", optimize=True)
    labels = torch.arange(ROWS) % 4
    F.cross_entropy(module(x), labels).backward()
    expected = {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    (name,) = [value.name for value in gradcut.load(path).graph.inputs]
    has_norms = any(isinstance(one, nn.BatchNorm2d) for one in module.modules())
    return Case(path, {name: x.numpy(), "labels": labels.numpy()}, expected, *MODELS[request.param], has_norms)


def shaken(module: nn.Module) -> None:
    """No two weights alike, as after training: the exporter merges those that are."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer += 0.1 * torch.rand_like(buffer)


@functools.cache
def lost(path: Path) -> list[str]:
    return [decision.name for decision in inspect(path).decisions if decision.overlooked]


def test_what_kept_its_name_has_the_gradient_of_torch(case: Case) -> None:
    with pytest.warns(GradcutWarning) as caught:
        artifacts = gradcut.compile(case.path, "cross_entropy", batch_norm="eval")
    found = gradcut.TrainingSession(artifacts, threads=1).gradients(case.feeds)
    assert len(found) == case.kept and found.keys() <= case.expected.keys()
    for name, gradient in found.items():
        close(gradient, case.expected[name], name)
    message, *others = [str(one.message) for one in caught if issubclass(one.category, GradcutWarning)]
    assert len(others) == case.norms and all(" seem folded into Conv (" in one and BETTER in one for one in others)
    first = ", ".join(lost(case.path)[:3])
    assert message == (
        f"{first} and {case.lost - 3} more stand where weights do, but the file does not name them parameters, as "
        "torch's exporter leaves it with optimize=True: they stay as they are, unless --train names them exactly; "
        'export with gradcut.torch.export(model, args, "model.onnx") to keep every parameter'
    )
    with pytest.raises(SpecError, match=r"^strict: .* stand where weights do"):
        gradcut.compile(case.path, "cross_entropy", strict=True)


def test_what_was_folded_trains_where_it_is_named(case: Case) -> None:
    """Its gradient is that of the folded tensor: finite differences in float64 say so."""
    names = lost(case.path)
    assert len(names) == case.lost
    some = list(dict.fromkeys([*names[:3], names[len(names) // 2], names[-1]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradcutWarning)
        artifacts = gradcut.compile(
            case.path, "cross_entropy", train=names, optimizer=gradcut.SGD(lr=1e-2), batch_norm="eval"
        )
    assert set(artifacts.trainable) == set(names)
    feeds = {name: array for name, array in case.feeds.items() if name != "labels"}
    report = require(check_gradients(case.path, feeds, some))
    assert report.forward.startswith("float64")
    session = gradcut.TrainingSession(artifacts, threads=1)
    losses = [session.step(case.feeds).loss for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
