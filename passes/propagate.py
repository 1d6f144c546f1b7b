"""`propagate`: answer one question (of, wrt), and write the answer into the IR as derived marks on the cut.

A derived mark stands on one use, carries the reason of the cut, and is taken out again by `differentiate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.activity import NO_PATH, Activity, CutEdge, analyze_graph
from gradcut.dialect import declare, is_derived, is_mark, new_mark
from gradcut.dims import is_float
from gradcut.errors import PipelineError, SpecError
from gradcut.ops import Names
from gradcut.parameters import parameters
from gradcut.passes.base import ACTIVITY, LOSS, QUESTION, TRAINABLE, Pass, read_json, register, write_json
from gradcut.passes.stop_gradient import frozen_names
from gradcut.rules import REGISTRY
from gradcut.text import nearest


@register
@dataclass(frozen=True)
class Propagate(Pass):
    """Mark the cut of one question.

    Attributes:
        of: names of the outputs to differentiate; empty: the loss, and where there is none, every float output.
        wrt: names of the wanted values; empty: the trainables that `stop-gradient` chose.
    """

    name: ClassVar[str] = "propagate"
    of: tuple[str, ...] = ()
    wrt: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        wrt = self.wrt or tuple(read_json(model, TRAINABLE) or ())
        if not wrt:
            raise PipelineError("propagate has nothing to ask for: say wrt=, or choose trainables in stop-gradient")
        of = self.of or _objectives(model)
        clear_derived(model)
        activity = ask(model, of, wrt)
        model.meta[ACTIVITY] = activity
        write_json(model, QUESTION, {"of": list(of), "wrt": list(wrt)})
        _insert(model, activity.cut)
        declare(model)
        return ir.passes.PassResult(model, modified=True)


def _objectives(model: ir.Model) -> tuple[str, ...]:
    loss = read_json(model, LOSS)
    if loss is not None:
        return (loss["loss"],)
    return tuple(value.name or "" for value in model.graph.outputs if is_float(value))


def ask(model: ir.Model, of: Sequence[str], wrt: Sequence[str]) -> Activity:
    """The activity analysis for names of the main graph."""
    known = main_values(model.graph)
    named = parameters(model.graph, REGISTRY)
    frozen = frozen_names(model)
    return analyze_graph(
        model.graph,
        [known[name] for name in checked_names("of", of, model)],
        [known[name] for name in checked_names("wrt", wrt, model)],
        REGISTRY,
        list(named.values()),
        [value for name, value in named.items() if name in frozen],
    )


def checked_names(what: str, names: Iterable[str], model: ir.Model) -> tuple[str, ...]:
    """`names` if each is a float value of the main graph and none stands twice; else `SpecError`."""
    if isinstance(names, str):
        raise SpecError(f"{what} takes a list of names, not the text {names!r}")
    listed = tuple(names or ())
    if not listed:
        raise SpecError(f"{what} is empty; name at least one value")
    known, seen = main_values(model.graph), set[str]()
    for name in listed:
        if not isinstance(name, str):
            raise SpecError(f"{what}: {name!r} is no name of a value")
        if name not in known:
            hint = ", ".join(nearest(name, known))
            raise SpecError(f"{what}: there is no value {name!r}." + (f" Nearest: {hint}." if hint else ""))
        if not _is_float_tensor(known[name]):
            raise SpecError(f"{what}: {name!r} is {_kind(known[name])}; only floats carry a gradient")
        if name in seen:
            raise SpecError(f"{what}: {name!r} is named twice")
        seen.add(name)
    return listed


def _is_float_tensor(value: ir.Value) -> bool:
    return is_float(value) and isinstance(value.type, (ir.TensorType, type(None)))


def _kind(value: ir.Value) -> str:
    if not isinstance(value.type, ir.TensorType):
        return type(value.type).__name__.removesuffix("Type").lower()
    return value.type.dtype.name


def main_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Values of the main graph by name: inputs, initializers, outputs of its own nodes."""
    found = {value.name: value for value in (*graph.inputs, *graph.initializers.values()) if value.name}
    for node in graph:
        found.update((value.name, value) for value in node.outputs if value.name)
    return found


def clear_derived(model: ir.Model) -> None:
    """Take every derived mark out again."""
    for graph in model.graphs():
        marks = [node for node in graph if is_derived(node)]
        for mark in marks:
            source = mark.inputs[0]
            assert source is not None
            ir.convenience.replace_all_uses_with(mark.outputs[0], source)
        graph.remove(marks, safe=True)


def _insert(model: ir.Model, cut: Iterable[CutEdge]) -> None:
    names = Names.of(model)
    nodes = {node.name: node for node in model.graph.all_nodes()}
    for edge in cut:
        if edge.reason == NO_PATH:
            continue
        node = nodes[edge.node]
        value = node.inputs[edge.index]
        if value is None or is_mark(value.producer()):
            continue  # a mark of the model's own already stands there
        mark = new_mark(value, names, edge.reason, derived=True)
        node.prepend(mark)
        node.replace_input_with(edge.index, mark.outputs[0])
