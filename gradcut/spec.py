"""Patterns -> parameters, values, uses, module scopes.

An exact name comes first; otherwise only ``*`` and ``?`` are special, and ``*`` crosses separators. A pattern that
matches nothing is an error with the nearest names.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.dialect import is_transparent
from gradcut.errors import PatternError, SpecError
from gradcut.text import join_names, nearest

_SCOPES = "pkg.torch.onnx.name_scopes"
_PSEUDO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
ARROW = "->"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    pieces = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(pieces), re.DOTALL)


def match(pattern: str, names: Collection[str]) -> list[str]:
    """The names a pattern stands for, in the order given; an exact one alone."""
    if pattern in names:
        return [pattern]
    return [name for name in names if _compiled(pattern).fullmatch(name)]


def as_patterns(patterns: str | Iterable[str] | None) -> tuple[str, ...]:
    """One pattern or many, as a tuple."""
    if patterns is None:
        return ()
    if not isinstance(patterns, (str, Iterable)) or isinstance(patterns, (bytes, Mapping)):
        raise SpecError(f"{patterns!r} is not a pattern or a list of them; give names such as 'head.weight'")
    found = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in found:
        if not isinstance(pattern, str) or not pattern:
            raise SpecError(f"{pattern!r} is not a pattern; give names such as 'head.weight' or 'encoder.*'")
    return found


# --- scopes --------------------------------------------------------------------------------------------------


def node_scope(node: ir.Node) -> str:
    """The module path a node came from: ``encoder.layer.0``; by torch's metadata, else by a path in its name."""
    text = node.metadata_props.get(_SCOPES)
    if text is not None:
        path = [part for part in _literal(text)[:-1] if part]
        return path[-1] if path and path[-1] != _PSEUDO_SCOPE else ""
    return (node.name or "").rpartition("/")[0].lstrip("/")


def _literal(text: str) -> list[str]:
    try:
        parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(part) for part in parsed] if isinstance(parsed, (list, tuple)) else []


def scopes(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """Every module scope with its nodes, those of inner scopes included."""
    found: dict[str, list[ir.Node]] = defaultdict(list)
    for node in graph.all_nodes():
        for scope in _ancestors(node_scope(node)):
            found[scope].append(node)
    return dict(found)


def _ancestors(scope: str) -> list[str]:
    if not scope:
        return []
    cuts = [m.start() for m in re.finditer(r"[./]", scope)]
    return [*(scope[:cut] for cut in cuts), scope]


# --- parameters ----------------------------------------------------------------------------------------------


def match_parameters(
    patterns: Sequence[str], graph: ir.Graph, parameters: Collection[str], constants: Collection[str] = ()
) -> list[str]:
    """The parameters that patterns stand for, in the order of `parameters`; a scope stands for its parameters.

    Args:
        constants: tensors that are no parameters, but become one where a pattern names them exactly.
    """
    chosen: set[str] = set()
    known = _parameters_by_scope(graph, dict.fromkeys(parameters)) if patterns else {}
    others, tied = frozenset(constants), aliases(graph, dict.fromkeys(parameters)) if patterns else {}
    names = {**{alias: name for name, several in tied.items() for alias in several}, **{p: p for p in parameters}}
    for pattern in patterns:
        chosen |= set(_parameters_of(pattern, known, names, others))
    return [*(p for p in parameters if p in chosen), *(c for c in constants if c in chosen)]


def _parameters_of(
    pattern: str, known: dict[str, list[str]], parameters: dict[str, str], constants: Collection[str]
) -> list[str]:
    if pattern in parameters or pattern in constants:
        return [parameters.get(pattern, pattern)]
    found = [parameters[name] for name in match(pattern, parameters)]
    for scope in match(pattern, known):
        found += known[scope]
    if not found:
        raise PatternError(pattern, "parameter and no module scope", nearest(pattern, [*parameters, *known]))
    return found


def _parameters_by_scope(graph: ir.Graph, parameters: Collection[str]) -> dict[str, list[str]]:
    """The parameters of each scope: those whose name begins with it, and those that its nodes read; aliases too."""
    found: dict[str, list[str]] = defaultdict(list)
    for scope, nodes in scopes(graph).items():
        found[scope] += [name for name in _read_in(nodes) if name in parameters]
    for parameter in parameters:
        for scope in _ancestors(parameter)[:-1]:
            found[scope].append(parameter)
    for alias, names in _aliases(graph, parameters).items():
        found[alias] += names
    return dict(found)


def _aliases(graph: ir.Graph, parameters: Collection[str]) -> dict[str, list[str]]:
    """What a parameter is called in the other modules that it is tied into: a file has one of its names alone."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in graph.all_nodes():
        scope = node_scope(node)
        for name in _read_in([node]) if scope else ():
            alias = f"{scope}.{name.rpartition('.')[2]}"
            if name in parameters and alias not in parameters and not name.startswith(f"{scope}."):
                found[alias].append(name)
    return dict(found)


def aliases(graph: ir.Graph, parameters: Collection[str]) -> dict[str, list[str]]:
    """What else a parameter was called where modules share it: its last name, in each other module that reads it.

    GPT-2's ``lm_head.weight`` is read in ``transformer.wte`` too, so it is ``transformer.wte.weight``.
    """
    found: dict[str, list[str]] = {}
    for name, several in reading_scopes(graph, parameters).items():
        home, dot, leaf = name.rpartition(".")
        others = [f"{path}.{leaf}" for scope in several if (path := scope.replace("/", ".")) != home]
        fresh = [other for other in dict.fromkeys(others) if dot and other not in parameters]
        if fresh:
            found[name] = fresh
    return found


def reading_scopes(graph: ir.Graph, parameters: Collection[str]) -> dict[str, list[str]]:
    """The module scopes whose own nodes read a parameter, for each that some do."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for node in graph.all_nodes():
        scope = node_scope(node)
        for name in _read_in([node]) if scope else ():
            if name in parameters:
                found[name][scope] = None
    return {name: list(several) for name, several in found.items()}


def _read_in(nodes: Iterable[ir.Node]) -> Iterator[str]:
    for value in (value for node in nodes for value in node.inputs):
        while value is not None and (producer := value.producer()) is not None and is_transparent(producer):
            value = producer.inputs[value.index() or 0]
        if value is not None and value.name:
            yield value.name


# --- values and uses -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Uses:
    """Where a mark is to stand: on `value` for the uses given, or, where `whole`, on all of them."""

    value: ir.Value
    uses: tuple[tuple[ir.Node, int], ...]
    whole: bool


def values_of(graph: ir.Graph) -> dict[str, list[ir.Value]]:
    """Values by name: inputs, initializers, and outputs of nodes; graphs inside it may use one name several times."""
    found: dict[str, list[ir.Value]] = defaultdict(list)
    for inner in (graph, *graph.subgraphs()):
        produced = [value for node in inner for value in node.outputs]
        for value in dict.fromkeys([*inner.inputs, *inner.initializers.values(), *produced]):
            if value.name:
                found[value.name].append(value)
    return dict(found)


def match_values(patterns: Sequence[str], graph: ir.Graph) -> list[Uses]:
    """Where `stop_at` patterns put marks: values, scopes (every value that leaves one), or single uses.

    A use is ``value->node``; on the left a scope stands for what leaves it, on the right for its nodes, of which those
    uses count whose value comes from outside it (an initializer by its exact name only): ``trunk->head_b``.
    """
    values = values_of(graph) if patterns else {}
    known = scopes(graph) if patterns else {}
    found: dict[tuple[ir.Value, tuple[tuple[ir.Node, int], ...]], Uses] = {}
    for pattern in patterns:
        for place in _places_of(pattern, graph, values, known):
            found.setdefault((place.value, place.uses), place)
    return list(found.values())


def _places_of(
    pattern: str, graph: ir.Graph, values: dict[str, list[ir.Value]], known: dict[str, list[ir.Node]]
) -> list[Uses]:
    if pattern not in values and pattern not in known and ARROW in pattern:
        return _single_uses(pattern, graph, values, known)
    found = [Uses(value, (), True) for value in _sources(pattern, values, known)]
    if not found:
        raise PatternError(pattern, "value and no module scope", nearest(pattern, [*values, *known]))
    return found


def _sources(
    pattern: str, values: dict[str, list[ir.Value]], known: dict[str, list[ir.Node]], named: bool = False
) -> list[ir.Value]:
    """The values that a pattern stands for: by name, and those that leave a scope.

    Args:
        named: take an initializer only where the pattern is its exact name.
    """
    found = [value for name in match(pattern, values) for value in values[name]]
    if named and pattern not in values:
        found = [value for value in found if not value.is_initializer()]
    scoped = match(pattern, known) if pattern not in values else ()
    return [*found, *(value for scope in scoped for value in _leaving(known[scope]))]


def _single_uses(
    pattern: str, graph: ir.Graph, values: dict[str, list[ir.Value]], known: dict[str, list[ir.Node]]
) -> list[Uses]:
    consumers: dict[str, list[ir.Node]] = defaultdict(list)
    for node in graph.all_nodes():
        if node.name:
            consumers[node.name].append(node)
    left, right = _split_use(pattern, {*values, *known}, {*consumers, *known})
    by_name = {node for name in match(right, consumers) for node in consumers[name]}
    scoped = [set(known[scope]) for scope in match(right, known)] if right not in consumers else []
    if not by_name and not scoped:
        makers = (value.producer() for value in values.get(right, ()))  # a value where its node is meant
        named = [maker.name for maker in makers if maker is not None and maker.name]
        raise PatternError(right, "node and no module scope", named or nearest(right, [*consumers, *known]))
    uses: dict[ir.Value, set[tuple[ir.Node, int]]] = {}
    for value in _sources(left, values, known):
        uses.setdefault(value, set()).update(use for use in value.uses() if use[0] in by_name)
    for inside in scoped:
        for value in _sources(left, values, known, named=True):
            uses.setdefault(value, set()).update(_entering(value, inside))
    if not uses and not _sources(left, values, known):
        raise PatternError(left, "value and no module scope", nearest(left, [*values, *known]))
    places = [
        Uses(value, tuple(use for use in value.uses() if use in one), False) for value, one in uses.items() if one
    ]
    if not places:
        raise SpecError(_no_such_use(pattern, left, right, scoped))
    return places


def _entering(value: ir.Value, inside: set[ir.Node]) -> list[tuple[ir.Node, int]]:
    """The uses of a value by the nodes of a scope, where it comes from outside it."""
    return [] if value.producer() in inside else [use for use in value.uses() if use[0] in inside]


def _no_such_use(pattern: str, left: str, right: str, scoped: Sequence[set[ir.Node]]) -> str:
    if not scoped:
        return f"{pattern!r}: {left} is no operand of {right}"
    read = dict.fromkeys(
        value.name
        for inside in scoped
        for node in inside
        for value in node.inputs
        if value is not None and value.name and value.producer() not in inside and not value.is_initializer()
    )
    return f"{pattern!r}: nothing goes from {left} into {right}; what goes into {right}: {join_names(sorted(read))}"


def _split_use(pattern: str, values: Collection[str], nodes: Collection[str]) -> tuple[str, str]:
    """The two sides of the arrow; where names hold arrows themselves, the split at which both sides are known."""
    splits = [
        (pattern[:at].strip(), pattern[at + len(ARROW) :].strip())
        for at in range(len(pattern))
        if pattern.startswith(ARROW, at)
    ]
    both = (split for split in splits if match(split[0], values) and match(split[1], nodes))
    return next(both, splits[0])


def _leaving(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    inside = set(nodes)
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
    ]
