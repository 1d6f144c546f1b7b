"""`specialize`: fix modes, make state and randomness explicit.

1. BatchNormalization is inference, or training with its statistics as state: ``<running_mean>_next`` and
   ``<running_var>_next`` become outputs. A trained node gets momentum 0, so that its second and third output are the
   batch's own statistics, which the backward reads; the running ones are computed beside it.
2. Dropout is the identity, or a mask drawn from (seed, step, node): a counter-based hash over the element's number.
   So are random numbers that the model generates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.dialect import is_transparent
from gradcut.errors import PipelineError
from gradcut.ops import Builder, Names
from gradcut.parameters import KEEPS_MODE, Decision, constant_tensor
from gradcut.passes.base import DECISIONS, TRAINABLE, Pass, read_json, register, write_json
from gradcut.passes.body_draws import with_turns
from gradcut.passes.random import GENERATORS, Draws
from gradcut.passes.stop_gradient import frozen_names

STATE = "gradcut.state"
MODES = "gradcut.modes"
CHOICES = ("auto", "train", "eval")
#: Operators that hand a value on as it is, and those that move or cast it.
_SAME = frozenset({"Identity"})
_CARRIERS = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"})


@register
@dataclass(frozen=True)
class Specialize(Pass):
    """Set the modes of BatchNormalization and Dropout; statistics become state, draws come from (seed, step, node).

    Attributes:
        batch_norm: ``auto``: a node that the file has in training mode stays, one in inference mode trains iff its
            scale or bias does; ``train``: every one trains; ``eval``: none. One named by a freeze never trains
            (by name or scope; where only one of scale and bias is frozen, the other decides). Where the exporter
            says that the mode is the module's own (`KEEPS_MODE`), ``auto`` keeps it.
        dropout: ``auto``: as the file says; ``train``; ``eval``.
        draws: have the operators that generate random numbers draw from (seed, step, node) too.
        own: only the statistics of norms that train move, by their scale and bias, or where these are no parameters by
            the weights right before them: of several steps over one model, none moves what another one trains.
    """

    name: ClassVar[str] = "specialize"
    batch_norm: str = "auto"
    dropout: str = "auto"
    draws: bool = True
    own: bool = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for option in ("batch_norm", "dropout"):
            if getattr(self, option) not in CHOICES:
                raise PipelineError(f"specialize: {option} is one of {', '.join(CHOICES)}")
        _batch_norms(model, self.batch_norm, self.own)
        _draws(model, self.dropout, self.draws)
        return ir.passes.PassResult(model, modified=True)


# --- 1. BatchNormalization -----------------------------------------------------------------------------------


def _batch_norms(model: ir.Model, choice: str, own: bool) -> None:
    frozen, trained = frozen_names(model), set(read_json(model, TRAINABLE) or ())
    names = Names.of(model)
    current: dict[ir.Value, ir.Value] = {}
    modes: dict[str, str] = {}
    for node in list(model.graph.all_nodes()):
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        training = _trains(node, choice, frozen, trained)
        inner = node.graph is not model.graph  # no state leaves the body of an If or a Loop: the mode is the file's
        if inner and training:
            training = _flag(node)
        elif training:
            still = own and not _parameters_of(node, model.meta.get(DECISIONS, {})) & trained
            _train(model.graph, node, names, {} if still else current)
        else:
            _infer(node, names)
        modes[node.name or ""] = "train" if training else "eval"
    _state_outputs(model, {s: v for s, v in current.items() if s.is_initializer() and s.name not in trained}, names)
    if modes:
        write_json(model, MODES, modes)


def _trains(node: ir.Node, choice: str, frozen: set[str], trained: set[str]) -> bool:
    """A freeze that leaves neither scale nor bias to train names the node; where one of them trains, it does not."""
    names = _named(node.inputs[1:3])
    if choice == "auto" and KEEPS_MODE in node.metadata_props:
        return _flag(node)
    if choice == "eval" or (names & frozen and not names & trained):
        return False
    return choice == "train" or _flag(node) or bool(names & trained)


def _origin(value: ir.Value, through: frozenset[str]) -> ir.Value:
    """What is behind an operand, through marks (derived ones of the cut too), relatives and some operators."""
    while (producer := value.producer()) is not None:
        source = producer.inputs[value.index() or 0] if is_transparent(producer) else next(iter(producer.inputs), None)
        if source is None or not (is_transparent(producer) or (producer.domain == "" and producer.op_type in through)):
            break
        value = source
    return value


def _parameters_of(norm: ir.Node, decisions: Mapping[str, Decision]) -> set[str]:
    """The parameters that a norm goes with: its scale and bias, else those of the first nodes before it with any."""
    known = {name for name, one in decisions.items() if one.kind == "parameter"}
    found = _named(norm.inputs[1:3]) & known
    nodes, seen = deque([norm]), {norm}
    while nodes and not found:
        for value in nodes.popleft().inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in seen:
                seen.add(producer)
                nodes.append(producer)
                found |= _named(producer.inputs) & known
    return found


def _named(values: Iterable[ir.Value | None]) -> set[str]:
    return {_origin(value, _CARRIERS).name or "" for value in values if value is not None}


def _flag(node: ir.Node) -> bool:
    return "training_mode" in node.attributes and bool(node.attributes["training_mode"].as_int())


def _infer(node: ir.Node, names: Names) -> None:
    """Inference: one output; a use of a running output reads the statistic itself, which does not move."""
    node.attributes.add(ir.AttrInt64("training_mode", 0))
    b = Builder(names)
    for output, statistic in zip(node.outputs[1:], node.inputs[3:5], strict=False):
        assert statistic is not None
        if output.is_graph_output():
            statistic = b.op("Identity", statistic, dtype=statistic.dtype, shape=statistic.shape)
            statistic.name, output.name = output.name, names.fresh("running")
        ir.convenience.replace_all_uses_with(output, statistic, replace_graph_outputs=True)
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_after(node, b.nodes)
    node.resize_outputs(1)


def _train(graph: ir.Graph, node: ir.Node, names: Names, current: dict[ir.Value, ir.Value]) -> None:
    momentum = node.attributes["momentum"].as_float() if "momentum" in node.attributes else 0.9
    own = _separate_running_outputs(node)
    node.attributes.add(ir.AttrInt64("training_mode", 1))
    node.attributes.add(ir.AttrFloat32("momentum", 0.0))
    sources = [_source(node, index) for index in (0, 1)]
    before = [current.get(source, source) for source in sources]
    for index, value in enumerate(before):
        node.replace_input_with(3 + index, value)
    b = Builder(names, prefix=f"{node.name}_")
    with b.arithmetic():
        moved = _moved(b, node, momentum, before)
        for index, value in own.items():
            population = sources[index] * momentum + node.outputs[1 + index] * (1.0 - momentum)
            population.shape = value.shape
            ir.convenience.replace_all_uses_with(value, population, replace_graph_outputs=True)
            population.name, value.name = value.name, names.fresh("running")
    graph.insert_after(node, b.nodes)
    current.update(zip(sources, moved, strict=True))


def _separate_running_outputs(node: ir.Node) -> dict[int, ir.Value]:
    """The running outputs that the model reads, taken off the node: they stay ONNX's, of population variance."""
    own = {}
    for index, value in enumerate(node.outputs[1:3]):
        if value.uses() or value.is_graph_output():
            stand_in = ir.Value(name=value.name, type=value.type, shape=value.shape)
            ir.convenience.replace_all_uses_with(value, stand_in, replace_graph_outputs=True)
            value.name = None
            own[index] = stand_in
    node.resize_outputs(3)
    return own


def _moved(b: Builder, node: ir.Node, momentum: float, before: Sequence[ir.Value]) -> tuple[ir.Value, ir.Value]:
    """The running statistics after this node, as torch has them: the variance unbiased, n/(n-1)."""
    X, mean, var = node.inputs[0], node.outputs[1], node.outputs[2]
    assert X is not None
    for value, source in zip((mean, var), before, strict=True):
        value.type, value.shape = source.type, source.shape
        value.name = value.name or b.names.fresh(f"{node.name}_batch_statistic")
    kind = mean.dtype or ir.DataType.FLOAT
    n = b.per_channel(X, mean, kind)
    several = b.Greater(n, 1.0)
    unbiased = var * (n / b.Max(n - 1.0, 1.0))
    results = []
    for old, batch in zip(before, (mean, unbiased), strict=True):
        results.append(b.Where(several, old * momentum + batch * (1.0 - momentum), old))
        results[-1].shape = old.shape
    return results[0], results[1]


def _source(node: ir.Node, index: int) -> ir.Value:
    """The statistic at an operand, behind marks; nodes that share one move it in graph order."""
    value = node.inputs[3 + index]
    assert value is not None
    return _origin(value, _SAME)


def _state_outputs(model: ir.Model, current: dict[ir.Value, ir.Value], names: Names) -> None:
    state = {}
    for statistic, value in current.items():
        value.name = names.fresh(f"{statistic.name}_next")
        model.graph.outputs.append(value)
        state[statistic.name or ""] = value.name
    if state:
        write_json(model, STATE, state)


# --- 2. draws ------------------------------------------------------------------------------------------------


def _draws(model: ir.Model, choice: str, generators: bool) -> None:
    draws = Draws(model)
    wanted = {"Dropout", *(GENERATORS if generators else ())}
    found = with_turns(model.graph, lambda node: not node.domain and node.op_type in wanted, draws.names)
    for node, draws.turns in list(found):
        if node.op_type == "Dropout":
            _dropout(node, choice, draws)
        else:
            draws.generator(node)
    draws.finish()


def _dropout(node: ir.Node, choice: str, draws: Draws) -> None:
    mode = _says_training(node) if choice == "auto" else choice == "train"
    if mode is False:
        _identity(node)
    else:
        draws.dropout(node, None if mode is True else mode)


def _says_training(node: ir.Node) -> bool | ir.Value:
    """By its third operand; where only a run can tell, that operand."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return False
    tensor = constant_tensor(value)
    return value if tensor is None else bool(tensor.numpy().reshape(-1)[0])


def _identity(node: ir.Node) -> None:
    data = node.inputs[0]
    assert data is not None
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        node.resize_inputs(1)  # the mask is read: Dropout without a mode is inference, and gives it all true
        return
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_inputs(1)
    node.resize_outputs(1)
