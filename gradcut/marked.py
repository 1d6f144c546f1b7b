"""The model as it was given, with the marks and freezes that were asked for: what an artifacts' ``model.onnx`` is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from gradcut.passes import StopGradient
from gradcut.passes.base import FROZEN, write_json
from gradcut.passes.importer import nodes_named
from gradcut.passes.importing.functions import inline
from gradcut.passes.propagate import main_values
from gradcut.passes.stop_gradient import insert_marks
from gradcut.places import match_values, that_match
from gradcut.subgraphs import body_tensors


def mark_given(given: ir.Model, places: Sequence[str], trained: Collection[str], frozen: Sequence[str]) -> ir.Model:
    """Mark a model in place.

    Its functions are inlined where what trains, or a mark, is inside one.

    Args:
        places: patterns, as of ``stop_at``.
        frozen: the names of all parameters that are frozen.
    """
    there = {*main_values(given.graph), *body_tensors(given.graph)} >= set(trained)
    if not (there and len(that_match(places, given.graph)) == len(places)):
        inline(given)
    with nodes_named(given):  # as the import named them, so that ``value->node`` finds them here too
        found = that_match(places, given.graph)  # the rest is in what only the import has made
        insert_marks(given, match_values(found, given.graph), "stop-at")
    StopGradient()(given)
    write_json(given, FROZEN, list(frozen))
    return given
