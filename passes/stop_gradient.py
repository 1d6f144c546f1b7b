"""`stop-gradient`: put marks where they are asked for, and choose what trains.

A mark is part of what the model means: it stays until `emit`. On a value it stops all uses (a graph output keeps its
name, on the mark's side); on one use it stops that use alone. `train` and `freeze` only write metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.dialect import declare, new_mark, stand_for
from gradcut.dims import is_float
from gradcut.errors import SpecError
from gradcut.ops import Names
from gradcut.parameters import Decision, decide
from gradcut.passes.base import DECISIONS, DECLARED, FROZEN, HELD, TRAINABLE, Pass, read_json, register, write_json
from gradcut.passes.importer import lift_constant
from gradcut.passes.importing.kinds import check_weights
from gradcut.places import Uses, match_values
from gradcut.rules import REGISTRY
from gradcut.spec import match_parameters
from gradcut.text import join_names

#: The first IR version whose models hold functions, which is what a mark is.
FUNCTIONS_SINCE = 8
#: Makes the nodes that are to stand behind a value, under names of its own.
Make = Callable[[ir.Value, Names], Sequence[ir.Node]]


@register
@dataclass(frozen=True)
class StopGradient(Pass):
    """Insert marks and choose the trainables.

    Attributes:
        at: patterns over values, scopes and single uses (``value->node``).
        train: patterns over parameters and scopes; empty: every parameter.
        freeze: likewise; it wins over `train`, and adds to what the model already freezes.
        choose: write the trainables down; without it the pass only inserts marks.
        state: tensors that another graph moves: never trained, and inputs of this one.
        lift: patterns over what other steps train: the constants among it, named exactly, are initializers here too.
    """

    name: ClassVar[str] = "stop-gradient"
    at: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    choose: bool = False
    state: tuple[str, ...] = ()
    lift: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.choose or self.train or self.freeze:
            _choose(model, self)
        insert_marks(model, match_values(self.at, model.graph), "stop-at")
        declare(model)
        return ir.passes.PassResult(model, modified=True)


def _choose(model: ir.Model, asked: StopGradient) -> None:
    train, freeze, state = asked.train, asked.freeze, asked.state
    if not train:
        check_weights(model)
    decisions = decide(model.graph, REGISTRY)
    known = [name for name, d in decisions.items() if d.kind == "parameter" and name not in state]
    others = [name for name, d in decisions.items() if d.kind == "constant" and name not in state]
    _refuse_state(train, state)
    lost = sorted(frozen_names(model) - decisions.keys())
    if lost:
        raise SpecError(f"the model's metadata property {FROZEN} names {join_names(lost)}, which it does not hold")
    frozen = frozen_names(model) | set(match_parameters(freeze, model.graph, known, others))
    wanted = match_parameters(train, model.graph, known, others) if train else known
    trainable = [name for name in wanted if name not in frozen]
    if not trainable:
        why = "every parameter that `train` names is frozen" if wanted else "the model has no parameter"
        raise SpecError(f"nothing is left to train: {why}")
    for name in trainable:
        _make_trainable(model.graph, decisions[name])
    for name in (name for name in others if name in asked.lift and name not in trainable):
        _make_trainable(model.graph, decisions[name])
    for name in state:
        _make_input(model.graph, name, decisions)
    if state:
        write_json(model, HELD, list(state))
    model.meta[DECLARED] = {value.name: value for value in model.graph.inputs if value.name in state}
    model.meta[DECISIONS] = decisions
    write_json(model, TRAINABLE, trainable)
    write_json(model, FROZEN, sorted(frozen))


def _refuse_state(train: Sequence[str], state: Sequence[str]) -> None:
    named = [name for name in train if name in state]
    if named:
        raise SpecError(f"train names {join_names(named)}, declared as state, which moves by its update")


def _make_trainable(graph: ir.Graph, decision: Decision) -> None:
    """A constant that `train` names exactly is a float, and becomes an initializer."""
    if not is_float(decision.value):
        raise SpecError(f"train: {decision.name!r} is {decision.value.dtype}; only floats carry a gradient")
    if not decision.value.is_initializer():
        lift_constant(graph, decision.value)


def _make_input(graph: ir.Graph, name: str, decisions: Mapping[str, Decision]) -> None:
    """What is an input already stays one; the decision keeps the tensor as it was."""
    decision = decisions.get(name)
    if decision is not None and not decision.value.is_initializer():
        lift_constant(graph, decision.value)
    if name in graph.initializers:
        weight = graph.initializers[name]
        value = ir.Value(name=name, type=weight.type, shape=weight.shape)
        ir.convenience.replace_all_uses_with(weight, value, replace_graph_outputs=True)
        del graph.initializers[name]
        graph.inputs.append(value)


def frozen_names(model: ir.Model) -> set[str]:
    """The parameters that the model itself freezes.

    Raises:
        SpecError: the metadata property is no list of names.
    """
    names = read_json(model, FROZEN)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise SpecError(f"the model's metadata property {FROZEN} is a JSON list of parameter names, not {names!r}")
    return set(names or ())


def insert_marks(model: ir.Model, places: Iterable[Uses], reason: str | None) -> list[ir.Value]:
    """A mark at each place; the marks' outputs.

    Args:
        reason: ``stop-at`` for marks that one question asks for: an analysis then names them after what they mark.
    """

    def mark(value: ir.Value, names: Names) -> list[ir.Node]:
        node = new_mark(value, names, reason)
        if reason == "stop-at":
            stand_for(node.outputs[0], value)
        return [node]

    return insert(model, places, mark)


def insert(model: ir.Model, places: Iterable[Uses], make: Make) -> list[ir.Value]:
    """At each place the nodes that `make` makes of the value there; the last one's output takes the uses over."""
    names = Names.of(model)
    inserted = [_insert(model.graph, place, names, make) for place in places]
    if inserted:
        model.ir_version = max(model.ir_version or 0, FUNCTIONS_SINCE)
    return inserted


def _insert(graph: ir.Graph, place: Uses, names: Names, make: Make) -> ir.Value:
    value = place.value
    uses = list(value.uses()) if place.whole else list(place.uses)  # gathered before the mark reads the value
    nodes = make(value, names)
    marked = nodes[-1].outputs[0]
    _place(graph, value, nodes)
    for node, index in uses:
        node.replace_input_with(index, marked)
    if place.whole:
        _take_over_output(graph, value, marked)
    return marked


def _place(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    producer = value.producer()
    if producer is not None:
        producer.append(nodes)
        return
    home = value.graph if isinstance(value.graph, ir.Graph) else graph
    first = next(iter(home), None)
    if first is None:
        home.extend(nodes)
    else:
        first.prepend(nodes)


def _take_over_output(graph: ir.Graph, value: ir.Value, marked: ir.Value) -> None:
    """Where the value is an output, the mark's becomes it, under its name; an input that is an output stays it."""
    if not value.is_graph_output():
        return
    home = value.graph if isinstance(value.graph, ir.Graph) else graph
    given = value.is_graph_input() or value.is_initializer()
    if given and home is graph:
        return  # one name cannot stand for both
    for position, output in enumerate(home.outputs):
        if output is value:
            home.outputs[position] = marked
    if not given:
        value.name, marked.name = marked.name, value.name
