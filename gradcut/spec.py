"""Patterns -> parameters and module scopes; `gradcut.places` has values and uses.

An exact name comes first; otherwise only ``*`` and ``?`` are special, and ``*`` crosses separators. A pattern that
matches nothing is an error with the nearest names.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from gradcut.dialect import is_transparent
from gradcut.errors import PatternError, SpecError
from gradcut.text import nearest

_SCOPES = "pkg.torch.onnx.name_scopes"
_PSEUDO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"


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
