"""Sequences whose elements are known one by one become a SequenceConstruct each; called by `import`.

1. SequenceInsert into such a sequence, or an empty one, and SequenceErase, at a constant place.
2. SequenceMap over such sequences: the body once for each element. Over others it becomes a Loop, see `sequence_maps`.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Names
from gradcut.passes.importing.inference import infer
from gradcut.passes.importing.sequence_maps import map_in_a_loop
from gradcut.subgraphs import Copy, release

_CONSTRUCT = "SequenceConstruct"


def construct_sequences(model: ir.Model) -> None:
    """Rewrite what can be rewritten, in the order of the nodes; the rest is left as it is."""
    if not any(node.op_type in ("SequenceInsert", "SequenceErase", "SequenceMap") for node in model.graph.all_nodes()):
        return
    if any(node.op_type == "SequenceMap" for node in model.graph.all_nodes()):
        infer(model)  # which operands are sequences
    names = Names.of(model)
    for graph in list(model.graphs()):
        for node in [node for node in graph if not node.domain]:
            if node.op_type in ("SequenceInsert", "SequenceErase"):
                _changed(node)
            elif node.op_type == "SequenceMap" and not _mapped(graph, node, names):
                map_in_a_loop(graph, node, names)
        _drop_unread(graph)


def _elements(value: ir.Value | None) -> list[ir.Value] | None:
    """What a sequence holds, where that is known."""
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type not in ("SequenceEmpty", _CONSTRUCT):
        return None
    return [element for element in node.inputs if element is not None]


def _changed(node: ir.Node) -> None:
    """Case 1; a place is counted from the end where it is negative."""
    elements, insert = _elements(node.inputs[0]), node.op_type == "SequenceInsert"
    given = node.inputs[2:] if insert else node.inputs[1:]
    place = len(elements or ()) - (0 if insert else 1)
    if given and given[0] is not None:
        tensor = ir.convenience.get_const_tensor(given[0])
        if tensor is None or elements is None:
            return
        number = int(tensor.numpy())
        place = number + len(elements) if number < 0 else number
    if elements is None or not 0 <= place < len(elements) + insert:
        return
    if insert:
        inserted = node.inputs[1]
        assert inserted is not None
        elements.insert(place, inserted)
    else:
        del elements[place]
    if elements:  # a SequenceConstruct has at least one
        _become(node, elements)


def _become(node: ir.Node, elements: list[ir.Value]) -> None:
    node.op_type = _CONSTRUCT
    node.attributes.clear()
    node.resize_inputs(len(elements))
    for index, element in enumerate(elements):
        node.replace_input_with(index, element)


def _mapped(graph: ir.Graph, node: ir.Node, names: Names) -> bool:
    """Case 2, if it is one; a tensor among the further operands goes to each element's body as it is."""
    first = _elements(node.inputs[0])
    if not first:
        return False
    columns = []
    for value in node.inputs:
        elements = _elements(value)
        if value is None or (elements is None and not isinstance(value.type, ir.TensorType)):
            return False
        columns.append([value] * len(first) if elements is None else elements)
    body = node.attributes["body"].as_graph()
    if any(len(column) != len(first) for column in columns):
        return False
    rows = []
    for given in zip(*columns, strict=True):
        copy = Copy(names, dict(zip(body.inputs, given, strict=True)))
        graph.insert_before(node, copy.nodes(body))
        rows.append([copy.of(output) for output in body.outputs])
    for output, results in zip(node.outputs, zip(*rows, strict=True), strict=True):
        made = ir.Node("", _CONSTRUCT, results, outputs=[ir.Value(name=output.name, type=output.type)], name=None)
        made.name = names.fresh(f"{output.name}_construct")
        graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(output, made.outputs[0], replace_graph_outputs=True)
    release(node)
    graph.remove(node, safe=True)
    return True


def _drop_unread(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        unread = node.outputs and not any(v.uses() or v.is_graph_output() for v in node.outputs)
        if unread and not node.domain and node.op_type in ("SequenceEmpty", _CONSTRUCT):
            graph.remove(node, safe=True)
