"""Two players as one exported model: a generator and a discriminator that sees both the fake and the real."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import gradcut

ROWS, NOISE, SIZE = 16, 4, 6


class Players(nn.Module):
    """Batch norm in both, so that running statistics are there to be moved by the wrong step.

    No bias before it: its gradient is zero but for rounding, and Adam makes steps of that.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.g = nn.Sequential(nn.Linear(NOISE, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, SIZE))
        self.d = nn.Sequential(nn.Linear(SIZE, 16, bias=False), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fake = self.g(z)
        return fake, self.d(fake), self.d(x)


@functools.cache
def exported() -> bytes:
    """The module in inference mode, as a file holds it."""
    rows = torch.export.Dim("rows")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "players.onnx"
        torch.onnx.export(
            Players().eval(),
            (torch.zeros(3, NOISE), torch.zeros(3, SIZE)),
            path,
            dynamo=True,
            optimize=False,
            external_data=False,
            verbose=False,
            input_names=["z", "x"],
            output_names=["fake", "on_fake", "on_real"],
            dynamic_shapes=({0: rows}, {0: rows}),
            opset_version=20,
        )
        return path.read_bytes()


STEPS = {
    "discriminator": gradcut.Step(
        loss="bce_with_logits:output=on_real,labels=ones + bce_with_logits:output=on_fake,labels=zeros",
        train=["d.*"],
        optimizer=gradcut.SGD(lr=0.05, momentum=0.9),
    ),
    "generator": gradcut.Step(
        loss="bce_with_logits:output=on_fake,labels=ones", train="g.*", optimizer="adam:lr=2e-3,beta1=0.5"
    ),
}


def feeds(name: str, batch: int) -> dict[str, np.ndarray]:
    """What one of the steps wants: the generator is never shown a real row."""
    rng = np.random.default_rng(batch)
    z, x = (rng.standard_normal((ROWS, size), dtype=np.float32) for size in (NOISE, SIZE))
    ones = np.ones((ROWS, 1), np.float32)
    return {"z": z, "ones": ones} | ({"x": x + 2.0, "zeros": 0 * ones} if name == "discriminator" else {})
