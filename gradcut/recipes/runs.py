"""A recipe run from start to end on images, once or several times to compare: metrics, a picture, the tuned encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradcut.artifacts import CHECKPOINT, METRICS
from gradcut.errors import SpecError
from gradcut.io import atomic_write_bytes
from gradcut.recipes.base import Recipe
from gradcut.recipes.encoder import Encoder
from gradcut.recipes.fit import Epoch, fit, full_batches
from gradcut.recipes.images import Images
from gradcut.recipes.program import Program, RecipeSession
from gradcut.recipes.views import Augmentation
from gradcut.schedules import parse_schedule
from gradcut.source import Source
from gradcut.view.curves import Line, Panel, curves

ENCODER, PICTURE = "encoder.onnx", "curves.svg"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a recipe is trained on images: see `gradcut.recipes.fit.fit`.

    Attributes:
        seeds: a run for each; of the heads, the order and the views.
    """

    augmentation: Augmentation
    epochs: int = 60
    batch_size: int = 128
    schedule: str = "cosine"
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.seeds:
            raise SpecError(f"{self.epochs} epochs and {len(self.seeds)} seeds: at least one of each is trained")


@dataclass(frozen=True)
class Run:
    """One program trained: what k-NN said before, and every epoch."""

    name: str
    seed: int
    knn_before: float | None
    epochs: Sequence[Epoch]

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    def records(self) -> Iterator[dict[str, Any]]:
        """Lines of metrics, that of the untrained encoder first."""
        yield {"run": self.name, "seed": self.seed, "epoch": 0, "step": 0, "knn": self.knn_before}
        for epoch in self.epochs:
            yield {"run": self.name, "seed": self.seed, **epoch.record()}


def run(
    program: Program,
    images: Images,
    plan: Plan,
    seed: int = 0,
    name: str = "",
    watch: Callable[[Epoch], None] | None = None,
) -> tuple[Run, RecipeSession]:
    """Train a program; `name`: what the picture and the metrics call it, by default the recipe's own."""
    session = program.session()
    probe = images.probe(plan.augmentation, seed)
    before = None if probe is None else probe(session)
    epochs = fit(
        session,
        images.image[images.training],
        plan.augmentation,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        seed=seed,
        schedule=plan.schedule,
        probe=probe,
        watch=watch,
    )
    return Run(name or program.recipe.name, seed, before, epochs), session


def compared(recipe: Recipe) -> dict[str, Recipe]:
    """A recipe and the same with its mark taken out, by what a picture calls them.

    Raises:
        SpecError: it has no such mark.
    """
    if not getattr(recipe, "stop_gradient", False):
        raise SpecError(f"{recipe.name}: there is no mark to take out for --compare")
    return {"with the mark": recipe, "without it": recipe.of({**recipe.options(), "stop_gradient": False})}


def images_for(recipe: Recipe, encoder: Source, output: str | None, path: Path, held_out: float) -> Images:
    """The images of a file, for an encoder.

    Raises:
        SpecError: the recipe wants more than views of images.
    """
    if recipe.category == "supervised":
        raise SpecError(f"{recipe.name} trains on more than images: leave --data out here, and take gradcut train")
    return Images.load(path, Encoder(encoder, output).inputs[0], held_out)


def whole_run(recipe: Recipe, images: Images, plan: Plan) -> Recipe:
    """A recipe whose schedule of averages has no length gets that of the run."""
    if getattr(recipe, "steps", None) != 0:
        return recipe
    return recipe.of({**recipe.options(), "steps": plan.epochs * full_batches(len(images.training), plan.batch_size)})


def rehearse(program: Program, images: Images, plan: Plan) -> None:
    """Raise where the images do not fit, before anything is written.

    Raises:
        DataError: they make no batch. FeedError: they are not what the encoder takes. SpecError: the schedule does not
            fit the run.
    """
    steps = plan.epochs * full_batches(len(images.training), plan.batch_size)
    parse_schedule(plan.schedule).over(steps)
    rng, rows = np.random.default_rng(0), images.training[: plan.batch_size]
    views = plan.augmentation.views(images.image[rows], rng, len(program.composed.views))
    program.check(program.feeds(*views))


def train_all(
    recipes: Mapping[str, Recipe],
    make: Callable[..., Program],
    images: Images,
    plan: Plan,
    folder: Path,
    watch: Callable[[Run], None],
) -> None:
    """Train each recipe with each seed and write everything into a folder that holds artifacts.

    The first run is the one whose artifacts, checkpoint and encoder are kept; the metrics and the picture are of all.

    Args:
        make: a program of a recipe, called with ``seed=`` too. watch: called after every run.
    """
    found: list[Run] = []
    for seed in plan.seeds:
        for name, recipe in recipes.items():
            done, session = run(make(recipe, seed=seed), images, plan, seed, name)
            if not found:
                session.training.save_checkpoint(folder / CHECKPOINT)
                session.export(folder / ENCODER)
            found.append(done)
            watch(done)
    lines = [json.dumps(record) for one in found for record in one.records()]
    atomic_write_bytes(folder / METRICS, "".join(f"{line}\n" for line in lines).encode())
    said = f"{next(iter(recipes.values())).spec()}; {plan.augmentation.spec()}; batches of {plan.batch_size}"
    atomic_write_bytes(folder / PICTURE, picture(found, said).encode())


def picture(runs: Sequence[Run], note: str = "") -> str:
    """The spread of the embedding, where the recipe tells it, and the loss over steps; one svg."""
    panels = [Panel("loss, mean of the epoch", _lines(runs, lambda epoch: epoch.loss))]
    if all("std" in one.last.diagnostics for one in runs):
        spread = _lines(runs, lambda epoch: epoch.diagnostics["std"])
        guides = [(1.0, "evenly spread"), (0.0, "collapse")]
        panels.insert(0, Panel("std of the normalised z times sqrt(d)", spread, guides))
    if all(one.last.knn is not None for one in runs):
        found = [Line(one.name, _with_start(one)) for one in runs]
        panels.append(Panel("1-NN from 50 clean images to augmented ones", found))
    seeds = ", ".join(map(str, dict.fromkeys(one.seed for one in runs)))
    return curves(panels, " and ".join(dict.fromkeys(one.name for one in runs)) + f"; seeds {seeds}", note)


def _lines(runs: Sequence[Run], figure: Callable[[Epoch], float]) -> list[Line]:
    return [Line(one.name, [(epoch.step, figure(epoch)) for epoch in one.epochs]) for one in runs]


def _with_start(one: Run) -> list[tuple[float, float]]:
    assert one.knn_before is not None
    return [(0, one.knn_before), *((epoch.step, epoch.knn or 0.0) for epoch in one.epochs)]
