"""gradcut: a compiler that turns an exported ONNX model into a training program.

It marks where gradients stop, works out what is left of the backward graph, builds only that, and emits training
graphs in plain ONNX.
"""

from gradcut import errors, passes
from gradcut.activity import Activity, CutEdge
from gradcut.api import analyze, freeze, load, stop_gradient, unfreeze, vjp
from gradcut.errors import GradcutError
from gradcut.passes import Pipeline
from gradcut.rules import register_rule

__all__ = [
    "Activity",
    "CutEdge",
    "GradcutError",
    "Pipeline",
    "analyze",
    "errors",
    "freeze",
    "load",
    "passes",
    "register_rule",
    "stop_gradient",
    "unfreeze",
    "vjp",
]
