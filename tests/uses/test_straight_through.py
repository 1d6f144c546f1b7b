"""Straight-through estimators: `x + stop(q(x) - x)` is q(x) forward and the identity backward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear, mse_loss

import gradcut
from tests.uses.common import close, export, normal, outputs, seeded, torch_gradients
from tests.written import parse

ESTIMATOR = """g (float[n] x) => (float[n] y) <float four = {4}> {
    %s
    away = Sub (q, x)
    held = gradcut.StopGradient (away)
    y = Add (x, held)
}"""
QUANTISERS = {
    "rounding": ("big = Mul (x, four)  r = Round (big)  q = Div (r, four)", lambda x: np.round(x * 4) / 4),
    "sign": ("q = Sign (x)", np.sign),
    "clipped rounding": ("c = Clip (x)  r = Round (c)  q = Identity (r)", np.round),
    "through int8": ("i = Cast <to = 3> (x)  q = Cast <to = 1> (i)", np.trunc),
    "a curve with a NaN in its derivative": (
        "z = Sub (x, x)  s = Sqrt (z)  m = Mul (s, z)  q = Add (m, four)",
        lambda x: np.full_like(x, 4),
    ),
}
X = np.float32([-2.2, -0.5, 0.0, 0.3, 1.7])


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_the_gradient_equals_the_identity(quantiser: str) -> None:
    nodes, q = QUANTISERS[quantiser]
    found = outputs(gradcut.vjp(parse(ESTIMATOR % nodes), wrt=["x"], of=["y"]), {"x": X, "y_grad": [1, -2, 3, 4, 5]})
    np.testing.assert_allclose(found["y"], q(X), atol=1e-6)
    assert found["x_grad"].tolist() == [1, -2, 3, 4, 5]


def test_without_it_the_rounding_is_a_cut_that_is_said() -> None:
    text = "g (float[n] x) => (float[n] y) { q = Round (x)  y = Mul (q, x) }"
    (edge,) = gradcut.analyze(parse(text), of=["y"], wrt=["x"]).cut
    assert (edge.value, edge.node, edge.reason) == ("q", "Mul_y", "zero-derivative")


class Quantised(nn.Module):
    """A perceptron whose weights and activations are rounded to steps of 1/8, straight-through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

    def fake(self, x: torch.Tensor) -> torch.Tensor:
        return x + (torch.round(x * 8) / 8 - x).detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(linear(x, self.fake(self.first.weight), self.first.bias))
        return linear(self.fake(h), self.fake(self.last.weight), self.last.bias)


BATCH = {"x": normal(0, 32, 4)}
BATCH["labels"] = np.stack([BATCH["x"][:, 0] * BATCH["x"][:, 1], np.abs(BATCH["x"][:, 2])], 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(seeded(Quantised), {"x": BATCH["x"]}, tmp_path_factory.mktemp("quantised") / "q.onnx")


def test_quantisation_aware_gradients_are_those_of_torch(file: Path) -> None:
    module = seeded(Quantised)
    expected = torch_gradients(module, mse_loss(module(torch.tensor(BATCH["x"])), torch.tensor(BATCH["labels"])))
    assert len(expected) == 4
    close(gradcut.TrainingSession(gradcut.compile(file, "mse")).gradients(BATCH), expected)


def test_quantisation_aware_training_learns(file: Path) -> None:
    session = gradcut.TrainingSession(gradcut.compile(file, "mse", optimizer="adam:lr=1e-2"))
    losses = [session.step(BATCH).loss for _ in range(200)]
    assert losses[-1] < 0.25 * losses[0]


def test_by_name_it_is_the_same_as_written_with_a_mark() -> None:
    plain = (
        "g (float[n] x) => (float[n] y) <float four = {4}> { big = Mul (x, four)  r = Round (big)  y = Div (r, four) }"
    )
    derived = gradcut.vjp(gradcut.straight_through(parse(plain), "y", input="x"), wrt=["x"], of=["y"])
    found = outputs(derived, {"x": X, "y_grad": [1, -2, 3, 4, 5]})
    assert found["y"].tolist() == (np.round(X * 4) / 4).tolist()
    assert found["x_grad"].tolist() == [1, -2, 3, 4, 5]
