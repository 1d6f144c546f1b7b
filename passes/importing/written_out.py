"""Nodes that ONNX Runtime's kernel does not take, in a configuration of the operator's page, become what they are
made of: an Attention with windows, or whose mask is to be broadcast or lengthened; a Swish from opset 25 on; see also
`packed` and `vectors`.

A Range whose operands are vectors of one element, as ONNX's own definition of AffineGrid has it, runs only as long as
nothing says their shapes, which import does: they become scalars.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.passes.importing.packed import is_packed, unpack
from gradcut.passes.importing.vectors import by_column, is_transposed_by_vector
from gradcut.rules import REGISTRY
from gradcut.rules.compose import written_out

#: onnxruntime 1.31 takes ONNX's function for it at opset 24 and at none behind.
_SWISH_IS_RUN = 24


def write_out(model: ir.Model) -> bool:
    """Replace such nodes; whether there were any. Shapes are to be known as far as they can be."""
    opset = model.opset_imports[""]
    nodes = [node for node in model.graph.all_nodes() if _is_beyond_the_kernel(node, opset)]
    others = [(node, change) for node in model.graph.all_nodes() for asks, change in _CHANGES if asks(node)]
    if not nodes and not others:
        return False
    names = Names.of(model)
    for node in nodes:
        _replace(node, names, opset)
    for node, change in others:
        change(node, names)
    return True


def _is_range_of_vectors(node: ir.Node) -> bool:
    return (
        node.domain == ""
        and node.op_type == "Range"
        and any(value is not None and value.shape for value in node.inputs)
    )


def _with_scalars(node: ir.Node, names: Names) -> None:
    """Give a Range scalars in place of vectors."""
    b, graph = Builder(names, prefix=f"{node.outputs[0].name}_"), node.graph
    assert isinstance(graph, ir.Graph)
    for index, value in enumerate(node.inputs):
        if value is not None and value.shape:
            node.replace_input_with(index, b.op("Reshape", value, b.ints([]), dtype=value.dtype, shape=ir.Shape([])))
    graph.insert_before(node, b.nodes)


def _is_beyond_the_kernel(node: ir.Node, opset: int) -> bool:
    if node.domain != "" or node.op_type not in ("Attention", "Swish"):
        return False
    rule = REGISTRY.find(node)
    if rule is None or rule.foreign:
        return False
    if node.op_type == "Swish":
        return opset > _SWISH_IS_RUN
    windows = (node.attributes.get(name) for name in ("left_window_size", "right_window_size"))
    return any(size is not None and size.as_int() >= 0 for size in windows) or _mask_is_smaller(node)


def _mask_is_smaller(node: ir.Node) -> bool:
    """Whether the mask has fewer places than queries and keys, as far as shapes are known."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None or mask.shape is None:
        return False
    if len(mask.shape) < 2:
        return True
    queries, keys = (_length(node, index) for index in (0, 1))
    past = _length(node, 4) if len(node.inputs) > 4 and node.inputs[4] is not None else 0
    total = keys + past if isinstance(keys, int) and isinstance(past, int) else None
    pairs = (mask.shape[-2], queries), (mask.shape[-1], total)
    return any(isinstance(has, int) and isinstance(needs, int) and has < needs for has, needs in pairs)


def _length(node: ir.Node, operand: int) -> int | None:
    """How many queries or keys an operand holds, where it is known."""
    value = node.inputs[operand]
    if value is None or value.shape is None:
        return None
    length = value.shape[-2 if len(value.shape) == 4 else 1]
    return length if isinstance(length, int) else None


def _swish(node: ir.Node, b: Builder) -> ir.Value:
    X, alpha = node.inputs[0], node.attributes.get("alpha")
    assert X is not None
    scaled = X if alpha is None or alpha.as_float() == 1.0 else b.Mul(X, alpha.as_float())
    return b.Mul(X, b.Sigmoid(scaled))


def _replace(node: ir.Node, names: Names, opset: int) -> None:
    b, graph = Builder(names, prefix=f"{node.outputs[0].name}_"), node.graph
    assert isinstance(graph, ir.Graph)
    made = [_swish(node, b)] if node.op_type == "Swish" else written_out(node, b, opset)
    for old, value in zip(node.outputs, made, strict=False):
        if not old.name or value is None:
            continue
        new = b.op("Identity", value, dtype=value.dtype, shape=old.shape or value.shape)
        new.type = old.type or new.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name, old.name = old.name, names.fresh(f"{old.name}_before")
    graph.insert_before(node, b.nodes)
    graph.remove(node, safe=True)


#: Which nodes are changed otherwise, and how.
_CHANGES: tuple[tuple[Callable[[ir.Node], bool], Callable[[ir.Node, Names], None]], ...] = (
    (_is_range_of_vectors, _with_scalars),
    (is_packed, unpack),
    (is_transposed_by_vector, by_column),
)
