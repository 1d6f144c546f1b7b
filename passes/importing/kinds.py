"""Kinds of files that no gradient trains: quantised models and tree ensembles, refused by what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from gradcut.errors import UnsupportedModelError
from gradcut.passes.importing.straight_through import is_quantize, passes_rounding

_INTEGER = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)
#: ONNX Runtime's own: QLinearAdd, QGemm, QAttention, DynamicQuantizeLSTM, MatMulIntegerToFloat, QuantizeLinear, ...
_INTEGER_RUNTIME = re.compile(r"Q[A-Z]|Quantize[A-Z]|DynamicQuantize|.*Integer")
#: Operators that only store their weights in few bits, and compute in floats.
_STORED = {"": {"DequantizeLinear"}, "com.microsoft": {"DequantizeLinear", "MatMulNBits", "MatMulBnb4"}}
_TREES = frozenset({"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"})


def check_kind(model: ir.Model) -> None:
    """Refuse a tree ensemble, and a model that computes in integers."""
    nodes = list(_nodes(model))
    trees = [node for node in nodes if node.domain == "ai.onnx.ml" and node.op_type in _TREES]
    if trees:
        raise UnsupportedModelError(
            f"the model is a tree ensemble ({_several(trees)}), which gradients do not train; "
            "train it with the library that made it, or give a model of layers"
        )
    rounds = passes_rounding(model)
    integer = [
        node
        for node in nodes
        if _computes_in_integers(node) and not (is_quantize(node) and (rounds or _is_end(node, model)))
    ]
    if integer:
        raise UnsupportedModelError(
            f"the model is quantised: it computes in integers ({_several(integer)}), which gradients do not train; "
            "export the float model that it was made from, or, where it holds nothing but pairs of QuantizeLinear and "
            "DequantizeLinear, let gradients pass them with --quantized straight-through (quantized=)"
        )


def check_weights(model: ir.Model) -> None:
    """Refuse to train all of a model whose weights are stored in few bits: what is left of floats is not all of it."""
    stored = [node for node in _nodes(model) if node.op_type in _STORED.get(node.domain, ()) and not _is_pair(node)]
    if stored:
        raise UnsupportedModelError(
            f"the model is quantised: its weights are stored as integers ({_several(stored)}) and do not train; "
            "export the float model that it was made from, or name in --train the float parameters that are to train"
        )


def _is_pair(node: ir.Node) -> bool:
    """Whether a node gives back the floats that one before it rounded."""
    source = node.inputs[0] if node.inputs else None
    return source is not None and is_quantize(source.producer())


def _is_end(quantize: ir.Node, model: ir.Model) -> bool:
    """Whether no node reads the integers, which are outputs of the model at most."""
    return quantize.graph is model.graph and not any(
        quantize.outputs[at].uses() for at in (0, 2) if at < len(quantize.outputs)
    )


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        yield from body.all_nodes()


def _computes_in_integers(node: ir.Node) -> bool:
    if node.domain in ("", "ai.onnx"):
        return node.op_type in _INTEGER
    return node.domain == "com.microsoft" and _INTEGER_RUNTIME.match(node.op_type) is not None


def _several(nodes: list[ir.Node]) -> str:
    """``node 'a' is a QLinearConv, and 3 more are such``."""
    first, others = nodes[0], len(nodes) - 1
    name = f"node {first.name!r}" if first.name else f"the node that gives {first.outputs[0].name!r}"
    return f"{name} is a {first.op_type}" + (f", and {others} more are such" if others else "")
