"""FGSM and PGD on a classifier of the digits, against plain torch and the closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradcut import recipes
from gradcut.errors import FeedError, LossError, SpecError
from gradcut.recipes import Adversarial
from models.zoo import MODELS, torch_module
from tests.recipes import plain

SEED = 61
Array = np.ndarray[Any, Any]


def batch(count: int = 64, seed: int = SEED) -> tuple[Array, Array]:
    images, labels = plain.digits()
    rows = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return images[rows], labels[rows]


def session(**options: Any) -> recipes.AdversarialSession:
    made = recipes.adversarial(MODELS / "digits.onnx", **options, optimizer="sgd:lr=0.01")
    return made.session(threads=1)


def slope(module: nn.Module, x: Tensor, labels: Array) -> Tensor:
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(module(x), torch.from_numpy(labels)), x)
    return found


def test_the_fgsm_example_equals_the_closed_form() -> None:
    """x + eps sign(dL/dx), clipped to the data's bounds; where torch's slope is not within rounding of 0."""
    x, labels = batch()
    theirs = torch_module("digits").eval()
    wanted = slope(theirs, torch.from_numpy(x), labels).numpy()
    ours = session(eps=0.1)
    np.testing.assert_allclose(ours.slope(x, labels), wanted, rtol=1e-3, atol=1e-6)
    sure = np.abs(wanted) > 1e-5
    assert sure.mean() > 0.5
    closed = np.clip(x + np.float32(0.1) * np.sign(wanted), 0.0, 1.0)
    np.testing.assert_allclose(ours.attack(x, labels)[sure], closed[sure], atol=1e-6)


def test_the_update_treats_the_example_as_data() -> None:
    """Steps on the examples that were made follow torch's on the same arrays, for five steps."""
    ours, theirs = session(eps=0.1), torch_module("digits").train()
    optimizer = plain.sgd([theirs], lr=0.01)
    for number in range(5):
        x, labels = batch(64, number)
        result = ours.step(x, labels=labels)
        optimizer.zero_grad()
        loss = F.cross_entropy(theirs(torch.from_numpy(result.outputs["example"])), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        assert result.loss == pytest.approx(loss.item(), rel=1e-4), number
        theirs.eval()
        again = slope(theirs, torch.from_numpy(x), labels).numpy()
        np.testing.assert_allclose(ours.slope(x, labels), again, rtol=1e-2, atol=1e-5)  # the weights of now
        theirs.train()
    assert plain.largest_difference(ours.tensors(), plain.named_tensors({"": theirs}))[0] < 1e-4


def test_pgd_stays_within_eps_and_is_worse_than_fgsm() -> None:
    x, labels = batch(128)
    module = torch_module("digits").eval()
    losses = {}
    for name, options in {"fgsm": {}, "pgd": {"attacks": 7}, "random": {"attacks": 7, "start": True}}.items():
        example = session(eps=0.1, **options).attack(x, labels)
        assert example.dtype == x.dtype and example.shape == x.shape
        assert np.abs(example - x).max() <= 0.1 + 1e-6 and example.min() >= 0 and example.max() <= 1
        with torch.no_grad():
            losses[name] = F.cross_entropy(module(torch.from_numpy(example)), torch.from_numpy(labels)).item()
    with torch.no_grad():
        clean = F.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(labels)).item()
    assert clean < losses["fgsm"] < losses["pgd"] and losses["random"] > clean


def test_training_makes_the_attack_weaker() -> None:
    ours = session(eps=0.1)
    first = [ours.step(*batch(128, n)[:1], labels=batch(128, n)[1], lr=0.05).loss for n in range(30)]
    assert np.mean(first[-5:]) < 0.7 * np.mean(first[:5])


def test_data_beyond_the_bounds_are_not_clipped_without_a_word() -> None:
    ours = session()
    x, labels = batch()
    before = ours.tensors()
    with pytest.raises(FeedError, match=r"reaches from .* to 3.*from 0 to 1: say low= and high="):
        ours.step(np.where(x == x.max(), np.float32(3), x), labels=labels)
    assert all(array.tobytes() == before[name].tobytes() for name, array in ours.tensors().items())


def test_bad_input() -> None:
    x, labels = batch(8)
    with pytest.raises(FeedError, match="no feed for labels"):
        session().step(x)
    with pytest.raises(FeedError, match=r"feed 'image' has shape \[8, 1, 4, 8\]"):
        session().step(x[:, :, ::2], labels=labels)
    for options, message in (({"eps": 0.0}, "eps is"), ({"attacks": 0}, "attacks is 0"), ({"low": 2.0}, "2 below 1")):
        with pytest.raises(SpecError, match=message):
            Adversarial(**options)  # type: ignore[arg-type]
    with pytest.raises(LossError, match="leave it out"):
        Adversarial(loss="mse:output=y")
