"""DANN and multi-task around an exported encoder, against plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradcut import recipes
from gradcut.errors import SpecError
from gradcut.recipes import DANN, MultiTask, parse
from tests.recipes import plain
from tests.test_cli import good, refused

SEED = 51
DRAW = np.random.default_rng(SEED)
SGD = "sgd:lr=0.01"


def rows(count: int = 48) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    images, labels = plain.digits()
    chosen = np.random.default_rng(SEED).choice(len(images), count, replace=False)
    return images[chosen], labels[chosen]


# --- DANN ----------------------------------------------------------------------------------------------------


class Reversal(torch.autograd.Function):
    """The layer of the paper."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradient, None


def domain_head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


@pytest.mark.parametrize("scheduled", [False, True])
def test_dann_follows_torch(scheduled: bool) -> None:
    recipe = DANN(hidden=32, scale=0.7, scheduled=scheduled)
    ours = recipes.dann(plain.encoder_file(), recipe, optimizer=SGD)
    encoder = plain.Network(ours)
    classifier = plain.with_weights(nn.Sequential(nn.Linear(256, 10)), ours, "classifier.")
    domains = plain.with_weights(domain_head(), ours, "domain.")
    optimizer = plain.sgd([encoder, classifier, domains], lr=0.01)
    session = ours.session(threads=1)
    image, labels = rows()
    domain = DRAW.integers(0, 2, len(labels))
    labels = np.where(domain == 1, -100, labels)
    for number in range(8):
        scale = DANN.lambda_at(number / 8) if scheduled else 0.7
        optimizer.zero_grad()
        h = encoder(image)
        loss = F.cross_entropy(classifier(h), torch.from_numpy(labels))
        loss = loss + F.cross_entropy(domains(Reversal.apply(h, scale)), torch.from_numpy(domain))
        loss.backward()
        optimizer.step()
        more = {"lambda": np.float32(scale)} if scheduled else {}
        result = session.step(image, labels=labels, domain=domain, **more)
        assert result.loss == pytest.approx(loss.item(), abs=1e-4), f"step {number + 1}, seed {SEED}"
    theirs = encoder.tensors() | plain.named_tensors({"classifier.": classifier, "domain.": domains})
    assert plain.largest_difference(session.tensors(), theirs)[0] < 1e-4


def test_the_domain_gradient_is_turned_round_in_the_encoder_alone() -> None:
    """With no label that counts toward classes, lambda = 2 gives -2 times the gradient that lambda = -1 would."""
    image, _ = rows()
    domain = DRAW.integers(0, 2, len(image))
    found = []
    for scale in (0.0, 1.0, 2.0):
        ours = recipes.dann(plain.encoder_file(), hidden=16, scale=scale)
        labels = np.zeros(len(image), np.int64)
        session = ours.session(threads=1)
        found.append(session.training.gradients(session.program.feeds(image, labels=labels, domain=domain)))
    none, once, twice = found
    for name in once:
        if name.startswith(("classifier", "domain")):
            np.testing.assert_allclose(once[name], none[name], rtol=1e-5, atol=1e-7, err_msg=name)
        else:
            size = float(np.abs(once[name] - none[name]).max())
            assert size > 0, name
            np.testing.assert_allclose(twice[name] - none[name], 2 * (once[name] - none[name]), atol=1e-4 * size + 1e-7)


# --- multi-task ----------------------------------------------------------------------------------------------

TWO = {"labels1": np.arange(48) % 10, "labels2": DRAW.normal(size=(48, 1)).astype(np.float32)}


@pytest.mark.parametrize(("cut", "weights"), [((2,), ()), ((), (1.0, 0.5)), ((1,), (2.0, 3.0))])
def test_the_trunk_gets_the_gradient_of_the_tasks_that_are_not_cut(cut: Any, weights: Any) -> None:
    ours = recipes.multi_task(plain.encoder_file(), outputs=(10, 1), cut=cut, weights=weights, optimizer=SGD)
    trunk = plain.Network(ours)
    heads = [plain.with_weights(nn.Sequential(nn.Linear(256, n)), ours, f"head{k}.") for k, n in ((1, 10), (2, 1))]
    image, _ = rows()
    h = trunk(image)
    outputs = [layer(h.detach() if k in cut else h) for k, layer in enumerate(heads, 1)]
    terms = [
        F.cross_entropy(outputs[0], torch.from_numpy(TWO["labels1"])),
        F.mse_loss(outputs[1], torch.from_numpy(TWO["labels2"])),
    ]
    loss = sum((w * term for w, term in zip(weights or (1.0, 1.0), terms, strict=True)), torch.zeros(()))
    loss.backward()
    session = ours.session(threads=1)
    found = session.training.gradients(session.program.feeds(image, **TWO))
    parts = {**trunk.parts, "head1.": heads[0], "head2.": heads[1]}
    wanted = {f"{prefix}{name}": p.grad for prefix, part in parts.items() for name, p in part.named_parameters()}
    scale = max(float(one.abs().max()) for one in wanted.values() if one is not None)
    assert plain.largest_difference(found, wanted)[0] < 1e-5 * max(scale, 1)  # type: ignore[arg-type]
    assert session.step(image, **TWO).loss == pytest.approx(loss.item(), rel=1e-5)


def test_their_text_reads_back() -> None:
    for text in ("multi_task:outputs=[10 1],weights=[1 0.5],cut=[]", "dann:classes=3,scheduled=true"):
        assert parse(text).spec() == text
    assert parse("multi_task") == MultiTask() and MultiTask().category == DANN().category == "supervised"


def test_from_the_command_line(tmp_path: Path) -> None:
    """Compiled by gradcut recipe, trained by gradcut train like any other artifacts."""
    image, labels = plain.digits()
    np.savez(tmp_path / "data.npz", image=image, labels1=labels, labels2=labels % 2)
    args = "recipe", "multi_task:outputs=[10 2]", plain.encoder_file(), "-o", tmp_path / "a"
    assert good(*args).line("feeds") == "image, labels1, labels2"
    good("train", tmp_path / "a", "--data", tmp_path / "data.npz", "--epochs", 1)
    assert "multi_task trains on more than images" in refused(*args, "--data", tmp_path / "data.npz", "--force")


def test_bad_numbers() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (MultiTask, {"outputs": (0.5,)}, "outputs are whole numbers"),
        (MultiTask, {"weights": (1,)}, "1 weights for 2 tasks"),
        (MultiTask, {"cut": (3,)}, "cut names tasks from 1 to 2"),
        (DANN, {"classes": 1}, "there are two of each at least"),
        (DANN, {"scale": -1.0}, "the scale is not negative"),
    ]
    for cls, options, message in wrong:
        with pytest.raises(SpecError, match=message):
            cls(**options)
