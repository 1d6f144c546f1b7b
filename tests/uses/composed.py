"""Graphs made of graphs: a model that another calls, over the same weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper


def call(model: onnx.ModelProto, called: onnx.ModelProto, prefix: str, given: Mapping[str, str]) -> None:
    """Put the nodes of `called` behind those of `model`.

    Args:
        prefix: of every name of `called`, but
        given: its inputs and weights, by what they are in `model`. What it names is not copied; weights that it does
            not name and `model` has are shared.
    """
    shared = {one.name for one in model.graph.initializer}
    names = {one.name: one.name for one in called.graph.initializer if one.name in shared} | dict(given)
    new = lambda name: names.get(name, prefix + name) if name else ""
    for node in called.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        copy.input[:], copy.output[:] = map(new, node.input), map(new, node.output)
        model.graph.node.append(copy)
    for one in called.graph.initializer:
        if one.name not in names:
            copied = model.graph.initializer.add()
            copied.CopyFrom(one)
            copied.name = new(one.name)
    for ours, theirs in ((model.graph.input, called.graph.input), (model.graph.output, called.graph.output)):
        for port in theirs:
            if port.name not in names:
                ours.add().CopyFrom(port)
                ours[-1].name = new(port.name)


def fix(model: onnx.ModelProto, name: str, value: object) -> None:
    """Make an input a constant."""
    (port,) = [one for one in model.graph.input if one.name == name]
    dtype = helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
    model.graph.input.remove(port)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))


def add(model: onnx.ModelProto, op: str, inputs: str, output: str, **attributes: object) -> str:
    """A node more."""
    model.graph.node.append(helper.make_node(op, inputs.split(), [output], name=f"{op}_{output}", **attributes))
    return output


def constant(model: onnx.ModelProto, name: str, value: object) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return name


def keep_outputs(model: onnx.ModelProto, *names: str) -> None:
    kept = [port for port in model.graph.output if port.name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
