"""What a check holds still: what the backward's run drew at random, and what it rounded to few bits and back.

They are outputs there and inputs of the differences. A number that stands half-way rounds otherwise in float64 than in
the runtime, and each that does is a step of the quantisation off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.runtime.widen import Array

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")


def expose_draws(proto: onnx.ModelProto) -> dict[str, str]:
    """Append each draw of the main graph to its outputs: {first output of the node: name of the draw's output}.

    A Dropout's draw is its mask, any other's is what it returns.
    """
    found = {}
    taken = {output.name for output in proto.graph.output}
    rounded = {node.output[0] for node in proto.graph.node if node.op_type in _ROUNDING}
    for node in proto.graph.node:
        back = node.op_type == "DequantizeLinear" and node.input[0] in rounded
        if node.domain or not (back or node.op_type in (*_RANDOM, "Dropout")):
            continue
        if node.op_type == "Dropout":
            if len(node.input) < 3 or not node.input[2]:
                continue
            while len(node.output) < 2:
                node.output.append(f"{node.output[0]}__mask")
        drawn = node.output[1 if node.op_type == "Dropout" else 0]
        found[node.output[0]] = drawn
        if drawn not in taken:
            proto.graph.output.append(onnx.ValueInfoProto(name=drawn))
    return found


def hold_draws(model: ir.Model, draws: Mapping[str, Array], names: Names) -> dict[str, Array]:
    """Replace each random operator in `draws` by an input, in place; returns the feeds of these inputs."""
    feeds: dict[str, Array] = {}
    for node in list(_drawing(model.graph, draws)):
        drawn = draws[node.outputs[0].name or ""]
        held = ir.Value(name=names.fresh(f"{node.outputs[0].name}__drawn"))
        kind = ir.DataType.BOOL if node.op_type == "Dropout" else node.outputs[0].dtype
        held.type = None if kind is None else ir.TensorType(kind)
        model.graph.inputs.append(held)
        if node.op_type == "Dropout":
            _replay_dropout(model.graph, node, held, names)
        else:
            _replay(node.outputs[0], held, names)
        feeds[held.name or ""] = np.asarray(drawn)
    return feeds


def _drawing(graph: ir.Graph, draws: Mapping[str, Array]) -> Iterator[ir.Node]:
    return (node for node in graph if node.domain == "" and node.outputs and node.outputs[0].name in draws)


def _replay(old: ir.Value, held: ir.Value, names: Names) -> None:
    """What was drawn stands for the draw, under its name, by which it may be asked for."""
    ir.convenience.replace_all_uses_with(old, held, replace_graph_outputs=True)
    held.name, old.name = old.name, names.fresh("not_drawn")


def _replay_dropout(graph: ir.Graph, node: ir.Node, mask: ir.Value, names: Names) -> None:
    """output = data * (training ? mask / (1 - ratio) : 1)."""
    data, training = node.inputs[0], node.inputs[2]
    assert data is not None and training is not None
    b = Builder(names, prefix=f"{node.outputs[0].name}__")
    ratio = node.inputs[1] or b.constant(0.5, data.dtype)
    with b.arithmetic():
        keep = 1.0 - b.op("CastLike", ratio, data, dtype=data.dtype)
        scaled = b.Where(mask, b.Reciprocal(keep), b.scalar_like(0.0, keep))
        output = data * b.Where(training, scaled, b.scalar_like(1.0, keep))
    graph.insert_before(node, b.nodes)
    if len(node.outputs) > 1:
        ir.convenience.replace_all_uses_with(node.outputs[1], mask, replace_graph_outputs=True)
    old = node.outputs[0]
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
    output.name, old.name = old.name, names.fresh("dropped")
