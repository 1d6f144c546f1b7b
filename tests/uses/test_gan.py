"""Two players over one model: each player's step leaves the other's parameters as they are, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import gradcut
from tests.uses.common import backward, close, export, normal, seeded, torch_gradients


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, noise: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        made = self.generator(noise)
        return self.discriminator(real), self.discriminator(made), made


BATCH = {"noise": normal(0, 8, 3), "real": normal(1, 8, 2) + 2}
ONES, ZEROS = np.ones((8, 1), np.float32), np.zeros((8, 1), np.float32)
PLAYERS = {
    "discriminator": (
        "bce_with_logits:output=on_real,labels=yes + bce_with_logits:output=on_made,labels=no",
        {**BATCH, "yes": ONES, "no": ZEROS},
    ),
    "generator": ("bce_with_logits:output=on_made,labels=yes", {**BATCH, "yes": ONES}),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(seeded(Gan), BATCH, tmp_path_factory.mktemp("gan") / "gan.onnx", ["on_real", "on_made", "made"])


def losses() -> tuple[Gan, dict[str, torch.Tensor]]:
    module = seeded(Gan)
    on_real, on_made, _ = module(**{name: torch.tensor(array) for name, array in BATCH.items()})
    ones, zeros = torch.tensor(ONES), torch.tensor(ZEROS)
    return module, {"discriminator": bce(on_real, ones) + bce(on_made, zeros), "generator": bce(on_made, ones)}


@pytest.mark.parametrize("player", PLAYERS)
def test_the_other_players_parameters_are_bit_identical_after_a_step(player: str, file: Path) -> None:
    loss, feeds = PLAYERS[player]
    session = gradcut.TrainingSession(gradcut.compile(file, loss, train=f"{player}.*", optimizer="adamw:lr=1e-2"))
    before = session.parameters()
    session.step(feeds)
    for name, array in session.parameters().items():
        assert (array.tobytes() != before[name].tobytes()) == name.startswith(player), name


@pytest.mark.parametrize("player", PLAYERS)
def test_each_players_gradient_is_torchs(player: str, file: Path) -> None:
    loss, feeds = PLAYERS[player]
    module, theirs = losses()
    expected = {n: g for n, g in torch_gradients(module, theirs[player]).items() if n.startswith(player)}
    close(gradcut.TrainingSession(gradcut.compile(file, loss, train=f"{player}.*")).gradients(feeds), expected)


def test_the_discriminators_backward_ends_where_the_generator_begins(file: Path) -> None:
    """And the generator's goes through the discriminator's cotangents, but makes no gradient of its weights."""
    found = {
        player: backward(gradcut.compile(file, loss, train=f"{player}.*").training_model)
        for player, (loss, _) in PLAYERS.items()
    }
    generator, on_real, on_made = (
        {f"node_linear{suffix}" for suffix in one} for one in (("", "_1"), ("_2", "_3"), ("_4", "_5"))
    )
    assert generator.isdisjoint(found["discriminator"]) and on_real | on_made <= found["discriminator"].keys()
    assert on_real.isdisjoint(found["generator"]) and generator | on_made <= found["generator"].keys()
    assert all(found["generator"][node] == {"A"} for node in on_made)


def test_a_mark_says_the_same_as_choosing_the_trainables(file: Path) -> None:
    loss, feeds = PLAYERS["discriminator"]
    chosen = gradcut.TrainingSession(gradcut.compile(file, loss, train="discriminator.*"))
    marked = gradcut.TrainingSession(gradcut.compile(file, loss, stop_at="generator"))
    close(marked.gradients(feeds), chosen.gradients(feeds), rtol=0, atol=0)
