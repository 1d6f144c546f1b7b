"""Training a program on images without labels: epochs of views, a cosine rate, and what to look at each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcut.errors import DataError
from gradcut.recipes.diagnostics import gradient_norms, knn_accuracy
from gradcut.recipes.program import RecipeSession
from gradcut.recipes.views import Augmentation
from gradcut.schedules import parse_schedule

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Probe:
    """k-NN accuracy of the embedding, from clean images with labels to others.

    Attributes:
        known, labels: images [N, C, H, W] and their classes [N]. asked, expected: those that are looked up.
    """

    known: Array
    labels: Array
    asked: Array
    expected: Array
    k: int = 1

    def __call__(self, session: RecipeSession) -> float:
        found = session.embed(np.concatenate([self.known, self.asked]))
        known, asked = found[: len(self.known)], found[len(self.known) :]
        return knn_accuracy(known, self.labels, asked, self.expected, self.k)


@dataclass(frozen=True)
class Epoch:
    """What an epoch was like: means over its steps, gradient norms by block of its last batch, the probe after it."""

    epoch: int
    step: int
    loss: float
    diagnostics: dict[str, float]
    gradient_norms: dict[str, float]
    knn: float | None = None

    def record(self) -> dict[str, Any]:
        """As a line of metrics."""
        found: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "loss": self.loss, **self.diagnostics}
        if self.knn is not None:
            found["knn"] = self.knn
        return {**found, "gradient_norms": self.gradient_norms}


def fit(
    session: RecipeSession,
    images: Array,
    augmentation: Augmentation,
    epochs: int = 1,
    batch_size: int = 128,
    seed: int = 0,
    schedule: str = "cosine",
    probe: Probe | None = None,
    watch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train on views of `images` [N, C, H, W]; a last batch that is not full is left out, as batch statistics want it.

    Args:
        seed: of the order and the views. schedule: of the learning rate over the run, see `gradcut.schedules`.
        watch: called after every epoch.

    Raises:
        DataError: there are fewer images than a batch has.
    """
    batches = full_batches(len(images), batch_size)
    rate = parse_schedule(schedule).over(epochs * batches, session.training.optimizer.lr)
    count = len(session.program.composed.views)
    found = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed % 2**64, epoch])
        results = []
        for number, rows in enumerate(_batches(len(images), batch_size, rng)):
            views = augmentation.views(images[rows], rng, count)
            if number + 1 == batches:
                norms = gradient_norms(session.training.gradients(session.program.feeds(*views)))
            results.append(session.step(*views, lr=rate(session.training.steps)))
        means = {key: float(np.mean([one.diagnostics[key] for one in results])) for key in results[0].diagnostics}
        loss = float(np.mean([one.loss for one in results]))
        knn = None if probe is None else probe(session)
        found.append(Epoch(epoch + 1, results[-1].step, loss, means, norms, knn))
        if watch is not None:
            watch(found[-1])
    return found


def full_batches(count: int, size: int) -> int:
    """How many full batches so many images make.

    Raises:
        DataError: none.
    """
    if size < 1 or count < size:
        raise DataError(f"{count} images make no batch of {size}")
    return count // size


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    order = rng.permutation(count)
    for begin in range(0, count - size + 1, size):
        yield order[begin : begin + size]
