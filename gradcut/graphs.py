"""The graphs beside the training graph, the optimizer's and the whole step in one; what the manifest says of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from gradcut.ops import Builder, Names, static_dims
from gradcut.optimizers import Optimizer

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
    """Names of the scalars of a step."""

    learning_rate: str
    step: str
    step_next: str
    seed: str | None


def name_trained(training: ir.Model, gradients: Mapping[str, str], optimizer: Optimizer, names: Names) -> list[Trained]:
    """Names for the slots and the next values of every trained parameter, in the order of the graph's inputs."""
    inputs = {value.name: value for value in training.graph.inputs}
    trained = []
    for name, gradient in gradients.items():
        value = inputs[name]
        assert value.dtype is not None and value.shape is not None
        slots = {slot: names.fresh(f"{name}_{slot}") for slot in optimizer.slots}
        nexts = {key: names.fresh(f"{key}{NEXT}") for key in (name, *slots.values())}
        trained.append(Trained(name, gradient, value.dtype, value.shape, slots, nexts))
    return trained


def optimizer_graph(optimizer: Optimizer, trained: Sequence[Trained], scalars: StepNames, opset: int) -> ir.Model:
    """Parameters, gradients, slots, learning rate and step in; the next of each out."""
    graph = _empty("optimizer", opset)
    values: dict[str, ir.Value] = {}
    for one in trained:
        for name in (one.name, one.gradient):
            values[name] = ir.Value(name=name, type=ir.TensorType(one.dtype), shape=one.shape)
        values |= {name: _slot(one, name) for name in one.slots.values()}
    graph.inputs.extend(values.values())
    model = _model(graph)
    names = Names([*values, *(n for one in trained for n in one.next.values())])
    _append_update(model, optimizer, trained, scalars, values, names)
    return model


def step_graph(
    training: ir.Model, optimizer: Optimizer, trained: Sequence[Trained], scalars: StepNames, state: Mapping[str, str]
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
    _append_update(model, optimizer, trained, scalars, values, names)
    graph.outputs.extend(value for value in kept if value.name in nexts)
    return model


def _slot(one: Trained, name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(one.slot_dtype), shape=one.shape)


def _append_update(
    model: ir.Model,
    optimizer: Optimizer,
    trained: Sequence[Trained],
    scalars: StepNames,
    values: dict[str, ir.Value],
    names: Names,
) -> None:
    graph = model.graph
    lr = _scalar(values, scalars.learning_rate, ir.DataType.FLOAT)
    step = _scalar(values, scalars.step, ir.DataType.INT64)
    graph.inputs.extend([lr, step])
    b = Builder(names, prefix="update_")
    outputs: list[tuple[str, ir.Value]] = []
    with b.arithmetic():
        prepared = optimizer.prepare(b, lr, step)
        for one in trained:
            slots = {slot: values[name] for slot, name in one.slots.items()}
            parameter, after = optimizer.update(b, prepared, values[one.name], values[one.gradient], slots)
            outputs.append((one.next[one.name], parameter))
            outputs += [(one.next[one.slots[slot]], value) for slot, value in after.items()]
            for value in (parameter, *after.values()):
                value.shape = one.shape
        outputs.append((scalars.step_next, b.Add(step, b.constant(1, ir.DataType.INT64))))
    graph.extend(b.nodes)
    for name, value in outputs:
        value.name = name
        graph.outputs.append(value)


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
