"""Recipes in plain torch, written from the papers, for the compiled ones to follow; and what both start from."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradcut.recipes import Program
from models import encoder as encoders
from models.zoo import MODELS

Array = np.ndarray[Any, Any]
torch.set_num_threads(1)


@functools.cache
def encoder_file(seed: int = 0) -> Path:
    """The digits' encoder, exported; do not write to it."""
    return encoders.export(Path(tempfile.mkdtemp(prefix="gradcut-encoder-")) / "encoder.onnx", seed)


@functools.cache
def digits() -> tuple[Array, Array]:
    """Images [1797, 1, 8, 8] and labels."""
    with np.load(MODELS / "digits.npz") as data:
        return data["image"], data["labels"]


def view_batches(steps: int, batch: int, seed: int, views: int = 2) -> list[tuple[Array, ...]]:
    """Noisy views of random images, the same for both sides."""
    draw, images = np.random.default_rng(seed), digits()[0]
    found = []
    for _ in range(steps):
        rows = draw.choice(len(images), batch, replace=False)
        noise = draw.normal(0, 0.1, (views, batch, *images.shape[1:]))
        found.append(tuple((images[rows] + one).astype(np.float32) for one in noise))
    return found


def projector(width: int, hidden: int, out: int, last_bn: bool) -> nn.Sequential:
    """Three layers, as the published code of SimSiam has them."""
    last = (
        [nn.Linear(hidden, out, bias=False), nn.BatchNorm1d(out, affine=False)] if last_bn else [nn.Linear(hidden, out)]
    )
    return nn.Sequential(
        *(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
        *(nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
        *last,
    )


def bottleneck(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


def with_weights(module: nn.Module, program: Program, prefix: str = "") -> nn.Module:
    """The module with the weights of the same names that a program starts from, in train mode."""
    initial = program.composed.model.graph.initializers
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("num_batches_tracked"):
                continue
            tensor = initial[f"{prefix}{name}"].const_value
            assert tensor is not None
            value.copy_(torch.from_numpy(np.array(tensor.numpy())))
    return module.train()


class SimSiam(nn.Module):
    """p1, p2, z1, z2 of two views."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        config: Any = program.recipe
        self.encoder = with_weights(encoders.module(), program)
        self.projector = with_weights(
            projector(256, config.projector, config.dim, config.last_bn), program, "projector."
        )
        self.predictor: nn.Module = nn.Identity()
        if config.predictor:
            self.predictor = with_weights(bottleneck(config.dim, config.predictor, config.dim), program, "predictor.")

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        z1, z2 = self.projector(self.encoder(x1)), self.projector(self.encoder(x2))
        return self.predictor(z1), self.predictor(z2), z1, z2


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p, z, dim=1).mean()


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, stop: bool = True) -> Tensor:
    t1, t2 = (z1.detach(), z2.detach()) if stop else (z1, z2)
    return 0.5 * negative_cosine(p1, t2) + 0.5 * negative_cosine(p2, t1)


def named_tensors(modules: Mapping[str, nn.Module], buffers: bool = False) -> dict[str, Tensor]:
    """Parameters, or running statistics, of several modules by the names that a program gives them."""
    found = {}
    for prefix, module in modules.items():
        for name, value in module.named_buffers() if buffers else module.named_parameters():
            if not name.endswith("num_batches_tracked"):
                found[f"{prefix}{name}"] = value.detach()
    return found


def largest_difference(ours: Mapping[str, Array], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """Over tensors of the names on their side: the largest difference of an element, and whose it is.

    Of a tensor whose elements are above 1, such as a running variance, as a share of the largest.
    """
    worst = (-1.0, "")
    for name, value in theirs.items():
        wanted = value.numpy()
        worst = max(worst, (float(np.abs(ours[name] - wanted).max() / max(1.0, np.abs(wanted).max())), name))
    return worst


def sgd(modules: Sequence[nn.Module], **options: float) -> torch.optim.SGD:
    return torch.optim.SGD([p for module in modules for p in module.parameters()], **options)  # type: ignore[arg-type]


class Network(nn.Module):
    """The digits' encoder and heads one behind the other, with the weights that a program starts from."""

    def __init__(self, program: Program, **heads: nn.Module) -> None:
        super().__init__()
        self.parts: dict[str, nn.Module] = {"": with_weights(encoders.module(), program)}
        self.parts |= {f"{name}.": with_weights(head, program, f"{name}.") for name, head in heads.items()}
        self.all = nn.ModuleList(self.parts.values())

    def forward(self, x: Array | Tensor) -> Tensor:
        value = torch.as_tensor(x)
        for part in self.all:
            value = part(value)
        return value

    def tensors(self, scope: str = "", buffers: bool = False) -> dict[str, Tensor]:
        return named_tensors({f"{scope}{prefix}": part for prefix, part in self.parts.items()}, buffers)


def averaged(target: nn.Module, online: nn.Module, decay: float) -> None:
    """Every parameter of the target moves to the online one's."""
    with torch.no_grad():
        for mine, its in zip(target.parameters(), online.parameters(), strict=True):
            mine.mul_(decay).add_(its, alpha=1 - decay)
