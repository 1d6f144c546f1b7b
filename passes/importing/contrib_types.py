"""Types and shapes of what ONNX Runtime's own operators give, which ONNX's inference does not know.

Inference sees, in a copy of the model, an operator of ONNX's with the same result in place of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import NodeProto, helper

MICROSOFT = "com.microsoft"


def with_stand_ins(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The proto itself, with operators that inference knows in place of ONNX Runtime's own, at any depth."""
    _replace(proto.graph)
    return proto


def _replace(graph: onnx.GraphProto) -> None:
    nodes, ranks = list[NodeProto](), _ranks(graph)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _replace(inner)
        if (node.domain, node.op_type) == (MICROSOFT, "FusedMatMul"):
            nodes += _product(node, ranks)
        else:
            stand_in = _STAND_INS.get((node.domain, node.op_type))
            nodes += [node] if stand_in is None else stand_in(node)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    """Of the values whose rank the file says, weights before all."""
    values = [value for value in (*graph.value_info, *graph.input) if value.type.tensor_type.HasField("shape")]
    said = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    return said | {tensor.name: len(tensor.dims) for tensor in graph.initializer}


def _make(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> list[NodeProto]:
    """One node, or none where an output or an operand is left out."""
    return [helper.make_node(op_type, inputs, [output], **attributes)] if output and all(inputs) else []


def _output(node: NodeProto, index: int) -> str:
    return node.output[index] if index < len(node.output) else ""


def _attribute(node: NodeProto, name: str, default: object) -> object:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _like(*outputs: int) -> Callable[[NodeProto], list[NodeProto]]:
    """The outputs that have the type and the shape of the first operand."""
    return lambda node: [made for at in outputs for made in _make("Identity", node.input[:1], _output(node, at))]


def _sum(node: NodeProto) -> list[NodeProto]:
    return _make("Add", node.input[:2], node.output[0])


def _product(node: NodeProto, ranks: dict[str, int]) -> list[NodeProto]:
    """A MatMul, of transposed operands where their ranks are known; else an Einsum, which takes equal ranks alone."""
    turned = [bool(_attribute(node, f"trans{name}", 0)) for name in "AB"]
    moved = [bool(_attribute(node, f"transBatch{name}", 0)) for name in "AB"]
    if any(moved) or any(turn and x not in ranks for turn, x in zip(turned, node.input, strict=True)):
        return _make("Einsum", node.input, node.output[0], equation=_equation(turned, moved))
    operands, nodes = list(node.input), list[NodeProto]()
    for at, turn in enumerate(turned):
        rank = ranks.get(operands[at], 0)
        if turn and rank > 1:
            perm, name = [*range(rank - 2), rank - 1, rank - 2], f"{node.output[0]}__turned{at}"
            nodes += _make("Transpose", [operands[at]], name, perm=perm)
            operands[at] = name
    return [*nodes, *_make("MatMul", operands, node.output[0])]


def _equation(turned: Sequence[bool], moved: Sequence[bool]) -> str:
    sides = []
    for plain, turn, move in zip(("mk", "kn"), turned, moved, strict=True):
        letters = plain[::-1] if turn else plain
        sides.append(f"{letters[0]}...{letters[1]}" if move else f"...{letters}")
    return f"{sides[0]},{sides[1]}->...mn"


def _product_of_bits(node: NodeProto) -> list[NodeProto]:
    """A MatMul with zeros of the shape of what the integers stand for."""
    A, Y = node.input[0], node.output[0]
    shape, zeros, like = (f"{Y}__{part}" for part in ("shape", "zeros", "like"))
    size = [int(str(_attribute(node, name, 0))) for name in ("K", "N")]
    return [
        helper.make_node("Constant", [], [shape], value_ints=size),
        helper.make_node("ConstantOfShape", [shape], [zeros]),
        helper.make_node("CastLike", [zeros, A], [like]),
        *_make("MatMul", [A, like], Y),
    ]


def _without_activation(op_type: str) -> Callable[[NodeProto], list[NodeProto]]:
    def build(node: NodeProto) -> list[NodeProto]:
        plain = NodeProto()
        plain.CopyFrom(node)
        plain.op_type, plain.domain = op_type, ""
        del plain.input[3:]
        kept = [attribute for attribute in node.attribute if not attribute.name.startswith("activation")]
        del plain.attribute[:]
        plain.attribute.extend(kept)
        return [plain]

    return build


def _embedded(node: NodeProto) -> list[NodeProto]:
    """The mask_index, output 1, has one INT32 for each row of the ids."""
    ids, index = node.input[0], _output(node, 1)
    made = [made for at in (0, 2) for made in _make("Gather", [node.input[2], ids], _output(node, at))]
    if index:
        made += [
            helper.make_node("Cast", [ids], [f"{index}__ids"], to=onnx.TensorProto.INT32),
            helper.make_node("Constant", [], [f"{index}__axes"], value_ints=[1]),
            helper.make_node("ReduceMax", [f"{index}__ids", f"{index}__axes"], [index], keepdims=0),
        ]
    return made


def _attention(node: NodeProto) -> list[NodeProto]:
    """input weights has Q, K and V side by side; the output is as wide as V."""
    joint, result = f"{node.output[0]}__joint", node.output[0]
    product = _make("MatMul", node.input[:2], joint)
    sizes = _attribute(node, "qkv_hidden_sizes", None)
    parts = [f"{joint}_q", f"{joint}_k", result]
    if not sizes:
        return [*product, helper.make_node("Split", [joint], parts, axis=2, num_outputs=3)]
    widths = helper.make_node("Constant", [], [f"{joint}_sizes"], value_ints=list(sizes))  # type: ignore[call-overload]
    return [*product, widths, helper.make_node("Split", [joint, f"{joint}_sizes"], parts, axis=2)]


def _heads(node: NodeProto) -> list[NodeProto]:
    """[batch, queries, width of the values], where they are not packed."""
    if len(node.input) < 3 or not node.input[2]:
        return []
    return _make("Einsum", [node.input[0], node.input[2]], node.output[0], equation="bqh,bkv->bqv")


_STAND_INS: dict[tuple[str, str], Callable[[NodeProto], list[NodeProto]]] = {
    **{(MICROSOFT, name): _like(0) for name in ("FastGelu", "Gelu", "Inverse", "QuickGelu", "RotaryEmbedding")},
    **{(MICROSOFT, f"Skip{kind}LayerNormalization"): _like(0, 3) for kind in ("", "Simplified")},
    ("", "SimplifiedLayerNormalization"): _like(0),
    (MICROSOFT, "Attention"): _attention,
    (MICROSOFT, "BiasGelu"): _sum,
    (MICROSOFT, "EmbedLayerNormalization"): _embedded,
    (MICROSOFT, "FusedConv"): _without_activation("Conv"),
    (MICROSOFT, "FusedGemm"): _without_activation("Gemm"),
    (MICROSOFT, "GroupQueryAttention"): lambda node: _like(0)(node) if node.input[1] else [],
    (MICROSOFT, "MatMulNBits"): _product_of_bits,
    (MICROSOFT, "MultiHeadAttention"): _heads,
}
