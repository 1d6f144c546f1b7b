"""Normalisations of old opsets that ONNX's own converter does not take.

- LayerNormalization came with opset 17; ONNX Runtime takes it, as exporters wrote it, in older files too. It has a
  SimplifiedLayerNormalization of its own in ONNX's domain, at any opset.
- BatchNormalization before 9 could have statistics for every element (``spatial=0``); before 14 one with five outputs
  trained, and gave the mean of the batch and, in ONNX Runtime, 1 / sqrt(variance + epsilon) as the last two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from gradcut.errors import UnsupportedModelError
from gradcut.ops import Builder, Names
from gradcut.passes.importing.inference import infer

_ASIDE = "gradcut.aside"


@contextmanager
def layer_norms_aside(model: ir.Model) -> Iterator[None]:
    """Within it those that ONNX's converter does not know are of another domain, which it passes over."""
    unknown = ["SimplifiedLayerNormalization", *(["LayerNormalization"] if model.opset_imports[""] < 17 else [])]
    early = [node for node in model.graph.all_nodes() if any(_is(node, op_type) for op_type in unknown)]
    if not early:
        yield
        return
    for node in early:
        node.domain = _ASIDE
    model.opset_imports[_ASIDE] = 1
    yield
    for node in model.graph.all_nodes():
        node.domain = "" if node.domain == _ASIDE else node.domain
    model.opset_imports.pop(_ASIDE, None)


def spell_out_batch_norms(model: ir.Model) -> set[str | None]:
    """Bring those of before opset 14 into forms that there are today; the first outputs of those that train."""
    norms = [node for node in model.graph.all_nodes() if _is(node, "BatchNormalization")]
    if any(_gives_saved(node) and _rank_unknown(node) for node in norms):
        infer(model)
    names, training = Names.of(model), set[str | None]()
    for node in norms:
        if "spatial" in node.attributes and not node.attributes["spatial"].as_int() and len(node.outputs) == 1:
            _by_element(node, names)
        elif len(node.outputs) == 5:
            if _gives_saved(node):
                _without_saved(node, names)
            node.resize_outputs(3)
            training.add(node.outputs[0].name)
    return training


def train_batch_norms(model: ir.Model, training: set[str | None]) -> None:
    """Mark those that `spell_out_batch_norms` found."""
    for node in model.graph.all_nodes():
        if _is(node, "BatchNormalization") and node.outputs[0].name in training:
            node.attributes.add(ir.AttrInt64("training_mode", 1))


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and node.domain == ""


def _by_element(node: ir.Node, names: Names) -> None:
    """Y = (X - mean) / sqrt(var + epsilon) scale + B, each of them [C, *D]."""
    y = node.outputs[0]
    b = Builder(names, prefix=f"{y.name}_")
    X, scale, B, mean, var = (value for value in node.inputs if value is not None)
    with b.arithmetic():
        result = (X - mean) / b.Sqrt(b.Add(var, _epsilon(node, b, X))) * scale + B
    result.type, result.shape = y.type, y.shape
    _replace(node, b, {y: result})


def _without_saved(node: ir.Node, names: Names) -> None:
    """The batch's own statistics are taken again; where nothing reads them, they go as dead code."""
    b, X = Builder(names, prefix=f"{node.outputs[0].name}_"), node.inputs[0]
    if X is None or X.shape is None:
        raise UnsupportedModelError(
            f"node {node.name!r} (BatchNormalization, five outputs) has an input of unknown rank; give the graph's "
            "inputs their shapes, or export the model at opset 14 or later"
        )
    axes = [axis for axis in range(len(X.shape)) if axis != 1]
    mean = b.op("ReduceMean", X, axes=axes, keepdims=1)
    with b.arithmetic():
        centred = X - mean
        var = b.op("ReduceMean", centred * centred, axes=axes, keepdims=0)
        deviation = b.Reciprocal(b.Sqrt(b.Add(var, _epsilon(node, b, X))))
    flat = b.op("ReduceMean", X, axes=axes, keepdims=0)
    _replace(node, b, dict(zip(node.outputs[3:], (flat, deviation), strict=True)), keep=True)


def _gives_saved(node: ir.Node) -> bool:
    """Whether anything reads the statistics of the batch."""
    return any(value.uses() or value.is_graph_output() for value in node.outputs[3:])


def _rank_unknown(node: ir.Node) -> bool:
    return node.inputs[0] is None or node.inputs[0].shape is None


def _epsilon(node: ir.Node, b: Builder, X: ir.Value) -> ir.Value:
    said = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    return b.constant(said, X.dtype or ir.DataType.FLOAT)


def _replace(node: ir.Node, b: Builder, results: dict[ir.Value, ir.Value], keep: bool = False) -> None:
    """Have `results` take the place, and the names, of a node's outputs."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, b.nodes)
    for old, new in results.items():
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name, new.name = new.name, old.name
        new.type = new.type or old.type
    if not keep:
        graph.remove(node)
