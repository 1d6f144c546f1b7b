"""The program that a recipe makes of an encoder, and the session that runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradcut.artifacts import TrainingArtifacts
from gradcut.compiler import compile
from gradcut.errors import FeedError
from gradcut.optimizers import Optimizer
from gradcut.recipes.base import Composed, Recipe
from gradcut.recipes.diagnostics import spread
from gradcut.recipes.encoder import Encoder, View
from gradcut.runtime.backend import Runner, to_device
from gradcut.runtime.feeds import FeedCheck
from gradcut.runtime.session import TrainingSession
from gradcut.source import Source
from gradcut.steps import Patterns

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StepResult:
    """What a step gives.

    Attributes:
        diagnostics: ``std``, see `gradcut.recipes.diagnostics.spread`. outputs: by name. step: updates done after it.
    """

    loss: float
    diagnostics: dict[str, float]
    outputs: dict[str, Array] = field(repr=False)
    step: int = 0


@dataclass(frozen=True)
class Program:
    """A recipe around an encoder, compiled.

    Attributes:
        artifacts: what `gradcut.TrainingSession` trains, and `artifacts.save` writes.
    """

    recipe: Recipe
    encoder: Encoder
    composed: Composed = field(repr=False)
    artifacts: TrainingArtifacts

    def session(self, device: str = "cpu", threads: int | None = None) -> RecipeSession:
        return RecipeSession(self, device, threads)

    def feeds(self, *views: View, **more: Array) -> dict[str, Array]:
        """Views and further inputs by the names of the graph.

        Raises:
            FeedError: too many or too few views, or one that does not name the encoder's inputs.
        """
        wanted = self.composed.views
        if len(views) != len(wanted):
            raise FeedError(f"{self.recipe.name} takes {len(wanted)} views of a batch, not {len(views)}")
        found = dict(more)
        for view, names in zip(views, wanted, strict=True):
            found |= zip(names, self.encoder.arrays(view), strict=True)
        return found

    def check(self, feeds: Mapping[str, Array]) -> None:
        """Raise FeedError where feeds do not fit, before there is a session."""
        ports = self.artifacts.manifest["graphs"]["training_model"]["inputs"]
        FeedCheck([port for port in ports if port["role"] in ("user", "label")], None)(feeds)


def build(
    recipe: Recipe,
    encoder: Source,
    output: str | None = None,
    train: Patterns | None = None,
    freeze: Patterns = (),
    optimizer: Optimizer | str | None = None,
    seed: int = 0,
) -> Program:
    """Compile a recipe around an encoder.

    Args:
        encoder: a path, a proto or an IR model, as exported; it is not changed.
        output: the value that is the embedding, [N, d] or maps [N, C, H, W]; by default the only float output.
        train, freeze: patterns over parameters, those of the heads included; by default everything trains, and every
            BatchNormalization that trains runs on batch statistics, whatever mode the encoder was exported in.
        optimizer: the recipe's by default.
        seed: what the heads are drawn from, and Dropout.

    Raises:
        GradcutError: the encoder, an option or a pattern does not fit.
    """
    taken = Encoder(encoder, output)
    composed = recipe.compose(taken, seed)
    artifacts = compile(
        composed.model,
        loss=composed.loss,
        train=train,
        freeze=freeze,
        optimizer=recipe.optimizer if optimizer is None else optimizer,
        batch_norm="train" if train is None else "auto",
        seed=seed,
        state=composed.state,
    )
    return Program(recipe, taken, composed, artifacts)


class RecipeSession:
    """Trains a program.

    Attributes:
        training: the `gradcut.TrainingSession` beneath, for checkpoints, gradients and the rest.
    """

    def __init__(self, program: Program, device: str = "cpu", threads: int | None = None) -> None:
        self.program, self._threads = program, threads
        self._inference: Runner | None = None
        self.training = TrainingSession(program.artifacts, device=device, threads=threads)

    def step(self, *views: View, lr: float | None = None, **more: Array) -> StepResult:
        """One update on views of one batch.

        Raises:
            FeedError, NotFiniteError: see `gradcut.TrainingSession.step`.
        """
        result = self.training.step(self.program.feeds(*views, **more), lr=lr)
        found = [spread(result.outputs[name]) for name in self.program.composed.spread]
        diagnostics = {"std": float(np.mean(found))} if found else {}
        return StepResult(result.loss, diagnostics, result.outputs, result.step)

    def tensors(self) -> dict[str, Array]:
        """Every parameter and what else moves, such as running statistics, by name, as copies."""
        return {**self.training.parameters(), **self.training.state()}

    def embed(self, view: View) -> Array:
        """The encoder's embedding [N, d] in inference mode, with the weights and running statistics of now."""
        tensors, encoder = self.tensors(), self.program.encoder
        if self._inference is None:
            self._inference = Runner(encoder.inference(tensors), "cpu", self._threads)
        feeds = {**tensors, **dict(zip(encoder.inputs, encoder.arrays(view), strict=True))}
        given = {name: to_device(np.ascontiguousarray(feeds[name]), "cpu") for name in self._inference.inputs}
        (found,) = self._inference.run(given, {}).values()
        return np.array(found.numpy())

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the encoder as it was given, with its trained weights and running statistics."""
        self.program.encoder.export(self.tensors(), path)
