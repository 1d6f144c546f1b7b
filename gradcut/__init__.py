"""gradcut: a compiler that turns an exported ONNX model into a training program.

It marks where gradients stop, works out what is left of the backward graph, builds only that, and emits training
graphs in plain ONNX.
"""

from gradcut import errors, passes
from gradcut.activity import Activity, CutEdge
from gradcut.api import analyze, freeze, load, stop_gradient, unfreeze, vjp
from gradcut.artifacts import TrainingArtifacts
from gradcut.compiler import compile
from gradcut.errors import GradcutError
from gradcut.graph_view import to_networkx
from gradcut.optimizers import SGD, AdamW
from gradcut.passes import Pipeline
from gradcut.rules import register_rule

__all__ = [
    "SGD",
    "Activity",
    "AdamW",
    "CutEdge",
    "GradcutError",
    "Pipeline",
    "TrainingArtifacts",
    "TrainingSession",
    "analyze",
    "compile",
    "errors",
    "freeze",
    "load",
    "passes",
    "register_rule",
    "stop_gradient",
    "to_networkx",
    "unfreeze",
    "vjp",
]


def __getattr__(name: str) -> object:
    """`TrainingSession` on first use: it is the only thing here that needs a runtime."""
    if name == "TrainingSession":
        from gradcut.runtime.session import TrainingSession

        return TrainingSession
    raise AttributeError(f"module 'gradcut' has no attribute {name!r}")
