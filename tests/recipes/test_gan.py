"""GAN of two exported models, against plain torch."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn
from torch.nn import functional as F

import gradcut
from gradcut import recipes
from gradcut.errors import SpecError
from gradcut.recipes import GAN
from models import zoo
from tests.exported import text
from tests.recipes import plain
from tests.test_cli import good, refused

SEED = 71
DRAW = np.random.default_rng(SEED)


class Generator(nn.Sequential):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z)


class Discriminator(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def modules() -> tuple[nn.Module, nn.Module]:
    """With norms in both, and parameters of the same names in both."""
    torch.manual_seed(SEED)
    makes = Generator(nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6))
    judges = Discriminator(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    return makes, judges


@functools.cache
def files() -> tuple[Path, Path]:
    folder = Path(tempfile.mkdtemp(prefix="gradcut-gan-"))
    makes, judges = modules()
    z, x = np.zeros((3, 4), np.float32), np.zeros((3, 6), np.float32)
    return (
        zoo.export_module(makes, {"z": z}, folder / "g.onnx", output="fake"),
        zoo.export_module(judges, {"x": x}, folder / "d.onnx", output="logit"),
    )


def draws(count: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    draw = np.random.default_rng(SEED)
    shapes = {"noise": (32, 4), "real": (32, 6)}
    return [{name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """A player's running statistics move in its own steps alone."""
    before = copy.deepcopy(dict(module.named_buffers()))
    yield
    for name, value in module.named_buffers():
        value.copy_(before[name])


@pytest.mark.parametrize("saturating", [False, True])
def test_both_players_follow_torch(saturating: bool) -> None:
    players = recipes.gan(*files(), GAN(saturating=saturating), optimizer="sgd:lr=0.02,momentum=0.5")
    session = players.session(threads=1)
    makes, judges = (module.train() for module in modules())
    of_g, of_d = (plain.sgd([one], lr=0.02, momentum=0.5) for one in (makes, judges))
    for number, feeds in enumerate(draws(10)):
        noise, real = (torch.from_numpy(feeds[name]) for name in ("noise", "real"))
        of_d.zero_grad()
        with statistics_kept(makes):
            loss = F.softplus(-judges(real)).mean() + F.softplus(judges(makes(noise).detach())).mean()
            loss.backward()
        of_d.step()
        assert session.step("discriminator", feeds).loss == pytest.approx(loss.item(), abs=1e-5), number
        of_g.zero_grad()
        with statistics_kept(judges):
            judged = judges(makes(noise))
            lost = -F.softplus(judged).mean() if saturating else F.softplus(-judged).mean()
            lost.backward()
        of_g.step()
        assert session.step("generator", {"noise": feeds["noise"]}).loss == pytest.approx(lost.item(), abs=1e-5), number
    both = {"generator.": makes, "discriminator.": judges}
    assert plain.largest_difference(session.tensors(), plain.named_tensors(both))[0] < 1e-4
    statistics = plain.named_tensors(both, buffers=True)
    assert plain.largest_difference(session.tensors(), statistics)[0] < 1e-3


def test_the_other_players_parameters_are_bit_identical() -> None:
    session = recipes.gan(*files()).session(threads=1)
    (feeds,) = draws(1)
    for player, fed in (("discriminator", feeds), ("generator", {"noise": feeds["noise"]})):
        before = session.training.parameters()
        session.step(player, fed)
        after = session.training.parameters()
        moved = {name for name, array in after.items() if array.tobytes() != before[name].tobytes()}
        assert moved == {name for name in after if name.startswith(player)}


def test_what_the_generator_makes_and_both_come_out(tmp_path: Path) -> None:
    session = recipes.gan(*files()).session(threads=1)
    for feeds in draws(3):
        session.step("discriminator", feeds)
        session.step("generator", {"noise": feeds["noise"]})
    noise = DRAW.normal(size=(5, 4)).astype(np.float32)
    for player, given in zip(("generator", "discriminator"), files(), strict=True):
        session.export(player, tmp_path / f"{player}.onnx")
        before, after = onnx.load(given), onnx.load(tmp_path / f"{player}.onnx")
        for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
            array = onnx.numpy_helper.to_array(new)
            assert old.name == new.name and np.array_equal(array, session.of(player)[new.name])
            assert not np.array_equal(array, onnx.numpy_helper.to_array(old)), new.name
    stock = InferenceSession(str(tmp_path / "generator.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.generate(noise), stock.run(None, {"z": noise})[0], rtol=1e-5, atol=1e-6)


def test_artifacts_are_one_directory(tmp_path: Path) -> None:
    players = recipes.gan(*files())
    assert (players.recipe.name, players.recipe.category) == ("gan", "generative")
    players.artifacts.save(tmp_path / "gan")
    assert {"generator", "discriminator"} <= {path.name for path in (tmp_path / "gan").iterdir()}


def test_from_the_command_line(tmp_path: Path) -> None:
    assert good("recipe", "gan", *files(), "-o", tmp_path / "a").line("steps") == "discriminator, generator"
    session = gradcut.TrainingSession(tmp_path / "a")
    (feeds,) = draws(1)
    assert session.step("discriminator", feeds).step == 1
    two = "gan takes two models, GENERATOR and DISCRIMINATOR, and every other recipe one"
    assert refused("recipe", "gan", files()[0], "-o", tmp_path / "b") == two
    assert refused("recipe", "simsiam", *files(), "-o", tmp_path / "b") == two


HALVES = ", ".join(["0.5"] * 36)
SIX = text(f"g (float[n, 6] x) => (float[n, 6] y) <float[6, 6] w = {{{HALVES}}}> {{ y = MatMul (x, w) }}")


def test_players_that_do_not_fit() -> None:
    makes, judges = files()
    with pytest.raises(SpecError, match="the generator gives"):
        recipes.gan(judges, judges)
    with pytest.raises(SpecError, match="one logit a row"):
        recipes.gan(makes, SIX)
    with pytest.raises(SpecError, match="a player is generator or discriminator"):
        recipes.gan(makes, judges).session().export("judge", "x.onnx")
