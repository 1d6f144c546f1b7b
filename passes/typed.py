"""Types and shapes of values of a model that is not imported yet, and is to stay as it is."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gradcut.errors import GradcutError
from gradcut.passes.importer import Import
from gradcut.places import values_of


def typed_values(model: ir.Model, values: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """For each value one of its name whose type and shape are known as far as can be: as the import infers them."""
    if all(value.dtype is not None and value.shape is not None for value in values):
        return {value: value for value in values}
    work = model.clone()
    try:
        Import()(work)
    except GradcutError:  # what is wrong with the model is said where it is used
        return {value: value for value in values}
    before, inferred = _only_ones(model.graph), _only_ones(work.graph)
    return {value: inferred.get(value.name, value) if value.name in before else value for value in values}


def _only_ones(graph: ir.Graph) -> dict[str | None, ir.Value]:
    """Values that are alone in their name; graphs inside may use one several times."""
    return {name: several[0] for name, several in values_of(graph).items() if len(several) == 1}
