"""``x.detach()`` survives an export with ``optimize=False`` as metadata, and stops gradients as it did in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import gradcut
from models import zoo


class Detached(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = torch.nn.Linear(4, 3)
        self.predict = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(self.encode(x))
        return self.predict(z) * z.detach()


def test_a_detach_in_the_export_is_a_mark(tmp_path: Path) -> None:
    module = zoo.seeded(Detached).eval()
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    path = zoo.export_module(module, {"x": x}, tmp_path / "detached.onnx")
    session = gradcut.TrainingSession(gradcut.compile(path, loss="mse"))
    found = session.gradients({"x": x, "labels": np.zeros((5, 3), np.float32)})
    (module(torch.from_numpy(x)) ** 2).mean().backward()
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_its_cut_is_a_mark_and_the_forward_is_what_it_was(tmp_path: Path) -> None:
    module = zoo.seeded(Detached).eval()
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    path = zoo.export_module(module, {"x": x}, tmp_path / "detached.onnx")
    cut = gradcut.analyze(path, of=["logits"], wrt=["encode.weight"]).cut
    assert "mark" in {edge.reason for edge in cut}
    session = gradcut.TrainingSession(gradcut.compile(path, loss="mse"))
    result = session.evaluate({"x": x, "labels": np.zeros((5, 3), np.float32)})
    np.testing.assert_allclose(result.outputs["logits"], module(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
