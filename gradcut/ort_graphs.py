"""The graphs of the target ``ort-training``: what `onnxruntime.training.api` loads and trains; it ended with 1.19.2.

training_model   in: the user's, labels, ``seed`` and ``step`` where the graph draws, trainables, statistics, each
                 trainable's ``<p>_grad.accumulation.buffer``, ``lazy_reset_grad``. Out: the loss, outputs, one flag for
                 each tensor that the graph writes in place.
eval_model       as the onnx target's. optimizer_model: one kernel over sequences of parameters, gradients and moments.

Gradients leave the graph by `InPlaceAccumulatorV2`, which adds one to its buffer, or overwrites it after a lazy reset.

Running statistics move in the same way. ORT Training knows no state beside parameters, so they are parameters of its
checkpoint that require no gradient, and the training graph overwrites them in place by an accumulator of their own:
`<state>_next` over `<state>`. The host does nothing for it, and evaluation, ORT's own checkpoints and its export read
the moved ones. Everything else in the graph reads a copy that `<state>_next` depends on, so nothing is written before
it has been read.

There is no step_model: a step is `Module` and then `Optimizer`, which own the buffers in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.errors import LossError, SpecError, UnsupportedModelError
from gradcut.graphs import Trained
from gradcut.ops import Builder, Names
from gradcut.optimizers import SGD, AdamW, Optimizer, UpdateRequest

TARGET = "ort-training"
LAST, LAST_OPSET = "1.19.2", 21
RUNTIME = {"onnxruntime-training": f"=={LAST}"}
DOMAIN = "com.microsoft"
#: Names that ORT Training looks for.
BUFFER, WRITTEN, RESET = "_grad.accumulation.buffer", "_grad.accumulation.out", "lazy_reset_grad"
UPDATED = "updated"


@dataclass(frozen=True)
class Kernel:
    """An optimizer of ORT Training.

    Attributes:
        options: the fields of our optimizer that it takes.
        operands: what it reads. inputs: what its graph must have as inputs, read or not.
    """

    op_type: str
    options: frozenset[str]
    operands: tuple[str, ...]
    inputs: tuple[str, ...]

    def attributes(self, optimizer: Optimizer) -> dict[str, Any]:
        """The node's own, out of our optimizer's fields."""
        if not isinstance(optimizer, AdamW):
            return {}
        return {
            "alpha": optimizer.betas[0],
            "beta": optimizer.betas[1],
            "epsilon": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
            "correct_bias": 1,
            "adam_mode": 0,  # torch's order: decay before the update, eps beside the corrected root
        }


#: Inputs of an optimizer graph: our roles.
OPTIMIZER_ROLES = {
    "learning_rate": "learning_rate",
    "step": "step",
    "params": "parameter",
    "gradients": "gradient",
    "first_order_moments": "slot",
    "second_order_moments": "slot",
}
_ALL = tuple(OPTIMIZER_ROLES)
KERNELS: dict[type[Optimizer], Kernel] = {
    AdamW: Kernel("AdamWOptimizer", frozenset({"lr", "betas", "eps", "weight_decay"}), _ALL, _ALL),
    SGD: Kernel("SGDOptimizerV2", frozenset({"lr"}), ("learning_rate", "params", "gradients"), _ALL[:-1]),
}


def require(model: ir.Model, update: UpdateRequest, has_loss: bool) -> None:
    """Raise, in one line, what ORT Training does not take.

    Raises:
        UnsupportedModelError: an opset above its last. LossError: no loss. SpecError: the optimizer, or
        what is asked beside it: its kernels know no groups, no clipping and no averages.
    """
    opset = model.opset_imports[""]
    if opset > LAST_OPSET:
        raise UnsupportedModelError(
            f"the model is of opset {opset}, and ORT Training ended with {LAST}, which takes opsets up to "
            f"{LAST_OPSET}: export at opset {LAST_OPSET}, or compile for the target onnx"
        )
    if not has_loss:
        raise LossError("the target ort-training trains on a loss: name one, such as --loss cross_entropy")
    optimizer = update.optimizer
    kernel = KERNELS.get(type(optimizer))
    if kernel is None:
        raise SpecError(
            f"ORT Training has no kernel for {optimizer.name}; it has adamw and sgd; "
            "take one of them, or compile for the target onnx"
        )
    changed = {
        field.name: getattr(optimizer, field.name)
        for field in dataclasses.fields(optimizer)
        if field.name not in kernel.options and getattr(optimizer, field.name) != field.default
    }
    changed |= update.said()
    if changed:
        said = ", ".join(f"{name}={value}" for name, value in changed.items())
        raise SpecError(
            f"ORT Training's {kernel.op_type} takes no {said}; leave it out, or compile for the target onnx"
        )


def build(
    training: ir.Model, optimizer: Optimizer, gradients: Mapping[str, str], state: Mapping[str, str]
) -> tuple[list[Trained], dict[str, ir.Model]]:
    """The training and the optimizer graph out of the onnx target's training graph, which is not changed.

    Args:
        gradients: parameter -> the output that holds its gradient. state: statistic -> the output that replaces it.

    Raises:
        UnsupportedModelError: something that moves is not float32, or a value has a name that ORT Training wants.
    """
    model = training.clone()
    inputs = {value.name or "": value for value in model.graph.inputs}
    _require_float(inputs[name] for name in (*gradients, *state))
    trained = [Trained(name, grad, ir.DataType.FLOAT, _shape(inputs[name]), {}) for name, grad in gradients.items()]
    _write_in_place(model, inputs, gradients, state)
    return trained, {
        "training_model": model,
        "optimizer_model": _optimizer_graph(optimizer, training.opset_imports[""]),
    }


def roles(graph: str, trained: Sequence[Trained], state: Mapping[str, str]) -> dict[str, str]:
    """Roles of the inputs and outputs that the onnx target's graphs have not; a buffer's is ``gradient``."""
    if graph == "optimizer_model":
        return {**OPTIMIZER_ROLES, UPDATED: "written"}
    found = {f"{one.name}{BUFFER}": "gradient" for one in trained}
    found |= {f"{name}{WRITTEN}": "written" for name in (*(one.name for one in trained), *state)}
    return {**found, RESET: "reset"}


def _shape(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    return value.shape


def _require_float(moving: Iterator[ir.Value]) -> None:
    for value in moving:
        if value.dtype != ir.DataType.FLOAT:
            kind = value.dtype.name if value.dtype is not None else "unknown"
            raise UnsupportedModelError(
                f"{value.name!r} is {kind}, and ORT Training moves FLOAT only: freeze it, or take the target onnx"
            )


# --- the training graph --------------------------------------------------------------------------------------


def _write_in_place(
    model: ir.Model, inputs: Mapping[str, ir.Value], gradients: Mapping[str, str], state: Mapping[str, str]
) -> None:
    graph, names = model.graph, Names.of(model)
    outputs = {value.name or "": value for value in graph.outputs}
    _claim(names, RESET, *(f"{p}{BUFFER}" for p in gradients), *(f"{p}{WRITTEN}" for p in (*gradients, *state)))
    _read_copies([inputs[name] for name in state], graph, names)
    reset = ir.Value(name=RESET, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    b = Builder(names)
    flags, buffers = [], []
    for name, gradient in gradients.items():
        buffer = ir.Value(name=f"{name}{BUFFER}", type=inputs[name].type, shape=inputs[name].shape)
        buffers.append(buffer)
        flags.append(_accumulate(b, name, buffer, outputs[gradient], reset))
    overwrite = _always(graph, names) if state else None
    flags += [_accumulate(b, name, inputs[name], outputs[after], overwrite) for name, after in state.items()]
    leaving = {*gradients.values(), *state.values()}
    graph.outputs[:] = [*(value for name, value in outputs.items() if name not in leaving), *flags]
    graph.inputs.extend([*buffers, reset])
    graph.extend(b.nodes)
    model.opset_imports[DOMAIN] = 1


def _claim(names: Names, *wanted: str) -> None:
    for name in wanted:
        if names.fresh(name) != name:
            raise UnsupportedModelError(f"the model has a value {name!r}, a name that ORT Training gives a meaning")


def _read_copies(statistics: Sequence[ir.Value], graph: ir.Graph, names: Names) -> None:
    """Every reader gets a copy made first; Max of one operand, for an Identity would be optimised away."""
    b = Builder(names)
    for value in statistics:
        readers = list(value.uses())
        copy = b.op("Max", value, name=f"{value.name}_before", dtype=value.dtype, shape=value.shape)
        for node, index in readers:
            node.replace_input_with(index, copy)
    if b.nodes:
        graph.insert_before(graph[0], b.nodes)


def _always(graph: ir.Graph, names: Names) -> ir.Value:
    tensor = ir.tensor(np.array([True]), name=names.fresh("overwrite"))
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([1]), const_value=tensor)
    graph.register_initializer(value)
    return value


def _accumulate(b: Builder, name: str, buffer: ir.Value, value: ir.Value, overwrite: ir.Value | None) -> ir.Value:
    node = b.node("InPlaceAccumulatorV2", buffer, value, overwrite, domain=DOMAIN, dtype=ir.DataType.BOOL)
    flag = node.outputs[0]
    flag.name, flag.shape = f"{name}{WRITTEN}", ir.Shape([1])
    return flag


# --- the optimizer graph -------------------------------------------------------------------------------------


def _optimizer_graph(optimizer: Optimizer, opset: int) -> ir.Model:
    """One node; the learning rate is an input, so the optimizer's own is in the manifest alone."""
    kernel = KERNELS[type(optimizer)]
    inputs = {
        name: ir.Value(name=name, type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))) for name in kernel.inputs
    }
    for name, dtype in (("learning_rate", ir.DataType.FLOAT), ("step", ir.DataType.INT64)):
        inputs[name].type, inputs[name].shape = ir.TensorType(dtype), ir.Shape([1])
    b = Builder(Names(inputs))
    operands = [inputs[name] for name in kernel.operands]
    node = b.node(kernel.op_type, *operands, domain=DOMAIN, dtype=ir.DataType.BOOL, **kernel.attributes(optimizer))
    node.outputs[0].name, node.outputs[0].shape = UPDATED, ir.Shape([1])
    imports = {"": opset, DOMAIN: 1}
    graph = ir.Graph(list(inputs.values()), node.outputs, nodes=b.nodes, opset_imports=imports, name="optimizer")
    return ir.Model(graph, ir_version=10)
