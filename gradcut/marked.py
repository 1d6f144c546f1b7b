"""The model as it was given, with the marks and freezes that were asked for: what an artifacts' ``model.onnx`` is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.passes import StopGradient
from gradcut.passes.base import FROZEN, write_json
from gradcut.passes.importer import nodes_named
from gradcut.passes.importing.functions import inline
from gradcut.passes.propagate import main_values
from gradcut.passes.stop_gradient import insert_marks
from gradcut.spec import match_values
from gradcut.subgraphs import body_tensors


def mark_given(given: ir.Model, places: Sequence[str], trained: Collection[str], frozen: Sequence[str]) -> ir.Model:
    """Mark a model in place.

    Its functions are inlined where what trains, or a mark, is inside one.

    Args:
        places: patterns, as of ``stop_at``.
        frozen: the names of all parameters that are frozen.
    """
    there = {*main_values(given.graph), *body_tensors(given.graph)} >= set(trained)
    if not (there and all(_matches(pattern, given.graph) for pattern in places)):
        inline(given)
    with nodes_named(given):  # as the import named them, so that ``value->node`` finds them here too
        found = [pattern for pattern in places if _matches(pattern, given.graph)]
        insert_marks(given, match_values(found, given.graph), "stop-at")
    StopGradient()(given)
    write_json(given, FROZEN, list(frozen))
    return given


def _matches(pattern: str, graph: ir.Graph) -> bool:
    """False for what only the import has made, such as the inside of a function."""
    try:
        return bool(match_values([pattern], graph))
    except SpecError:
        return False
