"""A Loop that carries a sequence which it only inserts into is a Loop that stacks: so exporters collect a list.

The sequence begins empty, each turn inserts one tensor at its end, and nothing but ConcatFromSequence reads what comes
out: along a new first axis it gives the stack itself, along the old first axis the stack reshaped, where that axis of
what is inserted is static, so that each is as long. Any other sequence stays.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from gradcut.dims import static_dims
from gradcut.ops import Builder, Names
from gradcut.passes.importing.instead import put_instead


class Collected(NamedTuple):
    """A sequence that a Loop collects: the number of the state, the insertion, and what reads the result."""

    state: int
    insert: ir.Node
    readers: list[ir.Node]


def stack_sequences(model: ir.Model) -> None:
    """Rewrite such Loops; the rest is left as it is."""
    names = Names.of(model)
    for graph in model.graphs():
        for node in [node for node in graph if node.op_type == "Loop" and not node.domain]:
            while (found := _collected(node)) is not None:
                node = _stack(graph, node, found, names)


def _collected(node: ir.Node) -> Collected | None:
    body = node.attributes["body"].as_graph()
    for state, given in enumerate(body.inputs[2:]):
        if len(node.inputs) <= 2 + state or len(node.outputs) <= state:
            continue
        start, result = node.inputs[2 + state], body.outputs[1 + state]
        insert, empty = result.producer(), None if start is None else start.producer()
        if insert is None or empty is None or (insert.op_type, empty.op_type) != ("SequenceInsert", "SequenceEmpty"):
            continue
        alone = [user for user, _ in given.uses()] == [insert] and not result.uses() and insert.inputs[0] is given
        at_end = len(insert.inputs) < 3 or insert.inputs[2] is None
        readers = [user for user, _ in node.outputs[state].uses()]
        if alone and at_end and _only_joins(node.outputs[state], readers, insert):
            return Collected(state, insert, readers)
    return None


def _only_joins(sequence: ir.Value, readers: list[ir.Node], insert: ir.Node) -> bool:
    if sequence.is_graph_output() or any(reader.op_type != "ConcatFromSequence" for reader in readers):
        return False
    inserted = insert.inputs[1]
    alike = inserted is not None and bool(inserted.shape) and isinstance(inserted.shape[0], int)  # type: ignore[index]
    return all(_number(r, "axis") == 0 and (_number(r, "new_axis") == 1 or alike) for r in readers)


def _stack(graph: ir.Graph, node: ir.Node, found: Collected, names: Names) -> ir.Node:
    """The Loop without that state, and with a stack of what was inserted as its last output."""
    body, state, inserted = node.attributes["body"].as_graph(), found.state, found.insert.inputs[1]
    assert inserted is not None
    inner = Builder(names, prefix=f"{body.name}_")
    copy = inner.op("Identity", inserted, dtype=inserted.dtype, shape=inserted.shape)
    body.extend(inner.nodes)
    body.outputs[:] = [*(value for i, value in enumerate(body.outputs) if i != 1 + state), copy]
    body.remove(found.insert, safe=True)
    body.inputs[:] = [value for i, value in enumerate(body.inputs) if i != 2 + state]
    kept = [value for i, value in enumerate(node.outputs) if i != state]
    outputs = [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in kept]
    stack = ir.Value(name=names.fresh("stack"), type=inserted.type)
    new = ir.Node(
        "",
        "Loop",
        [value for i, value in enumerate(node.inputs) if i != 2 + state],
        attributes=[ir.AttrGraph("body", body)],
        outputs=[*outputs, stack],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, new)
    for old, value in zip(kept, new.outputs, strict=False):
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    for reader in found.readers:
        _join(reader, stack, inserted, names)
    node.attributes.pop("body")
    start = node.inputs[2 + state]
    graph.remove(node, safe=True)
    _drop_unread(start)
    return new


def _drop_unread(empty: ir.Value | None) -> None:
    producer = None if empty is None or empty.uses() else empty.producer()
    if producer is not None and isinstance(producer.graph, ir.Graph):
        producer.graph.remove(producer, safe=True)


def _join(reader: ir.Node, stack: ir.Value, inserted: ir.Value, names: Names) -> None:
    b, output = Builder(names, prefix=f"{reader.name}_"), reader.outputs[0]
    if _number(reader, "new_axis") == 1:
        joined = b.op("Identity", stack, dtype=inserted.dtype)
    else:
        joined = _lengthened(b, stack, inserted)
    joined.shape = output.shape or joined.shape
    put_instead(b, joined, reader, names)


def _lengthened(b: Builder, stack: ir.Value, inserted: ir.Value) -> ir.Value:
    """A stack [T, D, ...] as [T D, ...]."""
    assert inserted.shape is not None
    static, shape = static_dims(inserted.shape), ir.Shape([None, *list(inserted.shape)[1:]])
    if static is not None:
        return b.op("Reshape", stack, b.ints([-1, *static[1:]]), dtype=inserted.dtype, shape=shape)
    turns = b.op("Shape", stack, start=0, end=1, dtype=ir.DataType.INT64, shape=ir.Shape([1]))
    rest = b.op("Shape", stack, start=2, dtype=ir.DataType.INT64, shape=ir.Shape([len(inserted.shape) - 1]))
    each = inserted.shape[0]
    assert isinstance(each, int)
    length = b.op("Mul", turns, b.ints([each]), dtype=ir.DataType.INT64, shape=ir.Shape([1]))
    dims = b.op("Concat", length, rest, axis=0, dtype=ir.DataType.INT64, shape=ir.Shape([len(inserted.shape)]))
    return b.op("Reshape", stack, dims, allowzero=1, dtype=inserted.dtype, shape=shape)


def _number(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0
