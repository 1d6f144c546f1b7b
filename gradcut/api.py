"""The functions on models: marks, freezes, questions, gradients."""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx
import onnx_ir as ir

from gradcut.activity import Activity
from gradcut.dialect import declare
from gradcut.parameters import decide
from gradcut.passes import BodyDraws, Differentiate, Fold, Import, Lower, Pipeline, Propagate, Simplify, StopGradient
from gradcut.passes.base import FROZEN, GRADIENTS, PIPELINE, read_json, write_json
from gradcut.passes.importer import check_opset, nodes_named
from gradcut.passes.importing.straight_through import allow
from gradcut.passes.pipeline import collection_held
from gradcut.passes.propagate import ask, checked_names, clear_derived
from gradcut.passes.stop_gradient import frozen_names, insert_marks
from gradcut.places import match_values
from gradcut.rules import REGISTRY
from gradcut.source import Source, load, own, require_one_message, take_in
from gradcut.spec import as_patterns, match_parameters

VJP = "gradcut.vjp"
IR_VERSION = 10


def stop_gradient(model: Source, at: str | Sequence[str]) -> ir.Model:
    """Put a mark on every value, scope or use (``value->node``, ``trunk->head_b``) that a pattern names.

    Forward a mark is the identity, backward a stop at every order. An `onnx_ir.Model` is changed in place and
    returned; a path or a proto is loaded.

    Raises:
        PatternError: a pattern matches nothing.
    """
    loaded = load(model)
    check_opset(loaded)
    with nodes_named(loaded):
        insert_marks(loaded, match_values(as_patterns(at), loaded.graph), None)
    declare(loaded)
    return loaded


def freeze(model: Source, parameters: str | Sequence[str]) -> ir.Model:
    """Freeze the parameters that patterns name, in the model's own metadata; `compile` respects it."""
    loaded = load(model)
    graph = _imported(loaded).graph
    decisions = decide(graph, REGISTRY)
    known = [name for name, d in decisions.items() if d.kind == "parameter"]
    others = [name for name, d in decisions.items() if d.kind == "constant"]
    chosen = match_parameters(as_patterns(parameters), graph, known, others)
    write_json(loaded, FROZEN, sorted(frozen_names(loaded) | set(chosen)))
    return loaded


def unfreeze(model: Source, parameters: str | Sequence[str]) -> ir.Model:
    """Take the parameters that patterns name out of the model's frozen ones.

    Raises:
        PatternError: a pattern names no parameter of the model.
    """
    loaded = load(model)
    frozen = frozen_names(loaded)
    graph = _imported(loaded).graph
    known = [name for name, d in decide(graph, REGISTRY).items() if d.kind == "parameter"]
    everything = list(dict.fromkeys([*known, *sorted(frozen)]))
    chosen = match_parameters(as_patterns(parameters), graph, everything)
    left = sorted(frozen - set(chosen))
    write_json(loaded, FROZEN, left)
    if not left:
        del loaded.metadata_props[FROZEN]
    return loaded


def analyze(model: Source, of: Sequence[str], wrt: Sequence[str], stop_at: str | Sequence[str] = ()) -> Activity:
    """Which values are varied, useful and active for a question, and where the cut is and why.

    Args:
        of, wrt: exact names of float values of the main graph.
        stop_at: patterns for marks that count for this question only.
    """
    work = _imported(model)
    of, wrt = checked_names("of", of, work), checked_names("wrt", wrt, work)
    with collection_held():
        clear_derived(work)  # of another question
        StopGradient(at=as_patterns(stop_at))(work)
        return ask(work, of, wrt)


def vjp(
    model: Source,
    wrt: Sequence[str],
    of: Sequence[str],
    stop_at: str | Sequence[str] = (),
    *,
    quantized: str = "refuse",
) -> onnx.ModelProto:
    """The model with its vector-Jacobian product: a graph for any InferenceSession.

    Inputs: those of the model, then one cotangent ``<y>_grad`` per name in `of`, of the type and shape of y.
    Outputs: the values in `of`, then the gradients ``<x>_grad`` of `wrt`, in the order asked. A name already taken
    gets the next free suffix; the names stand in the metadata ``gradcut.vjp``. What no path reaches gets zeros of its
    run-time shape. Marks stay in the result, so differentiating it again is right.

    Args:
        quantized: ``refuse`` a quantised model, or let gradients pass its rounding ``straight-through``, as
            `gradcut.compile` does.

    Raises:
        SpecError: an empty list, a duplicate, an unknown name, a value that is no float.
        NoGradientError: an operator on an active path has no rule for its configuration.
        ImportModelError: the model cannot be taken in, or its weights are over 1.9 GB, too many for a proto.
    """
    work = _imported(model, quantized)
    require_one_message(work, "what vjp gives")
    of, wrt = checked_names("of", of, work), checked_names("wrt", wrt, work)
    pipeline = Pipeline(
        (
            StopGradient(at=as_patterns(stop_at)),
            BodyDraws(),
            Propagate(of=tuple(of), wrt=tuple(wrt)),
            Differentiate(),
            Fold(floats=False),  # the result may be differentiated again, by a float Constant too
            Simplify(),
            Lower(),
        )
    )
    pipeline.run(work)
    names = read_json(work, GRADIENTS)
    del work.metadata_props[GRADIENTS]
    work.metadata_props[VJP] = json.dumps({"of": names["of"], "cotangents": names["seeds"], "wrt": names["wrt"]})
    work.metadata_props[PIPELINE] = str(pipeline)
    work.ir_version = (
        max(IR_VERSION, min(work.ir_version or IR_VERSION, 13)) if work.opset_imports[""] > 21 else IR_VERSION
    )
    take_in(work)  # a proto has no folder to look for weights in
    return ir.to_proto(work)


def _imported(model: Source, quantized: str = "refuse") -> ir.Model:
    work = own(model)
    allow(work, quantized)
    with collection_held():
        Import()(work)
    return work


__all__ = ["analyze", "freeze", "load", "stop_gradient", "unfreeze", "vjp"]
