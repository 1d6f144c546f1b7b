"""gradcut: a compiler that turns an exported ONNX model into a training program.

It marks where gradients stop, works out what is left of the backward graph, builds only that, and emits training
graphs in plain ONNX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradcut import errors, losses, passes, recipes, schedules, torch
    from gradcut.activity import Activity, CutEdge
    from gradcut.api import analyze, freeze, load, stop_gradient, unfreeze, vjp
    from gradcut.artifacts import TrainingArtifacts
    from gradcut.compiler import compile
    from gradcut.errors import GradcutError
    from gradcut.graph_view import to_networkx
    from gradcut.heads import replace_head
    from gradcut.optimizers import LAMB, LARS, SGD, Adagrad, Adam, AdamW, RMSprop
    from gradcut.passes import Pipeline
    from gradcut.phases import Phase
    from gradcut.relatives import (
        conditional_stop,
        custom_gradient,
        gradient_clip,
        gradient_mask,
        gradient_reversal,
        gradient_scale,
        straight_through,
    )
    from gradcut.rules import register_rule
    from gradcut.runtime.session import TrainingSession
    from gradcut.state import EMA, State
    from gradcut.steps import Step
    from gradcut.zeros import zero_grad_like

#: Where each public name lives. It is imported on first use: the command line's help needs none of them, and a
#: `TrainingSession` is the only one that needs a runtime.
_HOMES = {
    "Activity": "activity",
    "Adagrad": "optimizers",
    "Adam": "optimizers",
    "AdamW": "optimizers",
    "CutEdge": "activity",
    "EMA": "state",
    "GradcutError": "errors",
    "LAMB": "optimizers",
    "LARS": "optimizers",
    "Phase": "phases",
    "Pipeline": "passes",
    "RMSprop": "optimizers",
    "SGD": "optimizers",
    "State": "state",
    "Step": "steps",
    "TrainingArtifacts": "artifacts",
    "TrainingSession": "runtime.session",
    "analyze": "api",
    "compile": "compiler",
    "conditional_stop": "relatives",
    "custom_gradient": "relatives",
    "freeze": "api",
    "gradient_clip": "relatives",
    "gradient_mask": "relatives",
    "gradient_reversal": "relatives",
    "gradient_scale": "relatives",
    "load": "api",
    "register_rule": "rules",
    "replace_head": "heads",
    "stop_gradient": "api",
    "straight_through": "relatives",
    "to_networkx": "graph_view",
    "unfreeze": "api",
    "vjp": "api",
    "zero_grad_like": "zeros",
}
_MODULES = ("errors", "losses", "passes", "recipes", "schedules", "torch")

__all__ = [
    "EMA",
    "LAMB",
    "LARS",
    "SGD",
    "Activity",
    "Adagrad",
    "Adam",
    "AdamW",
    "CutEdge",
    "GradcutError",
    "Phase",
    "Pipeline",
    "RMSprop",
    "State",
    "Step",
    "TrainingArtifacts",
    "TrainingSession",
    "analyze",
    "compile",
    "conditional_stop",
    "custom_gradient",
    "errors",
    "freeze",
    "gradient_clip",
    "gradient_mask",
    "gradient_reversal",
    "gradient_scale",
    "load",
    "losses",
    "passes",
    "recipes",
    "register_rule",
    "replace_head",
    "schedules",
    "stop_gradient",
    "straight_through",
    "to_networkx",
    "torch",
    "unfreeze",
    "vjp",
    "zero_grad_like",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"gradcut.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'gradcut' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradcut.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
