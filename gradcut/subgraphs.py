"""The graphs inside a node: those of If, Loop and Scan, and of operators that are not known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from gradcut.ops import Builder, Names


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node holds as attributes."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def captured(graphs: Iterable[ir.Graph]) -> list[ir.Value]:
    """The values from outside that graphs read, at any depth, in the order of their first use."""
    found: dict[ir.Value, None] = {}
    for graph in graphs:
        own = {*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)}
        found.update(dict.fromkeys(value for value in _read(graph) if value not in own))
    return list(found)


def _read(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from (value for value in node.inputs if value is not None)
        yield from captured(inner_graphs(node))
    yield from graph.outputs


def every_node(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for graph in inner_graphs(node):
            yield from graph.all_nodes()


#: Operators that draw at random each time they run; Dropout does so in training mode.
_DRAWING = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def draws(node: ir.Node) -> bool:
    """Whether what a node gives may be another when it is run again."""
    if node.domain:
        return False
    if node.op_type != "Dropout":
        return node.op_type in _DRAWING
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = None if mode is None else ir.convenience.get_const_tensor(mode)
    return mode is not None and (tensor is None or bool(tensor.numpy().reshape(-1)[0]))


class Copy:
    """Copies nodes, the graphs inside them too, under new names.

    Attributes:
        values: for each value that was copied: its copy. What is not in it is read as it is.
    """

    def __init__(self, names: Names, values: dict[ir.Value, ir.Value] | None = None) -> None:
        self.names, self.values = names, dict(values or {})

    def of(self, value: ir.Value) -> ir.Value:
        """The copy of a value; itself where it lies outside."""
        return self.values.get(value, value)

    def nodes(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Copies of nodes, in their order."""
        return [self._node(node) for node in nodes]

    def _node(self, node: ir.Node) -> ir.Node:
        attributes = [self._attribute(attribute) for attribute in node.attributes.values()]
        return ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self.of(value) for value in node.inputs],
            attributes=attributes,
            outputs=[self._value(value) for value in node.outputs],
            name=self.names.fresh(node.name or node.op_type),
            metadata_props=dict(node.metadata_props),
        )

    def _attribute(self, attribute: ir.Attr) -> ir.Attr:
        if attribute.is_ref() or attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return attribute
        if attribute.type == ir.AttributeType.GRAPH:
            return ir.AttrGraph(attribute.name, self._graph(attribute.as_graph()))
        return ir.AttrGraphs(attribute.name, [self._graph(graph) for graph in attribute.as_graphs()])

    def _graph(self, graph: ir.Graph) -> ir.Graph:
        inputs = [self._value(value) for value in graph.inputs]
        weights = [self._value(value) for value in graph.initializers.values()]
        nodes = self.nodes(graph)
        outputs = [self.of(value) for value in graph.outputs]
        return ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, name=self.names.fresh(graph.name or "body"))

    def _value(self, value: ir.Value) -> ir.Value:
        name = self.names.fresh(value.name) if value.name else value.name
        copy = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
        self.values[value] = copy
        return copy


def keep_needed(b: Builder, results: Sequence[ir.Value]) -> None:
    """Drop what a builder has made that `results` do not need."""
    needed, kept = set(results), []
    for node in reversed(b.nodes):
        if needed.isdisjoint(node.outputs):
            release(node)
            continue
        kept.append(node)
        needed.update(value for value in node.inputs if value is not None)
        needed.update(captured(inner_graphs(node)))
    b.nodes[:] = reversed(kept)


def release(node: ir.Node) -> None:
    """Have a node that goes, and the nodes inside it, read nothing any more."""
    for graph in inner_graphs(node):
        for inner in graph.all_nodes():
            inner.resize_inputs(0)
    node.resize_inputs(0)


def body_tensors(graph: ir.Graph) -> dict[str, ir.Value]:
    """The initializers and Constants of the graphs inside a graph, at any depth, each under a name of its own.

    Branches may use one name for different tensors: the first keeps it, the next has the way to it in front, the
    output of each node and the graph's name among its attributes: ``y/else_branch/w``.
    """
    found: dict[str, ir.Value] = {}
    for path, value in _body_tensors(graph, ""):
        name = value.name or ""
        found.setdefault(name if name not in found else f"{path}{name}", value)
    return found


def _body_tensors(graph: ir.Graph, path: str) -> Iterator[tuple[str, ir.Value]]:
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute.type != ir.AttributeType.GRAPH:
                continue
            body = attribute.as_graph()
            inside = f"{path}{node.outputs[0].name}/{attribute.name}/"
            yield from ((inside, value) for value in body.initializers.values())
            constants = (inner for inner in body if (inner.domain, inner.op_type) == ("", "Constant"))
            yield from ((inside, inner.outputs[0]) for inner in constants)
            yield from _body_tensors(body, inside)
