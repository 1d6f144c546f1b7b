"""`loss`: put a scalar objective behind the model's outputs, from the table of losses or from a graph of the user's.

The loss becomes the first output of the graph, what it reads beside the outputs becomes new inputs. Where they came
from is written into the metadata ``gradcut.loss``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from gradcut.dialect import declare, is_mark
from gradcut.errors import LossError
from gradcut.losses import Loss, parse_loss
from gradcut.ops import Builder, Names, is_float
from gradcut.passes.base import LOSS, Pass, register, write_json
from gradcut.passes.consistency import check_model_shapes
from gradcut.passes.convert import convert_to
from gradcut.passes.importer import Import
from gradcut.passes.propagate import main_values
from gradcut.source import load, own
from gradcut.text import join_names, nearest

#: Operators that may stand between an activation and the output that carries its values.
_TRANSPARENT = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose"})


@register
@dataclass(frozen=True)
class AttachLoss(Pass):
    """Attach a loss.

    Attributes:
        spec: ``name:option=value,...``, or ``FILE.onnx:its_input=model_output,...``; empty: a scalar float output of
            the model is the loss, and where there is none the model is left as it is.
    """

    name: ClassVar[str] = "loss"
    spec: str = ""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        path, renames = split_path(self.spec)
        if not self.spec:
            found = _own_loss(model)
            if found is None:
                return ir.passes.PassResult(model, modified=False)
            _finish(model, found, {"kind": "output"}, [])
        elif path is not None:
            attach_graph(model, own(load(path)), renames, path)
        else:
            _attach(model, parse_loss(self.spec))
        return ir.passes.PassResult(model, modified=True)


def split_path(spec: str) -> tuple[str | None, dict[str, str]]:
    """The file and the renames of ``FILE.onnx:its_input=model_output``; None where the text names a loss."""
    for suffix in (".onnx", ".onnxtxt"):
        head, found, rest = spec.rpartition(suffix)
        if found and (not rest or rest.startswith(":")):
            pairs = [item.partition("=") for item in rest[1:].split(",") if item]
            return head + suffix, {name.strip(): output.strip() for name, _, output in pairs}
    if Path(spec).is_file():
        return spec, {}
    return None, {}


def _own_loss(model: ir.Model) -> ir.Value | None:
    scalars = [value for value in model.graph.outputs if is_float(value) and is_scalar(value)]
    if len(scalars) > 1:
        names = join_names(value.name or "" for value in scalars)
        raise LossError(f"several outputs are scalars ({names}); say which is the loss: --loss, or keep one as output")
    return scalars[0] if scalars else None


def is_scalar(value: ir.Value) -> bool:
    """Whether a value is known to hold one element, as [] or [1]."""
    return value.shape is not None and all(dim == 1 for dim in value.shape) and len(value.shape) <= 1


def _attach(model: ir.Model, loss: Loss) -> None:
    output = _output(model, loss)
    names = Names.of(model)
    b = Builder(names, prefix=f"{loss.name}_")
    described = loss.labels(output)
    labels = ir.Value(name=names.fresh("labels"), type=ir.TensorType(described.dtype), shape=described.shape)
    model.graph.inputs.append(labels)
    with b.arithmetic():
        result = loss.build(b, output, labels)
    model.graph.extend(b.nodes)
    result.name = names.fresh("loss")
    wiring = {
        "kind": loss.name,
        "spec": loss.spec(),
        "output": output.name,
        "labels": labels.name,
        **loss.facts(output),
    }
    _finish(model, result, wiring, [labels])


def _output(model: ir.Model, loss: Loss) -> ir.Value:
    """The value that the loss reads: the one named, or the only float output."""
    outputs = [value for value in model.graph.outputs if is_float(value)]
    if loss.output:
        known = main_values(model.graph)
        if loss.output not in known:
            hint = ", ".join(nearest(loss.output, known)) or join_names(v.name or "" for v in outputs)
            raise LossError(f"{loss.name}: the model has no value {loss.output!r}. Nearest: {hint}.")
        found = known[loss.output]
    elif len(outputs) == 1:
        found = outputs[0]
    else:
        listed = join_names(value.name or "" for value in outputs) or "none"
        raise LossError(
            f"{loss.name}: which output is the loss's is unclear; the float outputs are {listed}. "
            f"Say --loss {loss.name}:output=NAME."
        )
    if loss.wants_logits:
        _refuse_probabilities(loss, found)
    return found


def _refuse_probabilities(loss: Loss, output: ir.Value) -> None:
    node = output.producer()
    while node is not None and (is_mark(node) or (node.domain == "" and node.op_type in _TRANSPARENT)):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is not None and node.domain == "" and node.op_type in ("Softmax", "Sigmoid"):
        logits = node.inputs[0]
        raise LossError(
            f"{loss.name} takes logits, and {output.name!r} comes from {node.op_type} ({node.name}); "
            f"take what goes into it: --loss {loss.name}:output={logits.name if logits else ''}"
        )


# --- a graph of the user's -----------------------------------------------------------------------------------


def attach_graph(model: ir.Model, loss: ir.Model, renames: dict[str, str], where: str) -> None:
    """Put a loss graph behind the model; its inputs are matched by name to the model's outputs.

    Raises:
        LossError: no input matches an output, a rename names nothing, or not just one output is a scalar float.
    """
    Import()(loss)
    _keep_scalar(loss.graph, where)
    _same_opset(model, loss)
    feeds = _matched(model, loss, renames, where)
    _check_feeds(feeds, where)
    left = [value for value in loss.graph.inputs if value not in feeds]
    added, result = _splice(model.graph, loss.graph, feeds, Names.of(model))
    model.functions.update({k: f for k, f in loss.functions.items() if k not in model.functions})
    inputs = [added[value] for value in left]
    wiring = {"kind": "graph", "spec": where, "output": ",".join(v.name or "" for v in feeds.values())}
    if len(inputs) == 1:
        wiring["labels"] = inputs[0].name or ""
    check_model_shapes(model)
    _finish(model, result, wiring, inputs)


def _keep_scalar(graph: ir.Graph, where: str) -> None:
    """The one output that is a scalar float is the loss; what else the graph gives is left out."""
    scalars = [value for value in graph.outputs if is_float(value) and is_scalar(value)]
    if len(scalars) != 1:
        listed = ", ".join(f"{value.name!r} ({value.type}, {value.shape})" for value in graph.outputs) or "no output"
        raise LossError(f"{where}: one of its outputs must be a scalar float, and of {listed} {len(scalars)} are")
    graph.outputs[:] = scalars


def _check_feeds(feeds: dict[ir.Value, ir.Value], where: str) -> None:
    for its, output in feeds.items():
        if its.dtype is not None and output.dtype is not None and its.dtype != output.dtype:
            raise LossError(
                f"{where}: its input {its.name!r} is {its.dtype.name}, and the model's output {output.name!r} is "
                f"{output.dtype.name}; write the loss graph for {output.dtype.name}, with a Cast behind that input"
            )


def _same_opset(model: ir.Model, loss: ir.Model) -> None:
    mine, its = model.opset_imports[""], loss.opset_imports[""]
    if its > mine:
        convert_to(model, its)
    elif its < mine:
        convert_to(loss, mine)


def _matched(model: ir.Model, loss: ir.Model, renames: dict[str, str], where: str) -> dict[ir.Value, ir.Value]:
    outputs = {value.name: value for value in model.graph.outputs}
    inputs = {value.name: value for value in loss.graph.inputs}
    feeds = {value: outputs[name] for name, value in inputs.items() if name in outputs}
    for its_input, output in renames.items():
        if its_input not in inputs:
            raise LossError(f"{where} has no input {its_input!r}; it has {join_names(n or '' for n in inputs)}")
        if output not in outputs:
            raise LossError(f"the model has no output {output!r}; it has {join_names(n or '' for n in outputs)}")
        feeds[inputs[its_input]] = outputs[output]
    if not feeds:
        raise LossError(
            f"no input of {where} ({join_names(n or '' for n in inputs)}) has the name of an output of the model "
            f"({join_names(n or '' for n in outputs)}); match them: FILE.onnx:its_input=model_output"
        )
    return feeds


def _splice(
    graph: ir.Graph, added: ir.Graph, feeds: dict[ir.Value, ir.Value], names: Names
) -> tuple[dict[ir.Value, ir.Value], ir.Value]:
    """Move the nodes of `added` behind `graph`; what its inputs became, and its one output."""
    became = dict(feeds)
    for value in [value for value in added.inputs if value not in feeds]:
        became[value] = ir.Value(name=names.fresh(value.name or "labels"), type=value.type, shape=value.shape)
        graph.inputs.append(became[value])
    for value in added.initializers.values():
        became[value] = ir.Value(
            name=names.fresh(value.name or "constant"),
            type=value.type,
            shape=value.shape,
            const_value=value.const_value,
        )
        graph.register_initializer(became[value])
    (output,) = added.outputs
    added.outputs.clear()
    for value, target in became.items():
        ir.convenience.replace_all_uses_with(value, target)
    for inner in added.subgraphs():
        for value in (*inner.inputs, *inner.initializers.values(), *(v for node in inner for v in node.outputs)):
            value.name = names.fresh(value.name or "value")
    nodes = list(added)
    added.remove(nodes)
    for node in nodes:
        node.name = names.fresh(node.name or node.op_type)
        for value in node.outputs:
            value.name = names.fresh(value.name or "value")
    graph.extend(nodes)
    return became, became.get(output, output)


def _finish(model: ir.Model, loss: ir.Value, wiring: dict[str, Any], inputs: list[ir.Value]) -> None:
    """The loss is the first output; the wiring is written down for the manifest."""
    graph = model.graph
    others = [value for value in graph.outputs if value is not loss]
    graph.outputs.clear()
    graph.outputs.extend([loss, *others])
    write_json(model, LOSS, {**wiring, "loss": loss.name, "inputs": [value.name for value in inputs]})
    declare(model)
