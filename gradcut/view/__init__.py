"""Pictures of a cut graph: one description, drawn by what reads it."""

from gradcut.view.describe import Adjoint, CutGraph, Edge, Node, ParameterUse, describe, describe_model
from gradcut.view.dot import to_dot
from gradcut.view.draw import draw

__all__ = ["Adjoint", "CutGraph", "Edge", "Node", "ParameterUse", "describe", "describe_model", "draw", "to_dot"]
