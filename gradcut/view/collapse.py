"""Fewer boxes: nodes of one module scope become one group, as coarse as the limit wants, and never a false cycle."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from gradcut.errors import SpecError
from gradcut.text import counted
from gradcut.view.describe import CUT, EMITTED, PLANNED, PRUNED, Adjoint, CutGraph, Edge, Node, ParameterUse

#: As many boxes as fit on a page that can be read.
LIMIT = 24
_RANK = {"": 0, CUT: 1, PRUNED: 2, PLANNED: 3, EMITTED: 4}
_COUNTED = ("op", "mark")

#: What a node shares with those that it wants to be in one box with, by its id; who has none is alone.
_Keys = Mapping[str, Hashable]


def collapse(graph: CutGraph, limit: int = LIMIT) -> CutGraph:
    """The graph with at most `limit` boxes besides inputs, outputs and the loss; marks keep theirs if they fit.

    Nodes are grouped by their module scope, children included, by its first components where that is still too much,
    and what has no scope by runs of nodes in order. Groups do not lie on a cycle: one that would is split.

    Raises:
        SpecError: the limit is no positive number.
    """
    if limit < 1:
        raise SpecError(f"limit is {limit}: a picture has at least 1 box")
    nodes = [node for node in graph.nodes if node.kind in _COUNTED]
    if len(nodes) <= limit:
        return graph
    before = defaultdict(list)
    for edge in graph.edges:
        before[edge.target].append(edge.source)
    tried = (_boxes(nodes, before, keys, limit) for keys in _groupings(nodes, limit))
    return _merged(graph, next(boxes for boxes in tried if boxes is not None))


# --- who goes with whom --------------------------------------------------------------------------------------


def _groupings(nodes: Sequence[Node], limit: int) -> Iterator[_Keys]:
    """From fine to coarse; the last one always fits."""
    for depth in range(max(len(_parts(node.scope)) for node in nodes), 0, -1):
        yield _scopes(nodes, depth, at_least=depth)
        yield _scopes(nodes, depth, at_least=1)
    marks = {node.id: node.id for node in nodes if node.kind == "mark"}
    for fixed in (marks | _scopes(nodes, 1, at_least=1), marks, {}):
        yield from _runs(nodes, fixed, limit)


def _parts(scope: str) -> list[str]:
    return re.split(r"[./]", scope) if scope else []


def _scopes(nodes: Sequence[Node], depth: int, at_least: int) -> dict[str, Hashable]:
    """The first `depth` components of scopes that have `at_least` so many."""
    scopes = {node.id: _parts(node.scope) for node in nodes if node.kind != "mark"}
    return {name: tuple(parts[:depth]) for name, parts in scopes.items() if len(parts) >= at_least}


def _runs(nodes: Sequence[Node], fixed: _Keys, limit: int) -> Iterator[_Keys]:
    """What is not `fixed` by nodes that follow each other, ever more of them."""
    length = -(-len(nodes) // limit)
    while True:
        yield {**_run_numbers(nodes, fixed, length), **fixed}
        if length >= len(nodes):
            return
        length += 1 + length // 4


def _run_numbers(nodes: Sequence[Node], fixed: _Keys, length: int) -> dict[str, int]:
    numbers: dict[str, int] = {}
    run, size = 0, 0
    for node in nodes:
        if node.id in fixed or size == length:
            run, size = run + 1, 0
        if node.id not in fixed:
            numbers[node.id] = run
            size += 1
    return numbers


def _boxes(
    nodes: Sequence[Node], before: Mapping[str, Sequence[str]], keys: _Keys, limit: int
) -> list[list[Node]] | None:
    """The nodes by key, None: that is more than `limit` boxes.

    A node that would close a cycle through another box begins a new box of its key.
    """
    order = _Order()
    boxes: list[list[Node]] = []
    home: dict[str, int] = {}
    latest: dict[Hashable, int] = {}
    for node in nodes:
        key = keys.get(node.id, node.id)
        sources = {home[name] for name in before.get(node.id, ()) if name in home}
        box = latest.get(key)
        if box is None or order.follows(sources, box):
            if len(boxes) == limit:
                return None
            box = order.add()
            boxes.append([])
        order.put(sources - {box}, box)
        boxes[box].append(node)
        home[node.id] = latest[key] = box
    return boxes


class _Order:
    """Which boxes lie before which, a bit each."""

    def __init__(self) -> None:
        self.before: list[int] = []

    def add(self) -> int:
        """A box that lies before and behind none."""
        self.before.append(0)
        return len(self.before) - 1

    def follows(self, sources: set[int], box: int) -> bool:
        """Whether one of `sources` lies behind the box."""
        return any(self.before[source] >> box & 1 for source in sources)

    def put(self, sources: set[int], box: int) -> None:
        """`sources` lie before `box` from now on, and so before all that it lies before."""
        more = self.before[box]
        for source in sources:
            more |= self.before[source] | 1 << source
        if more == self.before[box]:
            return
        self.before[box] = more
        for other, known in enumerate(self.before):
            if known >> box & 1:
                self.before[other] = known | more


# --- the smaller graph ---------------------------------------------------------------------------------------


def _merged(graph: CutGraph, boxes: Sequence[Sequence[Node]]) -> CutGraph:
    numbers = {node.id: i for i, node in enumerate((node for node in graph.nodes if node.kind in _COUNTED), 1)}
    groups = {f"group:{name}": box for name, box in _named([box for box in boxes if len(box) > 1], numbers)}
    home = {node.id: place for place, box in groups.items() for node in box}
    inner: dict[str, set[tuple[str, str]]] = defaultdict(set)
    edges: dict[Hashable, Edge] = {}
    for edge in graph.edges:
        moved = replace(edge, source=home.get(edge.source, edge.source), target=home.get(edge.target, edge.target))
        if moved.source != moved.target:
            _add(edges, moved)
        elif edge.is_cut:
            inner[moved.source].add((edge.reason, edge.value))
    nodes = {node.id: node for node in graph.nodes}
    places = dict.fromkeys(home.get(name, name) for name in nodes)
    merged = tuple(_group(one, groups[one], inner[one]) if one in groups else nodes[one] for one in places)
    return replace(graph, nodes=merged, edges=tuple(edges.values()))


def _named(groups: Sequence[Sequence[Node]], numbers: Mapping[str, int]) -> Iterator[tuple[str, Sequence[Node]]]:
    """Groups by the scope that their nodes share, in parts where several share it, else by the nodes' numbers."""
    scopes = [_shared([_parts(node.scope) for node in group]) for group in groups]
    seen: Counter[str] = Counter()
    for scope, group in zip(scopes, groups, strict=True):
        seen[scope] += 1
        part = f" (part {seen[scope]} of {scopes.count(scope)})" if scopes.count(scope) > 1 else ""
        yield (f"{scope}{part}" if scope else f"nodes {numbers[group[0].id]} to {numbers[group[-1].id]}"), group


def _shared(scopes: Sequence[list[str]]) -> str:
    """The first components that all have in common; the least and the greatest differ where any two do."""
    pairs = zip(min(scopes), max(scopes), strict=False)
    return ".".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _add(edges: dict[Hashable, Edge], edge: Edge) -> None:
    """Every cut value stays an edge; of the others between two boxes, the one along which most goes back."""
    if edge.is_cut:
        edges.setdefault((edge.source, edge.target, edge.reason, edge.value), edge)
        return
    known = edges.get((edge.source, edge.target))
    if known is None or _RANK[known.backward] < _RANK[edge.backward]:
        edges[edge.source, edge.target] = edge


def _group(place: str, nodes: Sequence[Node], cuts: set[tuple[str, str]]) -> Node:
    ops = Counter(node.op for node in nodes)
    listed = ", ".join(f"{count} {op}" if count > 1 else op for op, count in ops.most_common(3))
    more = ", ..." if len(ops) > 3 else ""
    return Node(
        id=place,
        kind="group",
        op=f"{len(nodes)} nodes: {listed}{more}",
        scope=place.removeprefix("group:"),
        parameters=tuple(_counted_parameters(nodes)),
        adjoints=tuple(_counted_adjoints(nodes)),
        size=len(nodes),
        cuts=tuple(sorted(Counter(reason for reason, _ in cuts).items())),
    )


def _counted_parameters(nodes: Sequence[Node]) -> Iterator[ParameterUse]:
    """One row per status; a parameter that several nodes read is one."""
    known = {one.name: one.status for node in nodes for one in node.parameters}
    for status, count in Counter(known.values()).items():
        yield ParameterUse("", counted(count, "running statistic" if status == "state" else "parameter"), status)


def _counted_adjoints(nodes: Sequence[Node]) -> Iterator[Adjoint]:
    """One row per status and reason; an emitted one counts its nodes."""
    rows: dict[tuple[str, str], list[Adjoint]] = defaultdict(list)
    for node in nodes:
        for one in node.adjoints:
            rows[one.status, one.reason].append(one)
    for (status, reason), found in rows.items():
        ops = tuple(op for one in found for op in one.ops)
        yield Adjoint(counted(len(found), "operand"), "", status, reason, ops)
