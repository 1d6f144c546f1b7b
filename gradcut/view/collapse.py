"""Fewer boxes: nodes of one module scope become one group, as coarse as the limit wants."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from gradcut.view.describe import CUT, EMITTED, PLANNED, PRUNED, Adjoint, CutGraph, Edge, Node, ParameterUse

_RANK = {"": 0, PRUNED: 1, CUT: 2, PLANNED: 3, EMITTED: 4}
_PLAIN = ("input", "output", "loss")


def collapse(graph: CutGraph, limit: int = 300) -> CutGraph:
    """The graph with at most about `limit` forward boxes; marks keep a box of their own as long as they fit.

    Nodes are grouped by their module scope, by its first components where that is still too much, and a graph
    without scopes by runs of nodes in order.
    """
    if len(graph.nodes) <= limit:
        return graph
    deepest = max((len(_parts(node.scope)) for node in graph.nodes), default=0)
    for depth in range(deepest, 0, -1):
        places = [_by_scope(node, depth) for node in graph.nodes]
        if len(set(places)) <= limit:
            return _merged(graph, places)
    return _merged(graph, _runs(graph.nodes, limit))


def _parts(scope: str) -> list[str]:
    return re.split(r"[./]", scope) if scope else []


def _by_scope(node: Node, depth: int) -> str:
    parts = _parts(node.scope)
    return ".".join(parts[:depth]) if parts and node.kind in ("op", "group") else f"node {node.id}"


def _runs(nodes: Sequence[Node], limit: int) -> list[str]:
    length = -(-len(nodes) // limit)
    places, inner = [], 0
    for node in nodes:
        if node.kind in _PLAIN:
            places.append(f"node {node.id}")
            continue
        places.append(f"nodes {inner // length * length + 1} to {inner // length * length + length}")
        inner += 1
    return places


def _merged(graph: CutGraph, places: Sequence[str]) -> CutGraph:
    groups: dict[str, list[Node]] = {}
    home = {}
    for node, place in zip(graph.nodes, places, strict=True):
        groups.setdefault(place, []).append(node)
        home[node.id] = place
    named = {place: nodes[0].id if len(nodes) == 1 else place for place, nodes in groups.items()}
    nodes = tuple(nodes[0] if len(nodes) == 1 else _group(place, nodes) for place, nodes in groups.items())
    edges: dict[tuple[str, str], Edge] = {}
    for edge in graph.edges:
        ends = named[home[edge.source]], named[home[edge.target]]
        moved = replace(edge, source=ends[0], target=ends[1])
        known = edges.get(ends)
        if ends[0] != ends[1] and (known is None or _RANK[known.backward] < _RANK[edge.backward]):
            edges[ends] = moved
    return replace(graph, nodes=nodes, edges=tuple(edges.values()))


def _group(place: str, nodes: Sequence[Node]) -> Node:
    ops = Counter(node.op for node in nodes)
    listed = ", ".join(f"{count} {op}" if count > 1 else op for op, count in ops.most_common(3))
    more = ", ..." if len(ops) > 3 else ""
    return Node(
        id=place,
        kind="group",
        op=f"{sum(node.size for node in nodes)} nodes: {listed}{more}",
        scope=place,
        parameters=tuple(_counted_parameters(nodes)),
        adjoints=tuple(_counted_adjoints(nodes)),
        size=sum(node.size for node in nodes),
    )


def _counted_parameters(nodes: Sequence[Node]) -> list[ParameterUse]:
    statuses = Counter(one.status for node in nodes for one in node.parameters)
    return [ParameterUse("", _count(count, "parameter"), status) for status, count in statuses.items()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _counted_adjoints(nodes: Sequence[Node]) -> list[Adjoint]:
    """One row per status and reason; an emitted one counts its nodes."""
    rows: dict[tuple[str, str], list[Adjoint]] = {}
    for node in nodes:
        for one in node.adjoints:
            rows.setdefault((one.status, one.reason), []).append(one)
    return [
        Adjoint(_count(len(found), "operand"), "", status, reason, tuple(op for one in found for op in one.ops))
        for (status, reason), found in rows.items()
    ]
