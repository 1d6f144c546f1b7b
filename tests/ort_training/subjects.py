"""The models that are trained, each as a file and as torch code over the tensors of that file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]
CLASSES, ROWS, STEPS = 10, 16, 5
DIGITS = Path(__file__).parents[2] / "models" / "digits.onnx"
MLP = """
<ir_version: 10, opset_import: ["" : 21]>
mlp (float[n, 64] x) => (float[n, 10] logits) {
    a = Gemm <transB = 1> (x, l1_weight, l1_bias)
    b = Relu (a)
    c = Gemm <transB = 1> (b, l2_weight, l2_bias)
    d = Tanh (c)
    logits = Gemm <transB = 1> (d, head_weight, head_bias)
}
"""
SIZES = {"l1": (128, 64), "l2": (128, 128), "head": (10, 128)}


def write_mlp(folder: Path) -> Path:
    """The MLP with weights of a fixed seed, as a file."""
    model, rng = onnx.parser.parse_model(MLP), np.random.default_rng(0)
    for name, (rows, columns) in SIZES.items():
        weight = rng.normal(size=(rows, columns)) / np.sqrt(columns)
        for kind, array in (("weight", weight), ("bias", rng.normal(size=rows) / 10)):
            tensor = onnx.numpy_helper.from_array(array.astype(np.float32), f"{name}_{kind}")
            model.graph.initializer.append(tensor)
    onnx.save(model, folder / "mlp.onnx")
    return folder / "mlp.onnx"


def write_digits(folder: Path) -> Path:
    return DIGITS


def mlp(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    hidden = torch.relu(F.linear(x, p["l1_weight"], p["l1_bias"]))
    hidden = torch.tanh(F.linear(hidden, p["l2_weight"], p["l2_bias"]))
    return F.linear(hidden, p["head_weight"], p["head_bias"])


def digits(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    """Three convolutions with batch normalization; in training its statistics move."""
    for i in (1, 2, 3):
        norm = [p[f"encoder.bn{i}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
        x = F.conv2d(x, p[f"encoder.conv{i}.weight"], padding=1)
        x = torch.relu(F.batch_norm(x, *norm, training=training, momentum=0.1))
        x = F.avg_pool2d(x, 2) if i > 1 else x
    return F.linear(x.flatten(1), p["head.weight"], p["head.bias"])


@dataclass(frozen=True)
class Subject:
    """A model and what trains in it; `inputs` is the shape of a row."""

    write: Callable[[Path], Path]
    forward: Callable[[Tensors, torch.Tensor, bool], torch.Tensor]
    inputs: tuple[int, ...]
    train: tuple[str, ...] | None

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(1)
        draw = lambda: (
            rng.random((ROWS, *self.inputs), dtype=np.float32),
            rng.integers(0, CLASSES, ROWS),
        )
        return [draw() for _ in range(STEPS)]


SUBJECTS = {
    "mlp-full": Subject(write_mlp, mlp, (64,), None),
    "mlp-head": Subject(write_mlp, mlp, (64,), ("head_*",)),
    "digits-full": Subject(write_digits, digits, (1, 8, 8), None),
    "digits-head": Subject(write_digits, digits, (1, 8, 8), ("head.*",)),
}


def tensors(path: Path) -> Tensors:
    """The initializers of a file."""
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    return {name: torch.tensor(array) for name, array in arrays.items()}


def torch_losses(
    subject: Subject, p: Tensors, trained: tuple[str, ...], make: Callable[..., torch.optim.Optimizer]
) -> list[float]:
    """The loss before each step; `p` is changed."""
    for name in trained:
        p[name].requires_grad_(True)
    optimizer = make([p[name] for name in trained])
    losses = []
    for x, labels in subject.batches():
        scores = subject.forward(p, torch.tensor(x), subject.train is None)
        loss = F.cross_entropy(scores, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
