"""Recipes: published ways to train, composed around an exported encoder.

    program = gradcut.recipes.simsiam("encoder.onnx", projector=128, dim=128, predictor=32)
    session = program.session()
    result = session.step(view1, view2)          # .loss, .diagnostics, .outputs
    session.export("tuned.onnx")                 # the encoder, as it was given, trained

A recipe is a frozen dataclass of its numbers; to add one: a class on `Recipe`, listed in `RECIPES`.
"""

from gradcut.recipes.adversarial import Adversarial, AdversarialSession
from gradcut.recipes.base import CATEGORIES, Composed, Recipe
from gradcut.recipes.contrastive import MoCo, SimCLR
from gradcut.recipes.distillation import DINO
from gradcut.recipes.players import GAN, Players, PlayersSession, gan
from gradcut.recipes.program import Program, RecipeSession, StepResult, build
from gradcut.recipes.siamese import BYOL, SimSiam
from gradcut.recipes.table import (
    RECIPES,
    adversarial,
    byol,
    dann,
    dino,
    moco,
    multi_task,
    parse,
    simclr,
    simsiam,
)
from gradcut.recipes.tasks import DANN, MultiTask
from gradcut.recipes.views import Augmentation

__all__ = [
    "BYOL",
    "CATEGORIES",
    "DANN",
    "DINO",
    "GAN",
    "RECIPES",
    "Adversarial",
    "AdversarialSession",
    "Augmentation",
    "Composed",
    "MoCo",
    "MultiTask",
    "Players",
    "PlayersSession",
    "Program",
    "Recipe",
    "RecipeSession",
    "SimCLR",
    "SimSiam",
    "StepResult",
    "adversarial",
    "build",
    "byol",
    "dann",
    "dino",
    "gan",
    "moco",
    "multi_task",
    "parse",
    "simclr",
    "simsiam",
]
