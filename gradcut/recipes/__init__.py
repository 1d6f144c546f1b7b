"""Recipes: ways to train that people publish, composed around an exported encoder."""

from gradcut.recipes.base import CATEGORIES, Recipe
from gradcut.recipes.program import Program, RecipeSession, StepResult, build
from gradcut.recipes.siamese import SimSiam

__all__ = ["CATEGORIES", "Program", "Recipe", "RecipeSession", "SimSiam", "StepResult", "build"]
