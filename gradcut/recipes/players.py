"""Two models that play against each other: GAN."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from gradcut.artifacts import TrainingArtifacts
from gradcut.compiler import compile
from gradcut.dims import same_dim
from gradcut.errors import SpecError
from gradcut.losses.elements import softplus
from gradcut.ops import Builder
from gradcut.optimizers import Adam, Optimizer
from gradcut.recipes.assembly import Assembly, Module, on_batch_statistics
from gradcut.recipes.base import Numbered
from gradcut.recipes.encoder import Encoder, View
from gradcut.runtime.backend import Runner, to_device
from gradcut.runtime.session import StepResult, TrainingSession
from gradcut.source import Source
from gradcut.steps import Step

Array = np.ndarray[Any, Any]
GENERATOR, DISCRIMINATOR = "generator", "discriminator"


@dataclass(frozen=True, kw_only=True)
class GAN(Numbered):
    """Goodfellow et al., *Generative Adversarial Nets*, NeurIPS 2014.

    D gives one logit a row. The step ``discriminator`` descends -log D(x) - log(1 - D(stop(G(z)))) and moves D alone;
    the step ``generator`` descends -log D(G(z)), or log(1 - D(G(z))) where it is `saturating`, and moves G alone. Norms
    of both run on batch statistics in both steps; a player's running ones move in its own.
    """

    name: ClassVar[str] = "gan"
    category: ClassVar[str] = "generative"

    saturating: bool = False


#: Radford et al., ICLR 2016.
_ADAM = Adam(lr=2e-4, betas=(0.5, 0.999))


@dataclass(frozen=True)
class Players:
    """A generator and a discriminator, compiled as two steps over one set of weights.

    Attributes:
        artifacts: with the steps ``discriminator`` (fed ``real`` and ``noise``) and ``generator`` (fed ``noise``).
    """

    recipe: GAN
    generator: Encoder = field(repr=False)
    discriminator: Encoder = field(repr=False)
    model: ir.Model = field(repr=False)
    artifacts: TrainingArtifacts

    def session(self, device: str = "cpu", threads: int | None = None) -> PlayersSession:
        return PlayersSession(self, device, threads)


def gan(
    generator: Source,
    discriminator: Source,
    recipe: GAN | None = None,
    optimizer: Optimizer | str | None = None,
    seed: int = 0,
) -> Players:
    """Compile a GAN of two exported models; weights are ``generator.<name>`` and ``discriminator.<name>``.

    Args:
        optimizer: of each player, with state of its own; Adam(lr=2e-4, betas=(0.5, 0.999)) by default.

    Raises:
        SpecError: the discriminator does not take what the generator gives, or gives no logit a row.
    """
    recipe = recipe or GAN()
    makes, judges = Encoder(generator, pooled=False), Encoder(discriminator, pooled=False)
    _check(makes, judges)
    model, trained = _composed(recipe, makes, judges)
    steps = {
        DISCRIMINATOR: Step(loss="discriminator_loss", train=trained[DISCRIMINATOR], outputs=["on_real", "on_fake"]),
        GENERATOR: Step(loss="generator_loss", train=trained[GENERATOR], outputs=["fake"]),
    }
    artifacts = compile(model, steps=steps, optimizer=_ADAM if optimizer is None else optimizer, seed=seed)
    return Players(recipe, makes, judges, model, artifacts)


def _check(makes: Encoder, judges: Encoder) -> None:
    if len(makes.inputs) != 1 or len(judges.inputs) != 1:
        raise SpecError("gan: a generator and a discriminator take one input each")
    given, taken = makes.embedding, judges.model.graph.inputs[0]
    fits = given.dtype == taken.dtype and len(given.shape or ()) == len(taken.shape or ())
    for mine, its in zip(given.shape or (), taken.shape or (), strict=False):
        fits &= same_dim(mine, its) or not (isinstance(mine, int) and isinstance(its, int))
    if not fits:
        raise SpecError(f"gan: the generator gives {given.shape}, and the discriminator takes {taken.shape}")
    if list(judges.embedding.shape or ())[1:] != [1]:
        raise SpecError(f"gan: the discriminator gives one logit a row, [N, 1], not {judges.embedding.shape}")


def _composed(recipe: GAN, makes: Encoder, judges: Encoder) -> tuple[ir.Model, dict[str, list[str]]]:
    """The model with both losses, and what each player trains."""
    a = Assembly([makes.model, judges.model])
    G = a.module(on_batch_statistics(makes.model), f"{GENERATOR}.")
    D = a.module(on_batch_statistics(judges.model), f"{DISCRIMINATOR}.")
    noise, real = a.input("noise", G.inputs[0]), a.input("real", D.inputs[0])
    fake = G(noise, prefix="generator/")
    on_real, on_fake = D(real, prefix="real/"), D(a.stop(fake), prefix="fake/")
    judged = D(fake, prefix="judged/")
    with a.build("loss/") as b:
        sure, fooled = _mean_softplus(b, b.Neg(on_real)), _mean_softplus(b, on_fake)
        against = b.Add(sure, fooled)
        missed = _mean_softplus(b, judged if recipe.saturating else b.Neg(judged))
        lost = b.Neg(missed) if recipe.saturating else missed
    outputs = {"discriminator_loss": against, "generator_loss": lost, "fake": fake, "on_real": on_real}
    trained = {GENERATOR: _parameters(G), DISCRIMINATOR: _parameters(D)}
    return a.model({**outputs, "on_fake": on_fake}, doc=recipe.spec()), trained


def _parameters(player: Module) -> list[str]:
    return list(player.parameters)


def _mean_softplus(b: Builder, x: ir.Value) -> ir.Value:
    """-log sigmoid(-x), averaged."""
    return b.op("ReduceMean", softplus(b, x), keepdims=0, dtype=x.dtype, shape=ir.Shape([]))


class PlayersSession:
    """Trains both players.

    Attributes:
        training: the `gradcut.TrainingSession` beneath.
    """

    def __init__(self, players: Players, device: str = "cpu", threads: int | None = None) -> None:
        self.players, self._threads = players, threads
        self.training = TrainingSession(players.artifacts, device=device, threads=threads)

    def step(self, name: str, feeds: Mapping[str, Array], lr: float | None = None) -> StepResult:
        """One update of ``discriminator``, fed ``real`` and ``noise``, or of ``generator``, fed ``noise``."""
        return self.training.step(name, feeds, lr=lr)

    def tensors(self) -> dict[str, Array]:
        """Every parameter and running statistic by name, as copies."""
        return {**self.training.parameters(), **self.training.state()}

    def of(self, player: str) -> dict[str, Array]:
        """The tensors of one player, by the names that its model has for them."""
        return {n.removeprefix(f"{player}."): t for n, t in self.tensors().items() if n.startswith(f"{player}.")}

    def generate(self, noise: View) -> Array:
        """What the generator of now makes, in inference mode."""
        maker, tensors = self.players.generator, self.of(GENERATOR)
        runner = Runner(maker.inference(tensors), "cpu", self._threads)
        feeds = {**tensors, **dict(zip(maker.inputs, maker.arrays(noise), strict=True))}
        given = {name: to_device(np.ascontiguousarray(feeds[name]), "cpu") for name in runner.inputs}
        (found,) = runner.run(given, {}).values()
        return np.array(found.numpy())

    def export(self, player: str, path: str | os.PathLike[str]) -> None:
        """Write one player as its model was given, trained."""
        if player not in (GENERATOR, DISCRIMINATOR):
            raise SpecError(f"a player is {GENERATOR} or {DISCRIMINATOR}, not {player!r}")
        model = self.players.generator if player == GENERATOR else self.players.discriminator
        model.export(self.of(player), path)
