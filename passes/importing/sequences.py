"""Sequences that exporters write where tensors would do, taken apart; called by `import`.

1. SequenceAt of a SplitToSequence at a constant place: one output of a Split, or a Slice where how many there are is
   not known. At a place that only a run knows: a Gather or a Slice; what reads its length reads that of the axis.
2. SequenceAt of a SequenceConstruct at a constant place: that operand.
3. ConcatFromSequence of a SequenceConstruct: a Concat, or what stacks its operands along a new axis.

A sequence that something else reads as well stays.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.passes.importing.split_reads import read_tensor


def unpack_sequences(model: ir.Model) -> None:
    """Rewrite what can be rewritten; the rest is left as it is."""
    nodes = (node for graph in model.graphs() for node in graph if not node.domain and node.op_type in _CASES)
    found = [node for node in nodes if node.outputs[0].uses()]
    if not found:
        return
    names = Names.of(model)
    if any(_forget_size(node) for node in found):
        _forget_shapes(model)
    for node in found:
        _CASES[node.op_type](node, names)
        if node.op_type == "SplitToSequence":
            read_tensor(node, names)
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            assert isinstance(node.graph, ir.Graph)
            node.graph.remove(node, safe=True)


def _forget_size(node: ir.Node) -> bool:
    """Parts without their axis are of size 1; ONNX ignores keepdims=0 beside a size, ONNX Runtime and torch do not."""
    split = node.inputs[1] if len(node.inputs) > 1 and node.op_type == "SplitToSequence" else None
    tensor = None if split is None else ir.convenience.get_const_tensor(split)
    shape = tensor.shape if tensor is not None else None if split is None else split.shape
    if shape is None or len(shape) or _attribute(node, "keepdims", 1):
        return False
    node.resize_inputs(1)
    return True


def _forget_shapes(model: ir.Model) -> None:
    """What the file says of shapes is what onnx's inference made of parts that kept their axis; scalars stay so."""
    for graph in model.graphs():
        inner = () if graph is model.graph else graph.inputs
        for value in (*inner, *graph.outputs, *(output for node in graph for output in node.outputs)):
            value.shape = None if value.shape else value.shape


def _split(node: ir.Node, names: Names) -> None:
    """Case 1."""
    places = _places(node)
    sizes = _sizes(node)
    if places is None:
        return
    if sizes is None:
        _slice(node, places, names)
        return
    data = node.inputs[0]
    assert data is not None and isinstance(node.graph, ir.Graph)
    axis = _attribute(node, "axis", 0)
    b = Builder(names, prefix=f"{node.name}_")
    split = b.node("Split", data, b.ints(sizes), axis=axis, outputs=len(sizes), dtype=data.dtype)
    squeezed = len(node.inputs) < 2 and not _attribute(node, "keepdims", 1)
    for user, place in places:
        part = split.outputs[place % len(sizes)]
        part.type = data.type
        _take_over(user, b.op("Squeeze", part, b.ints([axis])) if squeezed else part, names, True)
    split.metadata_props.update(node.metadata_props)
    split.name, node.name = node.name, names.fresh("split")
    node.graph.insert_before(node, b.nodes)


def _slice(node: ir.Node, places: list[tuple[ir.Node, int]], names: Names) -> None:
    """Parts of one size, counted from the front, of a length that is not known."""
    data, split = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if split is None else ir.convenience.get_const_tensor(split)
    if data is None or tensor is None or len(tensor.shape) or int(tensor.numpy()) <= 0 or min(p for _, p in places) < 0:
        return
    size, axis = int(tensor.numpy()), _attribute(node, "axis", 0)
    for user, place in places:
        assert isinstance(node.graph, ir.Graph)
        b = Builder(names, prefix=f"{node.name}_")
        bounds = (b.ints([size * place]), b.ints([size * (place + 1)]), b.ints([axis]))
        part = b.op("Slice", data, *bounds, dtype=data.dtype)
        part.type = data.type
        node.graph.insert_before(node, b.nodes)
        _take_over(user, part, names, True)


def _places(node: ir.Node) -> list[tuple[ir.Node, int]] | None:
    """The SequenceAt nodes that read a sequence, each with its constant place; None where anything else does."""
    places = []
    if node.outputs[0].is_graph_output():
        return None
    for user, index in node.outputs[0].uses():
        place = ir.convenience.get_const_tensor(user.inputs[1]) if _reads_one(user, index) else None  # type: ignore[arg-type]
        if place is None:
            return None
        places.append((user, int(place.numpy())))
    return places


def _reads_one(user: ir.Node, index: int) -> bool:
    return user.op_type == "SequenceAt" and not user.domain and index == 0 and user.inputs[1] is not None


def _sizes(node: ir.Node) -> list[int] | None:
    """The sizes of the parts, where they are known."""
    data = node.inputs[0]
    axis = _attribute(node, "axis", 0)
    dim = data.shape[axis] if data is not None and data.shape is not None else None
    total = int(dim) if isinstance(dim, int) else None
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None if total is None else [1] * total
    split = ir.convenience.get_const_tensor(node.inputs[1])
    if split is None:
        return None
    if len(split.shape):
        return [int(size) for size in split.numpy()]
    size = int(split.numpy())
    if total is None or size <= 0:
        return None
    return [min(size, total - size * part) for part in range(math.ceil(total / size))]


def _construct(node: ir.Node, names: Names) -> None:
    """Cases 2 and 3."""
    for user, index in list(node.outputs[0].uses()):
        if _reads_one(user, index):
            place = ir.convenience.get_const_tensor(user.inputs[1])  # type: ignore[arg-type]
            if place is not None and -len(node.inputs) <= int(place.numpy()) < len(node.inputs):
                element = node.inputs[int(place.numpy())]
                assert element is not None
                _take_over(user, element, names, False)
        elif user.op_type == "ConcatFromSequence" and not user.domain:
            _concat(node, user, names)


def _concat(sequence: ir.Node, node: ir.Node, names: Names) -> None:
    axis = _attribute(node, "axis", 0)
    parts = [value for value in sequence.inputs if value is not None]
    b = Builder(names, prefix=f"{node.name}_")
    if _attribute(node, "new_axis", 0):
        parts = [b.op("Unsqueeze", part, b.ints([axis]), dtype=part.dtype) for part in parts]
    joined = b.op("Concat", *parts, axis=axis, dtype=parts[0].dtype)
    joined.producer().metadata_props.update(node.metadata_props)  # type: ignore[union-attr]
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_before(node, b.nodes)
    _take_over(node, joined, names, True)


def _take_over(node: ir.Node, value: ir.Value, names: Names, made_here: bool) -> None:
    """Have `value` stand for the node's output; one that was made here and that none reads yet gets its name."""
    output = node.outputs[0]
    assert isinstance(node.graph, ir.Graph)
    unnamed = made_here and not value.uses()
    if output.is_graph_output() and not unnamed:
        return
    if unnamed:
        value.shape = value.shape or output.shape
        value.name, output.name = output.name, names.fresh("element")
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


_CASES = {"SplitToSequence": _split, "SequenceConstruct": _construct}
