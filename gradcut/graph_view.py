"""A model as a networkx graph, for algorithms that want a plain one."""

from __future__ import annotations

import networkx as nx
import onnx_ir as ir

from gradcut.source import Source, load


def to_networkx(model: Source) -> nx.MultiDiGraph:
    """The main graph of a model: a vertex per node, input, initializer and output, an edge per use.

    Vertices are strings: ``node:NAME`` for nodes, ``input:NAME``, ``initializer:NAME``, ``output:NAME``. Vertex
    attributes: ``kind``, and for nodes ``op``, ``domain``, ``scope`` where there is one, ``metadata``. Edge attributes:
    ``value``, ``dtype``, ``shape``, and ``index`` of the operand. Values captured by a graph inside a node are edges to
    that node with index -1.
    """
    graph = load(model).graph
    result = nx.MultiDiGraph()
    sources: dict[ir.Value, str] = {}
    for kind, values in (("input", graph.inputs), ("initializer", graph.initializers.values())):
        for value in values:
            if value not in sources:
                sources[value] = f"{kind}:{value.name}"
                result.add_node(sources[value], kind=kind, name=value.name)
    for number, node in enumerate(graph):
        vertex = _vertex(node, number)
        attributes = {"op": node.op_type, "domain": node.domain, "metadata": dict(node.metadata_props)}
        result.add_node(vertex, kind="node", name=node.name, **attributes)
        sources.update((value, vertex) for value in node.outputs)
    for number, node in enumerate(graph):
        _edges(result, node, _vertex(node, number), sources)
    for value in graph.outputs:
        result.add_node(f"output:{value.name}", kind="output", name=value.name)
        if value in sources:
            result.add_edge(sources[value], f"output:{value.name}", **_edge(value, 0))
    return result


def _vertex(node: ir.Node, number: int) -> str:
    return f"node:{node.name or f'{node.op_type}_{number}'}"


def _edges(result: nx.MultiDiGraph, node: ir.Node, vertex: str, sources: dict[ir.Value, str]) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value in sources:
            result.add_edge(sources[value], vertex, **_edge(value, index))
    for attribute in node.attributes.values():
        if attribute.type != ir.AttributeType.GRAPH or attribute.is_ref():
            continue
        captured = {
            value: None for inner in attribute.as_graph().all_nodes() for value in inner.inputs if value in sources
        }
        for value in captured:
            if value is not None:
                result.add_edge(sources[value], vertex, **_edge(value, -1))


def _edge(value: ir.Value, index: int) -> dict[str, object]:
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return {"value": value.name, "dtype": value.dtype.name if value.dtype else None, "shape": shape, "index": index}
