"""When the backward of a node is needed: which conditional stops have to be open for a cotangent to reach it.

A guard is a monotone boolean formula over conditions, in disjunctive normal form: a set of ways, each the set of the
conditions that must be false for it to be open. A value's guard is the OR over its uses of the guard of the user, AND
the condition of a conditional stop that the use belongs to. Nodes of one guard are walked in runs as long as can be
(greedy list scheduling of the reversed order), since each run becomes one If.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import onnx_ir as ir

from gradcut.dialect import is_mark
from gradcut.dialect.relatives import condition_of
from gradcut.errors import SpecError
from gradcut.ops import Builder
from gradcut.subgraphs import captured, every_node, inner_graphs

Way = frozenset[ir.Value]
Guard = frozenset[Way]
ALWAYS: Guard = frozenset({frozenset()})
NEVER: Guard = frozenset()
#: More ways than any model has; their number can grow with every stop.
_MOST = 256
#: Whether a cotangent goes from the outputs of a node to its operand.
Carries = Callable[[ir.Node, int], bool]


def has_conditions(nodes: Iterable[ir.Node]) -> bool:
    return any(condition_of(node) is not None for node in every_node(nodes))


class Guards:
    """The guards of nodes of one graph, from the values that have a cotangent.

    Attributes:
        nodes: of each node that a cotangent may reach. values: of each such value, those that graphs inside read too.
    """

    def __init__(
        self, nodes: Sequence[ir.Node], seeded: Iterable[ir.Value], active: Collection[ir.Value], carries: Carries
    ) -> None:
        self.nodes: dict[ir.Node, Guard] = {}
        self.values: dict[ir.Value, Guard] = dict.fromkeys(seeded, ALWAYS)
        self._active, self._carries = active, carries
        for node in reversed(nodes):
            guard = _either(node, *(self.values.get(value, NEVER) for value in node.outputs))
            if guard != NEVER and not is_mark(node):
                self.nodes[node] = guard
                self._hand_on(node, guard)

    def _hand_on(self, node: ir.Node, guard: Guard) -> None:
        condition = condition_of(node)
        behind = guard if condition is None else _absorbed(way | {condition} for way in guard)
        for index, value in enumerate(node.inputs):
            if value is not None and value in self._active and self._carries(node, index):
                self.values[value] = _either(node, self.values.get(value, NEVER), behind)
        for value, inside in self._captured(node).items():
            both = _absorbed(mine | its for mine in guard for its in inside)
            self.values[value] = _either(node, self.values.get(value, NEVER), both)

    def _captured(self, node: ir.Node) -> dict[ir.Value, Guard]:
        """What graphs inside a node read, each with its guard there: in one turn of a loop, which others only narrow.

        The first state of a loop is not among them: of no turns it is the result.
        """
        read = [value for value in captured(inner_graphs(node)) if value in self._active]
        if node.op_type not in ("If", "Loop", "Scan") or node.domain or not read:
            return dict.fromkeys(read, ALWAYS)
        found = dict.fromkeys(read, NEVER)
        for graph in inner_graphs(node):
            inside = Guards(list(graph), [v for v in graph.outputs if v in self._active], self._active, self._carries)
            own = {value for inner in every_node(graph) for value in inner.outputs}
            for value in read:
                seen = _absorbed(way - own for way in inside.values.get(value, NEVER))
                found[value] = _either(node, found[value], seen)
        return found


def runs(nodes: Sequence[ir.Node], guards: dict[ir.Node, Guard]) -> Iterator[tuple[Guard, list[ir.Node]]]:
    """The nodes that have a guard, users before what they use, in runs of one guard."""
    place = {node: -index for index, node in enumerate(nodes) if node in guards}
    before = {node: _producers(node, guards) for node in place}
    waiting: dict[ir.Node, int] = defaultdict(int)
    for producers in before.values():
        for producer in producers:
            waiting[producer] += 1
    ready: dict[Guard, list[tuple[int, ir.Node]]] = defaultdict(list)
    for node in sorted((node for node in place if not waiting[node]), key=place.__getitem__):
        heapq.heappush(ready[guards[node]], (place[node], node))
    while ready:
        guard = ALWAYS if ALWAYS in ready else min(ready, key=lambda one: ready[one][0][0])
        run = []
        while ready.get(guard):
            node = heapq.heappop(ready[guard])[1]
            run.append(node)
            for producer in before[node]:
                waiting[producer] -= 1
                if not waiting[producer]:
                    heapq.heappush(ready[guards[producer]], (place[producer], producer))
        del ready[guard]
        yield guard, run


def is_open(b: Builder, guard: Guard) -> ir.Value:
    """Whether one of the ways of a guard is open, as a BOOL scalar."""
    ways = [_all(b, [_not(b, condition) for condition in _sorted(way)]) for way in sorted(guard, key=_names)]
    while len(ways) > 1:
        ways = [b.op("Or", ways[0], ways[1], dtype=ir.DataType.BOOL, shape=ir.Shape([])), *ways[2:]]
    return ways[0]


def _all(b: Builder, values: Sequence[ir.Value]) -> ir.Value:
    found = values[0]
    for value in values[1:]:
        found = b.op("And", found, value, dtype=ir.DataType.BOOL, shape=ir.Shape([]))
    return found


def _not(b: Builder, condition: ir.Value) -> ir.Value:
    scalar = b.op("Reshape", condition, b.ints([]), dtype=ir.DataType.BOOL, shape=ir.Shape([]))
    return b.op("Not", scalar, dtype=ir.DataType.BOOL, shape=ir.Shape([]))


def _names(way: Way) -> list[str]:
    return [value.name or "" for value in _sorted(way)]


def _sorted(way: Way) -> list[ir.Value]:
    return sorted(way, key=lambda value: value.name or "")


def _producers(node: ir.Node, known: Collection[ir.Node]) -> list[ir.Node]:
    read = [*(value for value in node.inputs if value is not None), *captured(inner_graphs(node))]
    producers = dict.fromkeys(value.producer() for value in read)
    return [producer for producer in producers if producer is not None and producer in known]


def _either(node: ir.Node, *guards: Guard) -> Guard:
    found = _absorbed(way for guard in guards for way in guard)
    if len(found) > _MOST:
        raise SpecError(
            f"more than {_MOST} combinations of conditional stops decide whether node {node.name!r} ({node.op_type}) "
            "has a gradient; use fewer conditions, the same for stops that open together"
        )
    return found


def _absorbed(ways: Iterable[Way]) -> Guard:
    """Without ways that need more than another."""
    found = sorted(set(ways), key=len)
    if found and not found[0]:
        return ALWAYS
    kept: list[Way] = []
    for way in found:
        if not any(other <= way for other in kept):
            kept.append(way)
    return frozenset(kept)
