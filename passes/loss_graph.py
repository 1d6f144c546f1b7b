"""A loss that is a graph of the user's: inputs matched by name to the model's outputs, nodes moved behind it."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import onnx_ir as ir

from gradcut.dialect import new_mark
from gradcut.dims import is_float
from gradcut.errors import LossError
from gradcut.ops import Names
from gradcut.passes.importer import Import
from gradcut.passes.importing.consistency import check_model_shapes
from gradcut.passes.importing.convert import convert_to
from gradcut.text import join_names

#: An output that a loss graph reads through a mark: ``FILE.onnx:its_input=stop(model_output)``.
_STOP = re.compile(r"stop\((.+)\)")


def is_scalar(value: ir.Value) -> bool:
    """Whether a value is known to hold one element, as [] or [1]."""
    return value.shape is not None and all(dim == 1 for dim in value.shape) and len(value.shape) <= 1


def bring_to_one_opset(model: ir.Model, losses: list[ir.Model]) -> None:
    """Import the loss graphs, and convert them and the model to the newest opset among them."""
    for loss in losses:
        Import()(loss)
    newest = max(one.opset_imports[""] for one in (model, *losses))
    for one in (model, *losses):
        if one.opset_imports[""] < newest:
            convert_to(one, newest)


def splice_graph(
    model: ir.Model, loss: ir.Model, renames: dict[str, str], where: str
) -> tuple[ir.Value, dict[str, Any], list[ir.Value]]:
    """Put a loss graph, of the model's opset, behind it: the scalar, its wiring, the inputs that it brings.

    Args:
        renames: the model's output for each input of the graph that says one; ``stop(output)`` puts a mark between.

    Raises:
        LossError: no input matches an output, a rename names nothing, or not just one output is a scalar float.
    """
    _keep_scalar(loss.graph, where)
    stopped = {its: found[1] for its, output in renames.items() if (found := _STOP.fullmatch(output))}
    feeds = _matched(model, loss, renames | stopped, where)
    _check_feeds(feeds, where)
    _stop(model, feeds, stopped)
    left = [value for value in loss.graph.inputs if value not in feeds]
    added, (result,) = splice(model.graph, loss.graph, feeds, Names.of(model))
    model.functions.update({k: f for k, f in loss.functions.items() if k not in model.functions})
    inputs = [added[value] for value in left]
    wiring = {"kind": "graph", "spec": where, "output": ",".join(v.name or "" for v in feeds.values())}
    if len(inputs) == 1:
        wiring["labels"] = inputs[0].name or ""
    check_model_shapes(model)
    return result, wiring, inputs


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


def _stop(model: ir.Model, feeds: dict[ir.Value, ir.Value], stopped: Collection[str]) -> None:
    """A mark before each of these inputs of the loss graph."""
    names = Names.of(model)
    for its in [its for its in feeds if its.name in stopped]:
        mark = new_mark(feeds[its], names)
        model.graph.append(mark)
        feeds[its] = mark.outputs[0]


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


def splice(
    graph: ir.Graph, added: ir.Graph, feeds: dict[ir.Value, ir.Value], names: Names
) -> tuple[dict[ir.Value, ir.Value], list[ir.Value]]:
    """Move the nodes of `added` behind `graph`; what its inputs became, and its outputs.

    Args:
        feeds: values of `graph` for inputs of `added`; the other inputs become inputs of `graph`.
    """
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
    outputs = list(added.outputs)
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
    return became, [became.get(output, output) for output in outputs]
