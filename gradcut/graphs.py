"""The graphs beside the training graph, the optimizer's and the whole step in one; what the manifest says of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import onnx_ir as ir

from gradcut.dims import static_dims
from gradcut.ops import Builder, Names
from gradcut.optimizers import EMA, NORM_EPS, Optimizer, Scalars, UpdatePlan
from gradcut.optimizers.base import work_dtype
from gradcut.passes.base import PIPELINE
from gradcut.passes.loss_graph import splice

NEXT = "_next"


@dataclass(frozen=True)
class Trained:
    """One trained parameter and the names of what belongs to it, the same in every graph and in the checkpoint."""

    name: str
    gradient: str
    dtype: ir.DataType
    shape: ir.Shape
    slots: Mapping[str, str]
    next: Mapping[str, str] = field(default_factory=dict)

    @property
    def slot_dtype(self) -> ir.DataType:
        """At least FLOAT: in a half precision type the squares of small gradients are 0."""
        return slot_dtype(self.dtype)


def slot_dtype(dtype: ir.DataType) -> ir.DataType:
    """What the optimizer's state of a parameter is kept in."""
    return ir.DataType.FLOAT if dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else dtype


@dataclass(frozen=True)
class StepNames:
    """Names of the scalars of a step.

    Attributes:
        clocks: of each count of updates beside the step's own: its name, and that of its next.
    """

    learning_rate: str
    step: str
    step_next: str
    seed: str | None
    gradient_norm: str | None = None
    clocks: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class SlotNames:
    """Names of optimizer state: one of a kind over all steps that share a checkpoint.

    Args:
        names: what is taken in any of their graphs.
        owner: the step that the state is of; empty: steps that update a parameter alike share its state.
    """

    def __init__(self, names: Names, owner: str = "") -> None:
        self._names, self._prefix = names, f"{owner}/" if owner else ""
        self._given: dict[tuple[str, str], str] = {}

    def of(self, parameter: str, slot: str) -> str:
        """The name of one slot, the same whenever it is asked for."""
        if (parameter, slot) not in self._given:
            self._given[parameter, slot] = self._names.fresh(f"{self._prefix}{parameter}_{slot}")
        return self._given[parameter, slot]


def name_trained(
    training: ir.Model, gradients: Mapping[str, str], plan: UpdatePlan, names: Names, state: SlotNames
) -> list[Trained]:
    """Names for the slots and the next values of every trained parameter, in the order of the graph's inputs."""
    inputs = {value.name: value for value in training.graph.inputs}
    trained = []
    for name, gradient in gradients.items():
        value = inputs[name]
        assert value.dtype is not None and value.shape is not None
        slots = {slot: state.of(name, slot) for slot in plan.slots(name)}
        names.take(slots.values())
        nexts = {key: names.fresh(f"{key}{NEXT}") for key in (name, *slots.values())}
        trained.append(Trained(name, gradient, value.dtype, value.shape, slots, nexts))
    return trained


def optimizer_graph(plan: UpdatePlan, trained: Sequence[Trained], scalars: StepNames, opset: int) -> ir.Model:
    """Parameters, gradients, slots, learning rate and step in; the next of each out.

    Where gradients are clipped by their norm, that norm (before) comes out too, as `gradient_norm`: where it is not
    finite, a host throws the step away.
    """
    graph = _empty("optimizer", opset)
    values: dict[str, ir.Value] = {}
    for one in trained:
        for name in (one.name, one.gradient):
            values[name] = ir.Value(name=name, type=ir.TensorType(one.dtype), shape=one.shape)
        values |= {name: _slot(one, name) for name in one.slots.values()}
    graph.inputs.extend(values.values())
    model = _model(graph)
    names = Names([*values, *(n for one in trained for n in one.next.values())])
    _append_update(model, plan, trained, scalars, values, names)
    return model


def step_graph(
    training: ir.Model, plan: UpdatePlan, trained: Sequence[Trained], scalars: StepNames, state: Mapping[str, str]
) -> ir.Model:
    """The training graph with the update behind it: every state in, its next out. No gradient leaves it.

    Args:
        state: running statistics and the like: input name -> output name.
    """
    model = training.clone()
    graph = model.graph
    values = {value.name or "": value for value in (*graph.inputs, *graph.outputs)}
    gradients = {one.gradient for one in trained}
    nexts = set(state.values())
    kept = [value for value in graph.outputs if value.name not in gradients]
    graph.outputs[:] = [value for value in kept if value.name not in nexts]
    drawn = [values[name] for name in (scalars.seed, scalars.step) if name in values]
    graph.inputs[:] = [value for value in graph.inputs if value not in drawn]
    for one in trained:
        for name in one.slots.values():
            values[name] = _slot(one, name)
            graph.inputs.append(values[name])
    if scalars.seed in values:
        graph.inputs.append(values[scalars.seed])
    names = Names.of(model)
    names.take(n for one in trained for n in one.next.values())
    _append_update(model, plan, trained, scalars, values, names)
    graph.outputs.extend(value for value in kept if value.name in nexts)
    return model


def append_state(step: ir.Model, state: ir.Model, after: Mapping[str, str], captured: Collection[str]) -> None:
    """Put the updates of declared state behind a step: each state in, its next out.

    Args:
        after: the output that is the next of what the step itself moves, which the updates read in its place.
        captured: outputs that only the updates read; they go.
    """
    graph, added = step.graph, state.clone()
    values = {value.name or "": value for value in (*graph.inputs, *graph.initializers.values(), *graph.outputs)}
    feeds = {}
    for its in added.graph.inputs:
        source = values.get(after.get(its.name or "", its.name or ""))
        if source is not None:
            feeds[its] = source
    names = Names.of(step)
    nexts = [value.name for value in added.graph.outputs]
    _, outputs = splice(graph, added.graph, feeds, names)
    step.functions.update(added.functions)
    graph.outputs[:] = [value for value in graph.outputs if value.name not in captured]
    for value, name in zip(outputs, nexts, strict=True):
        value.name = name
        graph.outputs.append(value)


def _slot(one: Trained, name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(one.slot_dtype), shape=one.shape)


def _append_update(
    model: ir.Model,
    plan: UpdatePlan,
    trained: Sequence[Trained],
    scalars: StepNames,
    values: dict[str, ir.Value],
    names: Names,
) -> None:
    graph = model.graph
    lr = _scalar(values, scalars.learning_rate, ir.DataType.FLOAT)
    step = _scalar(values, scalars.step, ir.DataType.INT64)
    clocks = {clock: _scalar(values, name, ir.DataType.INT64) for clock, (name, _) in scalars.clocks.items()}
    graph.inputs.extend([lr, step, *clocks.values()])
    b = Builder(names, prefix="update_")
    outputs: list[tuple[str, ir.Value]] = []
    with b.arithmetic():
        gradients, norm = _clipped(b, plan, {one.name: values[one.gradient] for one in trained})
        prepared = _Prepared(b, plan, lr, {"": step, **clocks})
        for one in trained:
            slots = {slot: values[name] for slot, name in one.slots.items()}
            parameter, after = prepared.update(one.name, values[one.name], gradients[one.name], slots)
            outputs.append((one.next[one.name], parameter))
            outputs += [(one.next[one.slots[slot]], value) for slot, value in after.items()]
            for value in (parameter, *after.values()):
                value.shape = one.shape
        one_more = b.constant(1, ir.DataType.INT64)
        outputs.append((scalars.step_next, b.Add(step, one_more)))
        outputs += [(after, b.Add(clocks[clock], one_more)) for clock, (_, after) in scalars.clocks.items()]
        if norm is not None and scalars.gradient_norm is not None:
            outputs.append((scalars.gradient_norm, b.Cast(norm, to=ir.DataType.FLOAT)))
    graph.extend(b.nodes)
    for name, value in outputs:
        value.name = name
        graph.outputs.append(value)


class _Prepared:
    """Updates of parameters, with the scalars of each optimizer built once."""

    def __init__(self, b: Builder, plan: UpdatePlan, lr: ir.Value, clocks: Mapping[str, ir.Value]) -> None:
        self.b, self.plan, self.lr, self.clocks = b, plan, lr, clocks
        self._scalars: dict[tuple[Optimizer, str], Scalars] = {}

    def update(
        self, name: str, parameter: ir.Value, gradient: ir.Value, slots: Mapping[str, ir.Value]
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        """The next value of a parameter and of its slots, its running average included."""
        optimizer = self.plan.of(name)
        result, after = optimizer.update(self.b, self._of(optimizer, self.plan.clock(name)), parameter, gradient, slots)
        if self.plan.ema is not None:
            average = slots[EMA]
            fresh = self.b.Cast(result, to=average.dtype)
            after[EMA] = average * self.plan.ema + fresh * (1.0 - self.plan.ema)
        return result, after

    def _of(self, optimizer: Optimizer, clock: str) -> Scalars:
        if (optimizer, clock) not in self._scalars:
            factor, rate = self.plan.factor(optimizer), self.lr
            if factor != 1.0:
                rate = self.b.Cast(rate, to=ir.DataType.DOUBLE) * factor
            self._scalars[optimizer, clock] = optimizer.prepare(self.b, rate, self.clocks[clock])
        return self._scalars[optimizer, clock]


def _clipped(
    b: Builder, plan: UpdatePlan, gradients: Mapping[str, ir.Value]
) -> tuple[dict[str, ir.Value], ir.Value | None]:
    """The gradients by value and then by their norm, and the norm between the two, a DOUBLE scalar.

    Each costs one full-size operator; the norm a reduction. Half precision is left for single: its squares overflow.
    """
    taken = dict(gradients)
    if plan.clip_norm is not None or plan.clip_value is not None:
        taken = {name: b.Cast(value, to=work_dtype(value)) for name, value in taken.items()}
    if plan.clip_value is not None:
        limit = plan.clip_value
        taken = {name: b.Clip(g, b.scalar_like(-limit, g), b.scalar_like(limit, g)) for name, g in taken.items()}
    if plan.clip_norm is None:
        return taken, None
    squares = [b.op("ReduceSumSquare", g, keepdims=0, shape=ir.Shape([])) for g in taken.values()]
    norm = b.Sqrt(b.op("Sum", *(b.Cast(square, to=ir.DataType.DOUBLE) for square in squares), shape=ir.Shape([])))
    factor = Scalars(b, {"factor": b.Min(plan.clip_norm / (norm + NORM_EPS), b.scalar_like(1.0, norm))})
    return {name: g * factor.like("factor", g) for name, g in taken.items()}, norm


def _scalar(values: dict[str, ir.Value], name: str, dtype: ir.DataType) -> ir.Value:
    return values.get(name) or ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([]))


def _empty(name: str, opset: int) -> ir.Graph:
    return ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name)


def _model(graph: ir.Graph) -> ir.Model:
    return ir.Model(graph, ir_version=10)


def signature(model: ir.Model, roles: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The manifest's entry of a graph: name, role, dtype and shape of each input and output."""
    return {
        "inputs": [_port(value, roles) for value in model.graph.inputs],
        "outputs": [_port(value, roles) for value in model.graph.outputs],
    }


def _port(value: ir.Value, roles: Mapping[str, str]) -> dict[str, Any]:
    dims = static_dims(value.shape)
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return {
        "name": value.name,
        "role": roles.get(value.name or "", "output"),
        "dtype": value.dtype.name if value.dtype is not None else None,
        "shape": list(dims) if dims is not None else shape,
    }


def sign(model: ir.Model, pipeline: str) -> None:
    """Who made the graph, and how; passes' own notes go."""
    for key in [key for key in model.metadata_props if key.startswith("gradcut.")]:
        del model.metadata_props[key]
    model.metadata_props[PIPELINE] = pipeline
    model.producer_name, model.producer_version = "gradcut", own_version()


def own_version() -> str:
    """Of this package."""
    try:
        return metadata.version("gradcut")
    except metadata.PackageNotFoundError:  # a run from the checkout
        return "0"
