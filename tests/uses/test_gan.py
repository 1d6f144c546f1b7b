"""Two players over one model and one state: each player's step leaves the other as it is, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import gradcut
from tests.uses.common import backward, close, export, normal, seeded, torch_gradients


class Gan(nn.Module):
    """Both players' losses, the generator's not saturating (Goodfellow et al., 2014), and what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, noise: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        made = self.generator(noise)
        on_real, on_made = self.discriminator(real), self.discriminator(made)
        return (softplus(-on_real) + softplus(on_made)).mean(), softplus(-on_made).mean(), made


LOSSES = {"discriminator": "d_loss", "generator": "g_loss"}
STEPS = {player: gradcut.Step(loss=loss, train=f"{player}.*") for player, loss in LOSSES.items()}


def batch(seed: int, n: int = 16) -> dict[str, np.ndarray]:
    """Points around (2, 2), and noise to make some from."""
    return {"noise": normal(seed, n, 3), "real": 0.5 * normal(seed + 1000, n, 2) + 2}


def noise(seed: int) -> dict[str, np.ndarray]:
    """What the generator's step reads: real points are none of its business."""
    return {"noise": batch(seed)["noise"]}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(seeded(Gan), batch(0), tmp_path_factory.mktemp("gan") / "gan.onnx", ["d_loss", "g_loss", "made"])


def test_the_other_players_parameters_are_bit_identical_after_a_step(file: Path) -> None:
    session = gradcut.TrainingSession(gradcut.compile(file, steps=STEPS, optimizer="adamw:lr=1e-2"))
    for turn in range(6):
        player = ("discriminator", "generator")[turn % 2]
        before = session.parameters()
        session.step(player, noise(turn) if player == "generator" else batch(turn))
        for name, array in session.parameters().items():
            assert (array.tobytes() != before[name].tobytes()) == name.startswith(player), (turn, name)


@pytest.mark.parametrize("player", LOSSES)
def test_each_players_gradient_is_torchs(player: str, file: Path) -> None:
    module = seeded(Gan)
    losses = dict(zip(LOSSES, module(**{name: torch.tensor(a) for name, a in batch(3).items()}), strict=False))
    expected = {n: g for n, g in torch_gradients(module, losses[player]).items() if n.startswith(player)}
    alone = gradcut.compile(file, LOSSES[player], train=f"{player}.*")
    close(gradcut.TrainingSession(alone).gradients(batch(3)), expected)


def test_the_discriminators_backward_ends_where_the_generator_begins(file: Path) -> None:
    """And the generator's goes through the discriminator's cotangents, but makes no gradient of its weights."""
    found = {
        player: backward(gradcut.compile(file, loss, train=f"{player}.*").training_model)
        for player, loss in LOSSES.items()
    }
    generator, on_real, on_made = (
        {f"node_linear{suffix}" for suffix in one} for one in (("", "_1"), ("_2", "_3"), ("_4", "_5"))
    )
    assert generator.isdisjoint(found["discriminator"]) and on_real | on_made <= found["discriminator"].keys()
    assert on_real.isdisjoint(found["generator"]) and generator | on_made <= found["generator"].keys()
    assert all(found["generator"][node] == {"A"} for node in on_made)


def test_a_mark_says_the_same_as_choosing_the_trainables(file: Path) -> None:
    """The generator made something: to the discriminator that is data."""
    chosen = gradcut.TrainingSession(gradcut.compile(file, "d_loss", train="discriminator.*"))
    marked = gradcut.TrainingSession(gradcut.compile(file, "d_loss", stop_at="generator"))
    close(marked.gradients(batch(4)), chosen.gradients(batch(4)), rtol=0, atol=0)


def test_what_is_made_moves_to_what_is_real(file: Path) -> None:
    session = gradcut.TrainingSession(gradcut.compile(file, steps=STEPS, optimizer="adam:lr=5e-3,beta1=0.5,beta2=0.9"))
    away = lambda made: np.linalg.norm(made.mean(0) - [2, 2])
    first = session.step("generator", noise(0)).outputs["made"]
    for turn in range(400):
        session.step("discriminator", batch(turn))
        made = session.step("generator", noise(turn)).outputs["made"]
    assert away(made) < 0.4 * away(first)
