"""`specialize`: fix modes, make state and randomness explicit, fold what the exporter left dynamic without need.

1. BatchNormalization is inference, or training with its statistics as state: ``<running_mean>_next`` and
   ``<running_var>_next`` become outputs. A trained node gets momentum 0, so that its second and third output are the
   batch's own statistics, which the backward reads; the running ones are computed beside it.
2. Dropout is the identity, or a mask drawn from (seed, step, node): a counter-based hash over the element's number.
3. CastLike to a known type is Cast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.errors import PipelineError
from gradcut.ops import Builder, Names
from gradcut.passes.base import TRAINABLE, Pass, read_json, register, write_json
from gradcut.passes.random import Draws
from gradcut.passes.stop_gradient import frozen_names

STATE = "gradcut.state"
MODES = "gradcut.modes"
CHOICES = ("auto", "train", "eval")


@register
@dataclass(frozen=True)
class Specialize(Pass):
    """Modes, state, draws, folding.

    Attributes:
        batch_norm: ``auto``: a node that the file has in training mode stays, one in inference mode trains iff its
            scale or bias does; ``train``: every one trains; ``eval``: none. One named by a freeze never trains.
        dropout: ``auto``: as the file says; ``train``; ``eval``.
    """

    name: ClassVar[str] = "specialize"
    batch_norm: str = "auto"
    dropout: str = "auto"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for option in ("batch_norm", "dropout"):
            if getattr(self, option) not in CHOICES:
                raise PipelineError(f"specialize: {option} is one of {', '.join(CHOICES)}")
        _fold_casts(model)
        _batch_norms(model, self.batch_norm)
        _dropouts(model, self.dropout)
        return ir.passes.PassResult(model, modified=True)


# --- 3. folding ----------------------------------------------------------------------------------------------


def _fold_casts(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.op_type != "CastLike" or node.domain or node.inputs[1] is None or node.inputs[1].dtype is None:
            continue
        node.op_type = "Cast"
        node.attributes.add(ir.AttrInt64("to", int(node.inputs[1].dtype)))
        node.resize_inputs(1)


# --- 1. BatchNormalization -----------------------------------------------------------------------------------


def _batch_norms(model: ir.Model, choice: str) -> None:
    frozen, trained = frozen_names(model), set(read_json(model, TRAINABLE) or ())
    names = Names.of(model)
    current: dict[ir.Value, ir.Value] = {}
    modes: dict[str, str] = {}
    for node in list(model.graph):
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        training = _trains(node, choice, frozen, trained)
        modes[node.name or ""] = "train" if training else "eval"
        if training:
            _train(model.graph, node, names, current)
        else:
            _infer(node)
    _state_outputs(model, current, names)
    if modes:
        write_json(model, MODES, modes)


def _trains(node: ir.Node, choice: str, frozen: set[str], trained: set[str]) -> bool:
    names = {_through_marks(value) for value in node.inputs[1:3]}
    if choice == "eval" or names & frozen:
        return False
    if choice == "train" or _flag(node):
        return True
    return bool(names & trained)


def _through_marks(value: ir.Value | None) -> str:
    """The parameter behind an operand, through marks: `propagate` puts derived ones on the cut."""
    while value is not None and (producer := value.producer()) is not None and producer.domain == "gradcut":
        value = producer.inputs[0]
    return (value.name if value is not None else None) or ""


def _flag(node: ir.Node) -> bool:
    return "training_mode" in node.attributes and bool(node.attributes["training_mode"].as_int())


def _infer(node: ir.Node) -> None:
    """Inference: one output; a use of a running output reads the statistic itself, which does not move."""
    node.attributes.add(ir.AttrInt64("training_mode", 0))
    for output, statistic in zip(node.outputs[1:], node.inputs[3:5], strict=False):
        assert statistic is not None
        ir.convenience.replace_all_uses_with(output, statistic, replace_graph_outputs=True)
    node.resize_outputs(1)


def _train(graph: ir.Graph, node: ir.Node, names: Names, current: dict[ir.Value, ir.Value]) -> None:
    momentum = node.attributes["momentum"].as_float() if "momentum" in node.attributes else 0.9
    own = _separate_running_outputs(node)
    node.attributes.add(ir.AttrInt64("training_mode", 1))
    node.attributes.add(ir.AttrFloat32("momentum", 0.0))
    b = Builder(names, prefix=f"{node.name}_")
    with b.arithmetic():
        moved = _moved(b, node, momentum, current)
        for index, value in own.items():
            population = _source(node, index) * momentum + node.outputs[1 + index] * (1.0 - momentum)
            population.shape = value.shape
            ir.convenience.replace_all_uses_with(value, population, replace_graph_outputs=True)
            population.name, value.name = value.name, names.fresh("running")
    graph.insert_after(node, b.nodes)
    for index, value in enumerate(moved):
        if _source(node, index).is_initializer():
            current[_source(node, index)] = value


def _separate_running_outputs(node: ir.Node) -> dict[int, ir.Value]:
    """The running outputs that the model itself reads (they stay ONNX's, of population variance), taken off the node."""
    own = {}
    for index, value in enumerate(node.outputs[1:3]):
        if value.uses() or value.is_graph_output():
            stand_in = ir.Value(name=value.name, type=value.type, shape=value.shape)
            ir.convenience.replace_all_uses_with(value, stand_in, replace_graph_outputs=True)
            value.name = None
            own[index] = stand_in
    node.resize_outputs(3)
    return own


def _moved(b: Builder, node: ir.Node, momentum: float, current: dict[ir.Value, ir.Value]) -> tuple[ir.Value, ir.Value]:
    """The running statistics after this node, as torch has them: the variance unbiased, n/(n-1)."""
    X, mean, var = node.inputs[0], node.outputs[1], node.outputs[2]
    assert X is not None
    for value, source in ((mean, node.inputs[3]), (var, node.inputs[4])):
        assert source is not None
        value.type, value.shape = source.type, source.shape
        value.name = value.name or b.names.fresh(f"{node.name}_batch_statistic")
    kind = mean.dtype or ir.DataType.FLOAT
    n = b.Cast(b.Div(b.Size(X), b.Size(mean)), to=kind)
    several = b.Greater(n, 1.0)
    unbiased = var * (n / b.Max(n - 1.0, 1.0))
    results = []
    for index, batch in enumerate((mean, unbiased)):
        before = _statistic(node, index, current)
        results.append(b.Where(several, before * momentum + batch * (1.0 - momentum), before))
        results[-1].shape = before.shape
    return results[0], results[1]


def _source(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[3 + index]
    assert value is not None
    return value


def _statistic(node: ir.Node, index: int, current: dict[ir.Value, ir.Value]) -> ir.Value:
    """The statistic as the nodes before left it: nodes that share one move it in graph order."""
    source = _source(node, index)
    return current.get(source, source)


def _state_outputs(model: ir.Model, current: dict[ir.Value, ir.Value], names: Names) -> None:
    state = {}
    for statistic, value in current.items():
        value.name = names.fresh(f"{statistic.name}_next")
        model.graph.outputs.append(value)
        state[statistic.name or ""] = value.name
    if state:
        write_json(model, STATE, state)


# --- 2. Dropout ----------------------------------------------------------------------------------------------


def _dropouts(model: ir.Model, choice: str) -> None:
    draws = Draws(model)
    for node in list(model.graph):
        if node.op_type != "Dropout" or node.domain:
            continue
        if choice == "eval" or (choice == "auto" and not _says_training(node)):
            _identity(node)
        else:
            draws.dropout(node)
    draws.finish()


def _says_training(node: ir.Node) -> bool:
    """By its third operand; one known only at run time counts as training where the graph's own feed says so."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    tensor = ir.convenience.get_const_tensor(node.inputs[2])
    return tensor is not None and bool(tensor.numpy())


def _identity(node: ir.Node) -> None:
    data = node.inputs[0]
    assert data is not None
    if len(node.outputs) > 1 and node.outputs[1].uses():
        node.resize_inputs(1)  # the mask is read: Dropout without a mode is inference, and gives it all true
        return
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_inputs(1)
    node.resize_outputs(1)
