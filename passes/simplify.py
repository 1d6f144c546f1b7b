"""`simplify`: take out what the backward does not need.

1. Multiplication or division by the number one, sums with the number zero, and Expand, Reshape or Slice that change
   nothing, where no broadcast is lost.
2. A transpose of a transpose; a transpose of a product whose operands can be swapped (d of a transposed weight).
3. Equal computations become one; draws, marks and control flow are opaque.
4. What a constant mask keeps of a gradient is all that is computed of it, see `gradcut.passes.sink`.
5. What nothing reads goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from gradcut.dialect import DOMAIN, declare, is_transparent
from gradcut.dialect.kept import is_take
from gradcut.dims import same_shape
from gradcut.passes.base import DRAWING, Pass, register
from gradcut.passes.dead_code import remove_dead
from gradcut.passes.fold import bypass, changes_nothing
from gradcut.passes.sink import sink_takes

_SMALL = 64
#: Attributes that are not compared.
_OF_NO_VALUE = frozenset(
    {
        ir.AttributeType.GRAPH,
        ir.AttributeType.GRAPHS,
        ir.AttributeType.TYPE_PROTO,
        ir.AttributeType.TYPE_PROTOS,
        ir.AttributeType.SPARSE_TENSOR,
    }
)


@register
@dataclass(frozen=True)
class Simplify(Pass):
    """Ones, zeros, transposes, common subexpressions and dead code."""

    name: ClassVar[str] = "simplify"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        remove_dead(model)
        for node in list(model.graph):
            if changes_nothing(node):
                bypass(node)
            _neutral(node)
            _transposed(model.graph, node)
        _merge_equal(model.graph)
        if any(map(is_take, model.graph.all_nodes())):
            sink_takes(model)
            _merge_equal(model.graph)
        remove_dead(model)
        declare(model)
        return ir.passes.PassResult(model, modified=True)


# --- ones and zeros ------------------------------------------------------------------------------------------

_NEUTRAL = {"Mul": (1.0, (0, 1)), "Div": (1.0, (1,)), "Add": (0.0, (0, 1)), "Sub": (0.0, (1,))}


def _neutral(node: ir.Node) -> None:
    """Case 1: replace the result by the other operand."""
    if node.domain or node.op_type not in _NEUTRAL or node.outputs[0].is_graph_output():
        return
    number, positions = _NEUTRAL[node.op_type]
    for position in positions:
        value, other = node.inputs[position], node.inputs[1 - position]
        if value is None or other is None or not same_shape(other.shape, node.outputs[0].shape):
            continue
        tensor = None if value.is_initializer() else ir.convenience.get_const_tensor(value)  # those may yet train
        if tensor is not None and tensor.size == 1 and float(tensor.numpy().reshape(())) == number:
            ir.convenience.replace_all_uses_with(node.outputs[0], other)
            return


# --- transposes ----------------------------------------------------------------------------------------------


def _transposed(graph: ir.Graph, node: ir.Node) -> None:
    """Case 2, for a Transpose node."""
    if node.domain or node.op_type != "Transpose" or node.inputs[0] is None or "perm" not in node.attributes:
        return
    perm = tuple(node.attributes["perm"].as_ints())
    producer = node.inputs[0].producer()
    if producer is None or producer.domain:
        return
    if producer.op_type == "Transpose" and "perm" in producer.attributes:
        inner = tuple(producer.attributes["perm"].as_ints())
        source = producer.inputs[0]
        undone = [inner[i] for i in perm] == list(range(len(perm)))
        if source is not None and undone and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
    elif producer.op_type == "Gemm" and perm == (1, 0) and len(node.inputs[0].uses()) == 1:
        _swap_product(graph, node, producer)


def _swap_product(graph: ir.Graph, node: ir.Node, product: ir.Node) -> None:
    """(A B)^T = B^T A^T, for a Gemm without C that only the transpose reads."""
    if len([value for value in product.inputs if value is not None]) != 2 or product.outputs[0].is_graph_output():
        return
    a, b = product.inputs[0], product.inputs[1]
    attributes: dict[str, float] = {"transA": 1 - _flag(product, "transB"), "transB": 1 - _flag(product, "transA")}
    if "alpha" in product.attributes:
        attributes["alpha"] = product.attributes["alpha"].as_float()
    output = node.outputs[0]
    swapped = ir.Node(
        "",
        "Gemm",
        [b, a],
        attributes=ir.convenience.convert_attributes({k: v for k, v in attributes.items() if v}),
        outputs=[ir.Value(name=output.name, type=output.type, shape=output.shape)],
        name=product.name,
        metadata_props=dict(node.metadata_props or product.metadata_props),
    )
    graph.insert_before(node, swapped)
    ir.convenience.replace_all_uses_with(output, swapped.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _flag(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


# --- equal computations --------------------------------------------------------------------------------------


def _merge_equal(graph: ir.Graph) -> None:
    """Case 3: a node equal to an earlier one gives way to it."""
    seen: dict[tuple[Any, ...], ir.Node] = {}
    doomed = []
    for node in graph:
        key = _key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is node or any(value.is_graph_output() for value in node.outputs):
            continue
        for mine, kept in zip(node.outputs, first.outputs, strict=True):
            kept.name = kept.name or mine.name
            ir.convenience.replace_all_uses_with(mine, kept)
        doomed.append(node)
    graph.remove(doomed, safe=True)


def _key(node: ir.Node) -> tuple[Any, ...] | None:
    if is_transparent(node) or node.op_type in DRAWING or node.domain not in ("", DOMAIN):
        return None  # what a foreign operator does is not known: it may draw too
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        value = _hashable(attribute)
        if value is None:
            return None
        attributes.append((name, value))
    return (node.op_identifier(), len(node.outputs), tuple(map(id, node.inputs)), tuple(attributes))


def _hashable(attribute: ir.Attr) -> Any:
    if attribute.is_ref() or attribute.type in _OF_NO_VALUE:
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return (tensor.dtype, tuple(tensor.shape), tensor.tobytes()) if tensor.size <= _SMALL else None
    value = attribute.value
    return (attribute.type, tuple(value) if isinstance(value, (list, tuple)) else value)
