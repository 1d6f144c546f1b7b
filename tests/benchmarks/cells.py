"""What is measured: models, what trains in each, and the same training step on both sides."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks.ort_training import legacy_export

if TYPE_CHECKING:
    import torch

THREADS = 2
SIZE = 64  # of MobileNetV2's images
OWN = frozenset({"mlp", "mobilenetv2"})  # beside the zoo's
Feeds = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Cell:
    """One model and one choice of what trains, as patterns over parameter names (None: all)."""

    model: str
    mask: str
    train: tuple[str, ...] | None
    batch: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.mask}"


CELLS = [
    Cell("mlp", "full", None, 64),
    Cell("mlp", "last block", ("body.4.*", "head.*"), 64),
    Cell("mlp", "head", ("head.*",), 64),
    Cell("bert_mini", "full", None, 8),
    Cell("bert_mini", "last block", ("bert.encoder.layer.3.*", "bert.pooler.*", "classifier.*"), 8),
    Cell("bert_mini", "head", ("classifier.*",), 8),
    Cell("resnet18", "full", None, 16),
    Cell("resnet18", "last block", ("layer4.1.*", "fc.*"), 16),
    Cell("resnet18", "head", ("fc.*",), 16),
    Cell("mobilenetv2", "full", None, 16),
    Cell("mobilenetv2", "last block", ("mobilenet_v2.layer.15.*", "mobilenet_v2.conv_1x1.*", "classifier.*"), 16),
    Cell("mobilenetv2", "head", ("classifier.*",), 16),
]


def by_name(name: str) -> Cell:
    return next(cell for cell in CELLS if cell.name == name)


def torch_module(model: str) -> torch.nn.Module:
    """The module that both sides train."""
    from models import zoo

    own = {"mlp": large_mlp, "mobilenetv2": mobilenet}
    return zoo.seeded(own[model]) if model in own else zoo.torch_module(model)


def mobilenet() -> torch.nn.Module:
    """MobileNetV2 of width 1 (Sandler et al. 2018), ten classes; running statistics away from 0 and 1."""
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    class MobileNet(MobileNetV2ForImageClassification):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = super().forward(pixel_values=image).logits
            return logits

    module = MobileNet(MobileNetV2Config(image_size=SIZE, num_labels=10, tf_padding=False))
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0.0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return module


def large_mlp() -> torch.nn.Module:
    """Three layers of 2,048 and a head: 9.4 M parameters."""
    import torch

    class LargeMlp(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[torch.nn.Module] = []
            for inputs in (512, 2048, 2048):
                layers += [torch.nn.Linear(inputs, 2048), torch.nn.ReLU()]
            self.body = torch.nn.Sequential(*layers)
            self.head = torch.nn.Linear(2048, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(x))
            return logits

    return LargeMlp()


def feeds(model: str, batch: int) -> Feeds:
    """Inputs and labels for one step."""
    rng = np.random.default_rng(0)
    own = {"mlp": ("x", (512,)), "mobilenetv2": ("image", (3, SIZE, SIZE))}
    if model in own:
        name, shape = own[model]
        values = rng.standard_normal((batch, *shape)).astype(np.float32)
        return {name: values, "labels": rng.integers(0, 10, batch)}
    from models import zoo

    labels = zoo.example_labels(model, batch)
    return {**zoo.example_inputs(model, batch), "labels": labels}


def onnx_file(model: str, folder: Path) -> Path:
    """The exported model, made once per run."""
    from models import zoo

    path = folder / f"{model}.onnx"
    if path.is_file():
        return path
    if model in OWN:
        inputs = {name: array for name, array in feeds(model, 4).items() if name != "labels"}
        return zoo.export_module(torch_module(model).eval(), inputs, path)
    return zoo.export(model, path)


def legacy_file(model: str, folder: Path) -> Path:
    """The model as ONNX Runtime Training's generator takes it, made once per run."""
    path = folder / f"{model}.legacy.onnx"
    if path.is_file():
        return path
    inputs = {name: array for name, array in feeds(model, 4).items() if name != "labels"}
    return legacy_export(torch_module(model), inputs, path)


def torch_step(cell: Cell, data: Feeds) -> Callable[[], float]:
    """One eager step with the fused optimizer; a batch norm that trains is in training mode, others are not."""
    import torch

    torch.set_num_threads(THREADS)
    module = torch_module(cell.model).eval()
    chosen = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(cell.train is None or any(fnmatch.fnmatch(name, p) for p in cell.train))
        chosen += [parameter] if parameter.requires_grad else []
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.weight.requires_grad:
            layer.train()
    optimizer = torch.optim.AdamW(chosen, lr=1e-4, fused=True)
    inputs = [torch.from_numpy(data[name]) for name in data if name != "labels"]
    labels = torch.from_numpy(data["labels"])

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(*inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def gradcut_step(folder: Path, data: Feeds) -> Callable[[], float]:
    """One step of saved artifacts."""
    import gradcut

    session = gradcut.TrainingSession(folder, threads=THREADS)
    return lambda: session.step(data).loss


def compiled(cell: Cell, folder: Path) -> Path:
    """The artifacts of a cell, compiled once per run."""
    import gradcut

    target = folder / cell.name.replace("/", "_").replace(" ", "_")
    if not target.is_dir():
        train = None if cell.train is None else list(cell.train)
        source = onnx_file(cell.model, folder)
        gradcut.compile(source, loss="cross_entropy", train=train, optimizer=gradcut.AdamW(lr=1e-4)).save(target)
    return target


def inference(cell: Cell, folder: Path, data: Feeds) -> Callable[[], object]:
    """Plain inference of the same file in the same runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(onnx_file(cell.model, folder)), options, providers=["CPUExecutionProvider"])
    inputs = {name: array for name, array in data.items() if name != "labels"}
    return lambda: session.run(None, inputs)
