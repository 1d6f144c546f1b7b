"""The recipes by name, and a function for each."""

from __future__ import annotations

from typing import Any

from gradcut.errors import SpecError
from gradcut.recipes.adversarial import Adversarial, AdversarialProgram
from gradcut.recipes.base import Recipe
from gradcut.recipes.contrastive import MoCo, SimCLR
from gradcut.recipes.distillation import DINO
from gradcut.recipes.players import GAN
from gradcut.recipes.program import Program, build
from gradcut.recipes.siamese import BYOL, SimSiam
from gradcut.recipes.tasks import DANN, MultiTask
from gradcut.source import Source
from gradcut.text import parse_spec, unknown

RECIPES: dict[str, type[Recipe]] = {
    cls.name: cls for cls in (SimSiam, BYOL, SimCLR, MoCo, DINO, DANN, MultiTask, Adversarial)
}
#: What `build` takes beside a recipe and an encoder.
_BUILDING = ("output", "train", "freeze", "optimizer", "seed")


def parse(text: str) -> Recipe | GAN:
    """A recipe from its text, ``simsiam:projector=128,dim=128``.

    Raises:
        SpecError: no such recipe, no such option, or a value that it does not take.
    """
    name, options = parse_spec(text)
    known: dict[str, type[Recipe] | type[GAN]] = {**RECIPES, GAN.name: GAN}
    if name not in known:
        raise SpecError(unknown("recipe", name, known))
    return known[name].of(options)


def simsiam(encoder: Source, recipe: SimSiam | None = None, **options: Any) -> Program:
    """SimSiam around an encoder; `options` are those of `SimSiam`, where none is given, and of `build`."""
    return _built(SimSiam, encoder, recipe, options)


def byol(encoder: Source, recipe: BYOL | None = None, **options: Any) -> Program:
    """BYOL around an encoder; see `simsiam`."""
    return _built(BYOL, encoder, recipe, options)


def simclr(encoder: Source, recipe: SimCLR | None = None, **options: Any) -> Program:
    """SimCLR around an encoder; see `simsiam`."""
    return _built(SimCLR, encoder, recipe, options)


def moco(encoder: Source, recipe: MoCo | None = None, **options: Any) -> Program:
    """MoCo v2 around an encoder; see `simsiam`."""
    return _built(MoCo, encoder, recipe, options)


def dino(encoder: Source, recipe: DINO | None = None, **options: Any) -> Program:
    """DINO around an encoder; see `simsiam`."""
    return _built(DINO, encoder, recipe, options)


def dann(encoder: Source, recipe: DANN | None = None, **options: Any) -> Program:
    """Domain-adversarial training of an encoder; see `simsiam`."""
    return _built(DANN, encoder, recipe, options)


def multi_task(encoder: Source, recipe: MultiTask | None = None, **options: Any) -> Program:
    """Several heads on an encoder, some cut off; see `simsiam`."""
    return _built(MultiTask, encoder, recipe, options)


def adversarial(encoder: Source, recipe: Adversarial | None = None, **options: Any) -> AdversarialProgram:
    """Adversarial training of a classifier, whose only float output is its scores; see `simsiam`."""
    made = _built(Adversarial, encoder, recipe, options)
    return AdversarialProgram(made.recipe, made.encoder, made.composed, made.artifacts)


def _built(cls: type[Recipe], encoder: Source, recipe: Recipe | None, options: dict[str, Any]) -> Program:
    building = {name: options.pop(name) for name in _BUILDING if name in options}
    if recipe is not None and not isinstance(recipe, cls):
        raise SpecError(f"{cls.name} takes gradcut.recipes.{cls.__name__}(...), not {recipe!r}")
    if recipe is not None and options:
        raise SpecError(f"{cls.name}: options beside a recipe ({', '.join(options)}); say them in the recipe")
    return build(cls.of(options) if recipe is None else recipe, encoder, **building)
