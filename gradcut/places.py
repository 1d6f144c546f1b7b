"""Patterns -> where marks are to stand: on values, on what leaves a module scope, on single uses.

A use is ``value->node``. On the left a scope stands for what leaves it; on the right for its nodes, of which those uses
count whose value comes from outside it (an initializer by its exact name only): ``trunk->head_b``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from gradcut.dialect.relatives import carriers, is_relative, is_transparent
from gradcut.errors import PatternError, SpecError
from gradcut.spec import match, scopes
from gradcut.text import join_names, nearest

ARROW = "->"
Use = tuple[ir.Node, int]


@dataclass(frozen=True)
class Uses:
    """Where a mark is to stand: on `value` for the uses given, or, where `whole`, on all of them."""

    value: ir.Value
    uses: tuple[Use, ...]
    whole: bool


def match_values(patterns: Sequence[str], graph: ir.Graph) -> list[Uses]:
    """Where patterns put marks, each place once.

    Raises:
        PatternError: one matches nothing. SpecError: a value is no operand of a node, or does not go into a scope.
    """
    found: dict[tuple[ir.Value, tuple[Use, ...]], Uses] = {}
    index = _Index(graph)
    for pattern in patterns:
        for place in index.places(pattern):
            for one in _flowing(place):
                found.setdefault((one.value, one.uses), one)
    return list(found.values())


def that_match(patterns: Iterable[str], graph: ir.Graph) -> list[str]:
    """Those of the patterns that `match_values` would take."""
    index = _Index(graph)
    found = []
    for pattern in patterns:
        try:
            index.places(pattern)
        except SpecError:
            continue
        found.append(pattern)
    return found


def values_of(graph: ir.Graph) -> dict[str, list[ir.Value]]:
    """Values by name: inputs, initializers, and outputs of nodes; graphs inside it may use one name several times."""
    found: dict[str, list[ir.Value]] = defaultdict(list)
    for inner in (graph, *graph.subgraphs()):
        produced = [value for node in inner for value in node.outputs]
        for value in dict.fromkeys([*inner.inputs, *inner.initializers.values(), *produced]):
            if value.name:
                found[value.name].append(value)
    return dict(found)


def read_as(value: ir.Value) -> ir.Value:
    """What stands for a value everywhere, where something was put behind it."""
    uses = list(value.uses())
    while len(uses) == 1 and is_transparent(uses[0][0]) and uses[0][1] < len(uses[0][0].outputs):
        value = uses[0][0].outputs[uses[0][1]]
        uses = list(value.uses())
    return value


def _flowing(place: Uses) -> Iterator[Uses]:
    """A value goes on behind its straight-through estimator or custom gradient: before them it has no cotangent."""
    replaced = [use for use in place.value.uses() if _replaces(*use)] if place.whole else []
    if len(replaced) < len(place.value.uses()) or place.value.is_graph_output() or not replaced:
        yield place
    for node, index in replaced:
        yield from _flowing(Uses(node.outputs[index], (), True))


def _replaces(node: ir.Node, index: int) -> bool:
    return is_relative(node) and index < len(node.outputs) and index not in carriers(node)


class _Index:
    """The names of one graph, made once for all patterns."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    @cached_property
    def values(self) -> dict[str, list[ir.Value]]:
        return values_of(self.graph)

    @cached_property
    def scopes(self) -> dict[str, list[ir.Node]]:
        return scopes(self.graph)

    @cached_property
    def nodes(self) -> dict[str, list[ir.Node]]:
        found: dict[str, list[ir.Node]] = defaultdict(list)
        for node in self.graph.all_nodes():
            if node.name:
                found[node.name].append(node)
        return dict(found)

    @cached_property
    def left(self) -> dict[str, None]:
        return dict.fromkeys([*self.values, *self.scopes])

    @cached_property
    def right(self) -> dict[str, None]:
        return dict.fromkeys([*self.nodes, *self.scopes])

    def places(self, pattern: str) -> list[Uses]:
        if pattern not in self.left and ARROW in pattern:
            return self._single_uses(pattern)
        found = [Uses(value, (), True) for value in self._sources(pattern)]
        if not found:
            raise PatternError(pattern, "value and no module scope", nearest(pattern, self.left))
        return found

    def _sources(self, pattern: str) -> list[ir.Value]:
        """The values that a pattern stands for: by name, and those that leave a scope."""
        found = [value for name in match(pattern, self.values) for value in self.values[name]]
        scoped = match(pattern, self.scopes) if pattern not in self.values else ()
        return [*found, *(value for scope in scoped for value in _leaving(self.scopes[scope]))]

    def _single_uses(self, pattern: str) -> list[Uses]:
        left, right = self._split(pattern)
        by_name = {node for name in match(right, self.nodes) for node in self.nodes[name]}
        scoped = match(right, self.scopes) if right not in self.nodes else []
        if not by_name and not scoped:
            raise PatternError(right, "node and no module scope", self._makers(right) or nearest(right, self.right))
        values = list(dict.fromkeys(self._sources(left)))
        if not values:
            raise PatternError(left, "value and no module scope", nearest(left, self.left))
        inside = self._inside(scoped)
        named = left in self.values
        places = []
        for value in values:
            entering = _entering(value, inside) if named or not value.is_initializer() else set()
            uses = tuple((node, i) for node, i in value.uses() if node in by_name or (node, i) in entering)
            places += [Uses(value, uses, False)] if uses else []
        if not places:
            raise SpecError(f"{pattern!r}: {self._no_such_use(left, right, scoped)}")
        return places

    def _split(self, pattern: str) -> tuple[str, str]:
        """The two sides of the arrow; where names hold arrows themselves, the split at which both sides are known."""
        splits = [
            (pattern[:at].strip(), pattern[at + len(ARROW) :].strip())
            for at in range(len(pattern))
            if pattern.startswith(ARROW, at)
        ]
        both = (split for split in splits if match(split[0], self.left) and match(split[1], self.right))
        return next(both, splits[0])

    def _inside(self, scoped: Collection[str]) -> dict[ir.Node, set[str]]:
        """For each node of some scopes: in which of them it is."""
        found: dict[ir.Node, set[str]] = defaultdict(set)
        for scope in scoped:
            for node in self.scopes[scope]:
                found[node].add(scope)
        return dict(found)

    def _makers(self, name: str) -> list[str]:
        """The nodes that make the values of a name: what was meant where a value is named for a node."""
        makers = (value.producer() for value in self.values.get(name, ()))
        return [maker.name for maker in makers if maker is not None and maker.name]

    def _no_such_use(self, left: str, right: str, scoped: Collection[str]) -> str:
        if not scoped:
            return f"{left} is no operand of {right}"
        inside = self._inside(scoped)
        read = (value for node in inside for value in node.inputs if value is not None and not value.is_initializer())
        names = sorted({value.name for value in read if value.name and _entering(value, inside)})
        return f"nothing goes from {left} into {right}; what goes into {right}: {join_names(names)}"


def _entering(value: ir.Value, inside: dict[ir.Node, set[str]]) -> set[Use]:
    """The uses of a value by nodes of a scope that it comes into from outside."""
    producer = value.producer()
    home = inside.get(producer, set()) if producer is not None else set()
    return {(node, i) for node, i in value.uses() if inside.get(node, set()) - home}


def _leaving(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    inside = set(nodes)
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
    ]
