"""Recipes: published ways to train, composed around an exported encoder.

    program = gradcut.recipes.simsiam("encoder.onnx", projector=128, dim=128, predictor=32)
    session = program.session()
    result = session.step(view1, view2)          # .loss, .diagnostics, .outputs
    session.export("tuned.onnx")                 # the encoder, as it was given, trained

A recipe is a frozen dataclass of its numbers; to add one: a class on `Recipe`, listed in `RECIPES`.
"""

from gradcut.recipes.base import CATEGORIES, Composed, Recipe
from gradcut.recipes.program import Program, RecipeSession, StepResult, build
from gradcut.recipes.siamese import SimSiam
from gradcut.recipes.table import RECIPES, parse, simsiam

__all__ = [
    "CATEGORIES",
    "RECIPES",
    "Composed",
    "Program",
    "Recipe",
    "RecipeSession",
    "SimSiam",
    "StepResult",
    "build",
    "parse",
    "simsiam",
]
