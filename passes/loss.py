"""`loss`: put a scalar objective behind the model's outputs, from the table of losses or from a graph of the user's.

The loss becomes the first output of the graph, what it reads beside the outputs becomes new inputs. Of several, each
with its factor, the sum is the loss, and the values of each, before their factors, are outputs at the end: ``loss_1``,
``loss_2``, ... Where they came from is written into the metadata ``gradcut.loss``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from gradcut.dialect import declare, is_mark, new_mark
from gradcut.dims import is_float, same_shape
from gradcut.errors import LossError
from gradcut.losses import LOSSES, Labels, Loss, Term, parse_loss, parse_terms, split_path
from gradcut.ops import Builder, Names
from gradcut.passes.base import LOSS, Pass, register, write_json
from gradcut.passes.loss_graph import bring_to_one_opset, is_scalar, splice_graph
from gradcut.passes.propagate import main_values
from gradcut.softmax import written_softmax
from gradcut.source import load, own
from gradcut.text import join_names, nearest

#: Operators that may stand between an activation and the output that carries its values.
TRANSPARENT = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose"})
#: A term behind the model: its scalar, its wiring, the inputs that it brings.
Attached = tuple[ir.Value, dict[str, Any], list[ir.Value]]
#: A term by its text: a loss of the table, a scalar output of the model, or a loss graph with its renames.
Parsed = Loss | str | tuple[str, dict[str, str], ir.Model]


@register
@dataclass(frozen=True)
class AttachLoss(Pass):
    """Attach a loss.

    Attributes:
        spec: ``name:option=value,...``, or ``FILE.onnx:its_input=model_output,...``, or the name of a scalar float
            output of the model, or several joined with `` + `` and each with a factor, ``0.5*``; empty: the only scalar
            float output is the loss, and where there is none the model is left as it is.
    """

    name: ClassVar[str] = "loss"
    spec: str = ""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.spec:
            _attach_terms(model, parse_terms(self.spec))
            return ir.passes.PassResult(model, modified=True)
        found = _own_loss(model)
        if found is None:
            return ir.passes.PassResult(model, modified=False)
        _finish(model, found, {"kind": "output"}, [])
        return ir.passes.PassResult(model, modified=True)


def attach_graph(model: ir.Model, loss: ir.Model, renames: dict[str, str], where: str) -> None:
    """Put a loss graph behind the model; its inputs are matched by name to the model's outputs.

    Raises:
        LossError: no input matches an output, a rename names nothing, or not just one output is a scalar float.
    """
    bring_to_one_opset(model, [loss])
    _finish(model, *splice_graph(model, loss, renames, where))


def _own_loss(model: ir.Model) -> ir.Value | None:
    scalars = _scalar_outputs(model)
    if len(scalars) > 1:
        raise LossError(
            f"several outputs are scalars ({join_names(scalars)}); say which is the loss, --loss {next(iter(scalars))}"
            ", or what sum of them"
        )
    return next(iter(scalars.values()), None)


def _scalar_outputs(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name or "": value for value in model.graph.outputs if is_float(value) and is_scalar(value)}


# --- terms ---------------------------------------------------------------------------------------------------


def _attach_terms(model: ir.Model, terms: list[Term]) -> None:
    parsed = [_parsed(term.text, model) for term in terms]
    bring_to_one_opset(model, [one[2] for one in parsed if isinstance(one, tuple)])
    brought: dict[str, ir.Value] = {}
    attached = [_attached(model, one, brought) for one in parsed]
    if len(terms) == 1 and terms[0].factor == 1.0:
        result, wiring, inputs = attached[0]
        if isinstance(parsed[0], Loss):
            result.name = Names.of(model).fresh("loss")
        _finish(model, result, wiring, inputs)
    else:
        _sum(model, terms, attached)


def _parsed(text: str, model: ir.Model) -> Parsed:
    output = next((value for value in model.graph.outputs if value.name == text), None)
    if output is not None and text not in LOSSES:
        if text in _scalar_outputs(model):
            return text
        have = "of unknown type" if output.dtype is None else f"{output.dtype.name}{_dims(output.shape)}"
        raise LossError(
            f"the output {text!r} is {have}, and a loss is one float; say which loss of it: mse:output={text}"
        )
    path, renames = split_path(text)
    return parse_loss(text) if path is None else (path, renames, own(load(path)))


def _attached(model: ir.Model, one: Parsed, brought: dict[str, ir.Value]) -> Attached:
    if isinstance(one, Loss):
        return _attach(model, one, brought)
    if isinstance(one, str):
        return _scalar_outputs(model)[one], {"kind": "output", "output": one}, []
    return splice_graph(model, one[2], one[1], one[0])


def _sum(model: ir.Model, terms: list[Term], attached: list[Attached]) -> None:
    """The terms' values as outputs, and their sum with factors as the loss; in the widest of their dtypes."""
    names = Names.of(model)
    b = Builder(names, prefix="loss_")
    values = [_as_output(b, f"loss_{i}", value) for i, (value, _, _) in enumerate(attached, 1)]
    widest = max((value.dtype for value in values if value.dtype is not None), key=lambda dtype: dtype.itemsize)
    with b.arithmetic():
        parts = [b.Cast(value, to=widest) for value in values]
        parts = [part if term.factor == 1.0 else part * term.factor for part, term in zip(parts, terms, strict=True)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
    total.name = names.fresh("loss")
    model.graph.extend(b.nodes)
    model.graph.outputs.extend(values)
    wiring = [
        {"factor": term.factor, "value": value.name, **one}
        for term, value, (_, one, _) in zip(terms, values, attached, strict=True)
    ]
    spec = " + ".join(map(str, terms))
    _finish(model, total, {"kind": "sum", "spec": spec, "terms": wiring}, [v for _, _, new in attached for v in new])


def _as_output(b: Builder, name: str, value: ir.Value) -> ir.Value:
    """A term's scalar [] under its name; one that the model gives already is copied."""
    scalar = ir.Shape([])
    if value.shape is None or len(value.shape):
        value = b.op("Reshape", value, b.ints([]), dtype=value.dtype, shape=scalar)
    elif value.producer() is None or value.is_graph_output():
        value = b.op("Identity", value, dtype=value.dtype, shape=scalar)
    value.name = b.names.fresh(name)
    return value


# --- a loss of the table -------------------------------------------------------------------------------------


def _attach(model: ir.Model, loss: Loss, brought: dict[str, ir.Value]) -> Attached:
    """The loss behind its output; `brought` holds the inputs that losses before it brought, by name."""
    output = _output(model, loss)
    names = Names.of(model)
    b = Builder(names, prefix=f"{loss.name}_")
    labels, new, wired = _read_by(model, loss, b, output, brought)
    with b.arithmetic():
        result = loss.build(b, output, _fitted(b, model.graph, loss, output, labels))
    model.graph.extend(b.nodes)
    return result, {"kind": loss.name, "spec": loss.spec(), "output": output.name, **wired}, new


def _read_by(
    model: ir.Model, loss: Loss, b: Builder, output: ir.Value, brought: dict[str, ir.Value]
) -> tuple[ir.Value, list[ir.Value], dict[str, Any]]:
    """What the loss reads beside its output, the inputs that are new for it, and what the manifest says of it."""
    described, facts = loss.label_input(output), loss.facts(output)
    if not loss.target:
        labels, new = _labels(model, loss, described, b.names, brought)
        return labels, new, {"labels": labels.name, **facts}
    target = _target(model, loss, described)
    if loss.stop_target:
        b.nodes.append(new_mark(target, b.names))
        target = b.nodes[-1].outputs[0]
    return target, [], {"target": loss.target, **facts, "over": "targets"}


def _target(model: ir.Model, loss: Loss, described: Labels) -> ir.Value:
    """The value of the model that the loss reads in place of labels."""
    known = main_values(model.graph)
    if loss.target not in known:
        hint = ", ".join(nearest(loss.target, known)) or join_names(v.name or "" for v in model.graph.outputs)
        raise LossError(f"{loss.name}: target: the model has no value {loss.target!r}. Nearest: {hint}.")
    target = known[loss.target]
    _check_shared(loss, described, target)
    return target


def _labels(
    model: ir.Model, loss: Loss, described: Labels, names: Names, brought: dict[str, ir.Value]
) -> tuple[ir.Value, list[ir.Value]]:
    """The input that the loss reads, and those of it that are new."""
    shared = brought.get(loss.labels) or next((v for v in model.graph.inputs if v.name == loss.labels), None)
    if shared is not None:
        _check_shared(loss, described, shared)
        return shared, []
    if loss.labels and loss.labels in main_values(model.graph):
        raise LossError(f"{loss.name}: labels={loss.labels} is a value of the model; name a new input, or one it has")
    name = names.fresh(loss.labels or "labels")
    labels = ir.Value(name=name, type=ir.TensorType(described.dtype), shape=described.shape)
    model.graph.inputs.append(labels)
    brought[name] = labels
    return labels, [labels]


def _check_shared(loss: Loss, described: Labels, shared: ir.Value) -> None:
    """Raise where an input that is there already is not what the loss reads."""
    mine, its = described.shape, shared.shape
    fits = mine is None or its is None or len(mine) == len(its)
    if fits and mine is not None and its is not None:
        fits = not any(isinstance(a, int) and isinstance(c, int) and a != c for a, c in zip(mine, its, strict=True))
    if not fits or shared.dtype != described.dtype:
        have = "?" if shared.dtype is None else shared.dtype.name
        what = "the target" if loss.target else "the input"
        instead = "name one like its output" if loss.target else "give it labels of its own: labels=NAME"
        raise LossError(
            f"{loss.name} reads labels of {described.dtype.name}{_dims(mine)}, and {what} {shared.name!r} is "
            f"{have}{_dims(its)}; {instead}"
        )


def _dims(shape: ir.Shape | None) -> str:
    return "" if shape is None else str(shape)


def _fitted(b: Builder, graph: ir.Graph, loss: Loss, output: ir.Value, labels: ir.Value) -> ir.Value:
    """Labels of the output's shape: where feeds cannot be held against it, a Reshape, so that nothing broadcasts."""
    if loss.target and same_shape(output.shape, labels.shape):
        return labels
    given = (value for value in graph.inputs if value is not labels)
    known = {str(dim) for value in given for dim in value.shape or () if not _is_open(dim)}
    shape = output.shape
    fed = not loss.target and shape is not None and all(isinstance(dim, int) or str(dim) in known for dim in shape)
    if fed or not loss.elementwise:
        return labels
    return b.op("Reshape", labels, b.shape_of(output), dtype=labels.dtype, shape=shape)


def _is_open(dim: int | ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and dim.value is None


def _output(model: ir.Model, loss: Loss) -> ir.Value:
    """The value that the loss reads: the one named, or the only float output."""
    outputs = [value for value in model.graph.outputs if is_float(value)]
    if loss.output:
        known = main_values(model.graph)
        if loss.output not in known:
            hint = ", ".join(nearest(loss.output, known)) or join_names(v.name or "" for v in outputs)
            raise LossError(f"{loss.name}: the model has no value {loss.output!r}. Nearest: {hint}.")
        found = known[loss.output]
        if not is_float(found):
            kind = found.dtype.name if found.dtype is not None else "of unknown type"
            raise LossError(f"{loss.name}: {loss.output!r} is {kind}; a loss reads floats")
    elif len(outputs) == 1:
        found = outputs[0]
    else:
        listed = join_names(value.name or "" for value in outputs) or "none"
        raise LossError(
            f"{loss.name}: which output is the loss's is unclear; the float outputs are {listed}. "
            f"Say --loss {loss.name}:output=NAME."
        )
    if loss.wants:
        _refuse_probabilities(loss, found)
    return found


def activation_behind(value: ir.Value, op_types: Iterable[str]) -> ir.Node | None:
    """The node of one of these operators that a value comes from, marks and what moves elements passed over."""
    node = value.producer()
    while node is not None and (is_mark(node) or (node.domain == "" and node.op_type in TRANSPARENT)):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def _refuse_probabilities(loss: Loss, output: ir.Value) -> None:
    node = activation_behind(output, ("Softmax", "Sigmoid", "Div"))
    scores = None if node is None else written_softmax(node) if node.op_type == "Div" else node.inputs[0]
    if node is None or scores is None:
        return
    kind = "a Softmax written out" if node.op_type == "Div" else node.op_type
    comes = f"{loss.name} takes {loss.wants}, and {output.name!r} comes from {kind} ({node.name})"
    if loss.wants == "logits":
        raise LossError(f"{comes}; take what goes into it: --loss {loss.name}:output={scores.name}")
    instead = "bce_with_logits" if node.op_type == "Sigmoid" else "cross_entropy"
    raise LossError(f"{comes}; export the model with LogSoftmax, or take --loss {instead}:output={scores.name}")


def _finish(model: ir.Model, loss: ir.Value, wiring: dict[str, Any], inputs: list[ir.Value]) -> None:
    """The loss is the first output; the wiring is written down for the manifest."""
    graph = model.graph
    others = [value for value in graph.outputs if value is not loss]
    graph.outputs.clear()
    graph.outputs.extend([loss, *others])
    write_json(model, LOSS, {**wiring, "loss": loss.name, "inputs": [value.name for value in inputs]})
    declare(model)
