"""SimCLR and MoCo against plain torch; the queue and the key encoder against their formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradcut import recipes
from gradcut.errors import SpecError
from gradcut.recipes import MoCo, SimCLR
from tests.recipes import plain

SEED = 21


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Equation 1, a pair at a time."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    count, similar = len(z1), torch.exp(z @ z.T / temperature)
    losses = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        losses.append(-torch.log(similar[i, partner] / (similar[i].sum() - similar[i, i])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("norm", "temperature"), [(True, 0.5), (False, 0.1)])
def test_simclr_follows_torch(norm: bool, temperature: float) -> None:
    recipe = SimCLR(projector=64, dim=32, norm=norm, temperature=temperature)
    ours = recipes.simclr(plain.encoder_file(), recipe, optimizer="sgd:lr=0.003,momentum=0.9")
    layers = [nn.Linear(256, 64, bias=not norm), *([nn.BatchNorm1d(64)] if norm else []), nn.ReLU(), nn.Linear(64, 32)]
    theirs = plain.Network(ours, projector=nn.Sequential(*layers))
    optimizer = plain.sgd([theirs], lr=0.003, momentum=0.9)
    session = ours.session(threads=1)
    losses = []
    for views in plain.view_batches(10, 64, SEED):
        optimizer.zero_grad()
        loss = nt_xent(theirs(views[0]), theirs(views[1]), temperature)
        loss.backward()
        optimizer.step()
        losses.append(session.step(*views).loss)
        assert losses[-1] == pytest.approx(loss.item(), rel=1e-4), f"seed {SEED}"
    assert losses[-1] < losses[0]
    assert plain.largest_difference(session.tensors(), theirs.tensors())[0] < 1e-4


def test_nothing_is_cut_in_simclr_and_the_diagnostics_are_there() -> None:
    ours = recipes.simclr(plain.encoder_file(), projector=16, dim=8)
    assert {edge["reason"] for edge in ours.artifacts.manifest["cut"]} <= {"data", "dtype", "zero-derivative"}
    result = ours.session(threads=1).step(*plain.view_batches(1, 32, SEED)[0])
    assert 0 < result.diagnostics["std"] <= 1 + 1e-6
    z1, z2 = (result.outputs[name] for name in ("z1", "z2"))
    assert z1.shape == z2.shape == (32, 8) and not np.array_equal(z1, z2)


# --- MoCo ----------------------------------------------------------------------------------------------------

QUEUE, DECAY, TEMPERATURE = 96, 0.9, 0.2
SMALL = MoCo(projector=64, dim=32, queue=QUEUE, decay=DECAY, temperature=TEMPERATURE)


def moco_loss(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    scores = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / TEMPERATURE
    return F.cross_entropy(scores, torch.zeros(len(q), dtype=torch.int64))


def test_moco_follows_torch_for_twenty_steps() -> None:
    ours = recipes.moco(plain.encoder_file(), SMALL, optimizer="sgd:lr=0.001,momentum=0.9,weight_decay=1e-4")
    theirs = plain.Network(ours, projector=nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 32)))
    key = copy.deepcopy(theirs)
    optimizer = plain.sgd([theirs], lr=0.001, momentum=0.9, weight_decay=1e-4)
    session = ours.session(threads=1)
    queue = torch.from_numpy(session.tensors()["queue"])
    losses = []
    for number, (query, other) in enumerate(plain.view_batches(20, 64, SEED)):
        with torch.no_grad():
            k = F.normalize(key(other), dim=1)
        optimizer.zero_grad()
        loss = moco_loss(F.normalize(theirs(query), dim=1), k, queue)
        loss.backward()
        optimizer.step()
        plain.averaged(key, theirs, DECAY)
        queue = torch.cat([k, queue])[:QUEUE]
        losses.append(session.step(query, other).loss)
        assert losses[-1] == pytest.approx(loss.item(), abs=1e-4), f"step {number + 1}, seed {SEED}"
    assert losses[1] - losses[-1] > 0.05
    tensors = session.tensors()
    assert plain.largest_difference(tensors, theirs.tensors() | key.tensors("key."))[0] < 1e-4
    assert plain.largest_difference(tensors, key.tensors("key.", buffers=True))[0] < 1e-3
    assert plain.largest_difference(tensors, {"queue": queue})[0] < 1e-4


def test_the_queue_keeps_the_newest_keys() -> None:
    """Batches of 40 into a queue of 96: the newest first, the oldest gone, every row of length 1."""
    session = recipes.moco(plain.encoder_file(), SMALL).session(threads=1)
    start = session.tensors()["queue"]
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1.0, rtol=1e-6)
    keys = [session.step(*views).outputs["k"] for views in plain.view_batches(3, 40, SEED)]
    np.testing.assert_array_equal(session.tensors()["queue"], np.concatenate([keys[2], keys[1], keys[0]])[:96])
    session.step(*plain.view_batches(1, 120, SEED)[0])  # more rows than the queue has
    assert session.tensors()["queue"].shape == (96, 32)


def test_what_moco_is() -> None:
    recipe = MoCo()
    assert (recipe.queue, recipe.dim, recipe.temperature, recipe.decay) == (65536, 128, 0.2, 0.999)
    assert (recipe.name, recipe.category) == ("moco", "contrastive")
    assert recipe.has_memory_bank and recipe.has_momentum_encoder
    assert not SimCLR.has_memory_bank and not SimCLR.has_momentum_encoder


def test_bad_numbers() -> None:
    with pytest.raises(SpecError, match=r"simclr: temperature is 0\.0; it is above 0|temperature is 0;"):
        recipes.simclr(plain.encoder_file(), temperature=0)
    with pytest.raises(SpecError, match=r"moco: decay is 1\.5; it is from 0 to 1"):
        recipes.moco(plain.encoder_file(), decay=1.5)
    with pytest.raises(SpecError, match="moco: queue is 0; it is above 0"):
        recipes.moco(plain.encoder_file(), queue=0)
