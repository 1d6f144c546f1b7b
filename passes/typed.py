"""Types and shapes of values of a model that is not imported yet, and is to stay as it is."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gradcut.errors import GradcutError
from gradcut.passes.importer import Import
from gradcut.passes.propagate import main_values


def typed_values(model: ir.Model, values: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """For each value one of its name whose type and shape are known as far as can be: as the import infers them."""
    if all(value.dtype is not None and value.shape is not None for value in values):
        return {value: value for value in values}
    work, known = model.clone(), main_values(model.graph)
    try:
        Import()(work)
        inferred = main_values(work.graph)
    except GradcutError:  # what is wrong with the model is said where it is used
        inferred = {}
    mine = {value for value in values if known.get(value.name or "") is value}
    return {value: inferred.get(value.name or "", value) if value in mine else value for value in values}
