"""The graph that moves declared state after an update of the parameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.ops import Names
from gradcut.parameters import decide
from gradcut.passes.loss_graph import bring_to_one_opset, splice
from gradcut.passes.propagate import main_values
from gradcut.rules import REGISTRY
from gradcut.state import NEXT, STEP, State, check_twice
from gradcut.text import hint, join_names


@dataclass(frozen=True)
class Move:
    """One declaration with its update graph, imported.

    Attributes:
        states: the declared names. reads: names of the model's values that the graph reads, states left out.
    """

    states: tuple[str, ...]
    update: ir.Model
    reads: tuple[str, ...]


def declared_moves(model: ir.Model, states: Sequence[State]) -> list[Move]:
    """The declarations against an imported model, everything brought to one opset.

    Raises:
        SpecError: a declaration that does not fit the model.
    """
    known = main_values(model.graph)
    parameters = {name: known[name] for name, d in decide(model.graph, REGISTRY).items() if d.kind == "parameter"}
    resolved = [state.resolved(known, parameters) for state in states]
    check_twice(resolved)
    updates = [state.graph(known, model.opset_imports[""]) for state in resolved]
    bring_to_one_opset(model, updates)
    known = main_values(model.graph)
    declared = {name for state in resolved for name in state.names}
    return [as_move(state, update, known, declared) for state, update in zip(resolved, updates, strict=True)]


def is_weight(value: ir.Value) -> bool:
    """Whether a value is an initializer, or a Constant that may become one."""
    return value.is_initializer() or _is_constant(value)


def as_move(state: State, update: ir.Model, known: Mapping[str, ir.Value], declared: Collection[str]) -> Move:
    """Check an update against the model.

    Args:
        known: the values of the imported model. declared: the names of all declared states.

    Raises:
        SpecError: it reads or moves what is not there, or what it gives does not fit.
    """
    what = f"state {join_names(state.names, 3)}"
    for name in state.names:
        if name not in known:
            raise SpecError(f"{what}: the model has no {name!r}{hint(name, known)}")
        if known[name].producer() is not None and not _is_constant(known[name]):
            raise SpecError(f"{what}: {name!r} is computed by the model; state is an initializer or an input of it")
    _fit_outputs(what, state.names, update.graph, known)
    reads = [value.name or "" for value in update.graph.inputs]
    lost = [name for name in reads if name not in known and name != STEP]
    if lost:
        raise SpecError(f"{what}: its update reads {lost[0]!r}, which the model has not{hint(lost[0], known)}")
    return Move(state.names, update, tuple(n for n in reads if n not in declared and (n != STEP or n in known)))


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant" and not producer.domain


def _fit_outputs(what: str, names: Sequence[str], graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
    """The outputs are the next of each name, in that order."""
    given = {value.name: value for value in graph.outputs}
    if len(names) == 1 and len(given) == 1:
        given = {f"{names[0]}{NEXT}": graph.outputs[0]}
    for name in names:
        if f"{name}{NEXT}" not in given:
            raise SpecError(f"{what}: its update gives no {name + NEXT!r}; it gives {join_names(map(str, given))}")
        after, before = given[f"{name}{NEXT}"], known[name]
        unlike = after.dtype is not None and before.dtype is not None and after.dtype != before.dtype
        if unlike or not _may_be_one_shape(after.shape, before.shape):
            raise SpecError(f"{what}: its update gives {_type(after)}, and {name!r} is {_type(before)}")
    graph.outputs[:] = [given[f"{name}{NEXT}"] for name in names]


def _may_be_one_shape(a: ir.Shape | None, b: ir.Shape | None) -> bool:
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        x == y for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int)
    )


def _type(value: ir.Value) -> str:
    return f"{value.dtype.name if value.dtype else '?'}{'' if value.shape is None else value.shape}"


def moves_here(
    move: Move, values: Mapping[str, ir.Value], weights: Collection[str], trainable: Collection[str]
) -> bool:
    """Whether one of several steps moves a state: it has every value that is read, and trains a weight that is.

    Args:
        values: of the step's graph. weights: names of the whole model's initializers; `trainable` those of the step.
    """
    read = [name for name in move.reads if name in weights]
    return all(n in values for n in move.reads if n not in weights) and (not read or bool({*read} & {*trainable}))


def state_graph(
    moves: Sequence[Move],
    model: ir.Model,
    current: Mapping[str, ir.Value],
    still: Mapping[str, ir.TensorProtocol],
    step: str,
    names: Names,
) -> tuple[ir.Model, dict[str, str]]:
    """States, updated parameters and captured values in; the next of each state out.

    Args:
        model: the training graph, for the opset. current: for each name that an update reads, the value that the
            training graph has for it: its name there is the input's.
        step: the name of the scalar.
        still: weights that nothing moves; they lie in the graph. names: taken in the training graph and beside it.

    Returns:
        The graph, and the output of each state.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": model.opset_imports[""]}, name="state")
    result = ir.Model(graph, ir_version=model.ir_version)
    inputs: dict[str, ir.Value] = {}
    after: dict[str, str] = {}
    for move in moves:
        update = move.update.clone()
        feeds = {}
        for its in update.graph.inputs:
            name = its.name or ""
            here = current.get(name)  # not what another step's graph alone has
            source = step if here is None and name == STEP else name if here is None else here.name or ""
            like = its if here is None else here
            if source not in inputs:
                inputs[source] = ir.Value(name=source, type=like.type, shape=like.shape, const_value=still.get(name))
            feeds[its] = inputs[source]
        _, outputs = splice(graph, update.graph, feeds, names)
        result.functions.update(update.functions)
        for state, value in zip(move.states, outputs, strict=True):
            after[state] = _give(graph, value, names.fresh(f"{state}{NEXT}"))
    for value in inputs.values():
        graph.inputs.append(value) if value.const_value is None else graph.register_initializer(value)
    return result, after


def _give(graph: ir.Graph, value: ir.Value, name: str) -> str:
    """An output is a value that a node gives, under a name of its own."""
    if value.producer() is None or value.is_graph_output():
        node = ir.Node("", "Identity", [value], outputs=[ir.Value(type=value.type, shape=value.shape)])
        graph.append(node)
        value = node.outputs[0]
    value.name = name
    graph.outputs.append(value)
    return name
