"""A SequenceMap over sequences whose elements only a run knows: a Loop that collects what its body gives."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.subgraphs import Copy, release


def map_in_a_loop(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    """Put the Loop in the place of the node; one of types that are not known stays."""
    body = node.attributes["body"].as_graph()
    first = node.inputs[0]
    if first is None or any(v is None or v.dtype is None for v in (*node.inputs, *body.outputs)):
        return
    b = Builder(names, prefix=f"{node.name}_")
    kinds = [ir.SequenceType(ir.TensorType(output.dtype)) for output in body.outputs]  # type: ignore[arg-type]
    results = [ir.Value(name=output.name, type=kind) for output, kind in zip(node.outputs, kinds, strict=True)]
    empty = [b.empty_sequence(result) for result in results]
    place = ir.Value(name="place", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))

    def turn(inner: Builder, place: ir.Value, going: ir.Value, *done: ir.Value) -> list[ir.Value]:
        copy = Copy(names, {like: _given(inner, v, place) for like, v in zip(body.inputs, node.inputs, strict=True)})
        inner.nodes += copy.nodes(body)
        longer = [inner.op("SequenceInsert", d, copy.of(o)) for d, o in zip(done, body.outputs, strict=True)]
        for value, kind in zip(longer, kinds, strict=True):
            value.type = kind
        return [going, *longer]

    length = b.op("SequenceLength", first, dtype=ir.DataType.INT64, shape=ir.Shape([]))
    looped = b.body([place, going, *results], turn, "each")
    loop = b.node("Loop", length, b.constant(True), *empty, body=looped, outputs=len(results))
    graph.insert_before(node, b.nodes)
    for old, new, kind in zip(node.outputs, loop.outputs, kinds, strict=True):
        new.type = kind
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name, old.name = old.name, names.fresh("mapped")
    release(node)
    graph.remove(node, safe=True)


def _given(b: Builder, value: ir.Value | None, place: ir.Value) -> ir.Value:
    """What the body gets of an operand: an element of a sequence, a tensor as it is."""
    assert value is not None
    return b.at(value, place) if isinstance(value.type, ir.SequenceType) else value
