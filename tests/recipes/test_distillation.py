"""DINO against plain torch: the loss, the teacher, the centre; with two views and with more."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from gradcut import recipes
from gradcut.errors import SpecError
from gradcut.recipes import DINO
from tests.recipes import plain

SEED = 41


class Head(nn.Module):
    """As the published code has it: MLP, unit length, weight norm with g = 1."""

    def __init__(self, hidden: int, bottleneck: int, out: int) -> None:
        super().__init__()
        mlp = [nn.Linear(256, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)]
        for place, layer in enumerate(mlp):
            self.add_module(str(place), layer)
        self.add_module("6", nn.Linear(bottleneck, out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        *mlp, last = self.children()
        for layer in mlp:
            x = layer(x)
        return F.linear(F.normalize(x, dim=1), F.normalize(last.weight, dim=1))


def test_the_reference_head_is_torchs_weight_norm() -> None:
    layer = nn.Linear(4, 3, bias=False)
    normed = weight_norm(copy.deepcopy(layer))
    normed.parametrizations.weight.original0.data.fill_(1.0)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(SEED))
    torch.testing.assert_close(normed(x), F.linear(x, F.normalize(layer.weight, dim=1)))


def dino_loss(s: list[Tensor], t: list[Tensor], centre: Tensor) -> Tensor:
    """Algorithm 1, over every pair of different views."""
    total, pairs = torch.zeros(()), 0
    for i, teacher in enumerate(t):
        target = F.softmax((teacher - centre) / 0.04, dim=1).detach()
        for j, student in enumerate(s):
            if i != j:
                total = total - (target * F.log_softmax(student / 0.1, dim=1)).sum(1).mean()
                pairs += 1
    return total / pairs


@pytest.mark.parametrize("count", [2, 4])
def test_dino_follows_torch(count: int) -> None:
    recipe = DINO(hidden=48, bottleneck=16, dim=40, views=count, decay=0.9, centre=0.8)
    ours = recipes.dino(plain.encoder_file(), recipe, optimizer="sgd:lr=0.01")
    student = plain.Network(ours, projector=Head(48, 16, 40))
    teacher = copy.deepcopy(student)
    optimizer = plain.sgd([student], lr=0.01)
    session = ours.session(threads=1)
    centre = torch.zeros(1, 40)
    losses = []
    for number, views in enumerate(plain.view_batches(10, 64, SEED, count)):
        s = [student(view) for view in views]
        with torch.no_grad():
            t = [teacher(view) for view in views[:2]]
        optimizer.zero_grad()
        loss = dino_loss(s, t, centre)
        loss.backward()
        optimizer.step()
        plain.averaged(teacher, student, 0.9)
        centre = 0.8 * centre + 0.2 * torch.cat(t).mean(0, keepdim=True)
        losses.append(session.step(*views).loss)
        assert losses[-1] == pytest.approx(loss.item(), abs=1e-4), f"step {number + 1}, seed {SEED}"
    tensors = session.tensors()
    assert plain.largest_difference(tensors, student.tensors() | teacher.tensors("teacher."))[0] < 1e-4
    assert plain.largest_difference(tensors, {"centre": centre})[0] < 1e-5
    assert np.abs(tensors["centre"]).max() > 1e-3


def test_what_dino_is() -> None:
    recipe = DINO()
    assert (recipe.hidden, recipe.bottleneck, recipe.dim, recipe.centre) == (2048, 256, 65536, 0.9)
    assert (recipe.student_temperature, recipe.teacher_temperature, recipe.decay) == (0.1, 0.04, 0.996)
    assert (recipe.name, recipe.category) == ("dino", "self-distillation")
    assert recipe.has_momentum_encoder and not recipe.has_memory_bank
    with pytest.raises(SpecError, match="dino: views is 1"):
        DINO(views=1)
