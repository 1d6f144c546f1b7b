"""What a straight-through estimator hands the cotangent of a value to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from gradcut.dialect.relatives import is_relative
from gradcut.dims import FLOATS, is_float
from gradcut.errors import SpecError
from gradcut.parameters import constant_tensor
from gradcut.passes.settings import nodes_behind
from gradcut.passes.typed import typed_values
from gradcut.places import Uses, read_as, values_of
from gradcut.subgraphs import captured, inner_graphs
from gradcut.text import join_names, nearest


def straight_sources(model: ir.Model, places: Sequence[Uses], name: str | None) -> dict[ir.Value, ir.Value]:
    """For each value that is to be straight through: what it is made of.

    Args:
        name: of that; None: the only float operand of the node that gives the value, constants aside.

    Raises:
        SpecError: there is none, or it does not fit the value.
    """
    if not places:
        raise SpecError("straight_through: no float value is among what the patterns match")
    outputs = list(dict.fromkeys(place.value for place in places))
    if name is not None and len(outputs) > 1:
        listed = join_names(value.name or "" for value in outputs)
        raise SpecError(f"straight_through: input= is for one output, and the patterns match {listed}")
    found = {value: _only_operand(value) if name is None else _named(model, value, name) for value in outputs}
    known = typed_values(model, [*found, *found.values()])
    for output, source in found.items():
        _check_fit(known[output], known[source])
    return found


def _only_operand(output: ir.Value) -> ir.Value:
    node = _computed(output).producer()
    if node is None:
        raise SpecError(f"straight_through: no node gives {output.name!r}, so there is nothing before it")
    floats = list(dict.fromkeys(value for value in node.inputs if value is not None and is_float(value)))
    floats = [value for value in floats if constant_tensor(value) is None] or floats
    if len(floats) != 1:
        listed = join_names(value.name or "" for value in floats) or "none"
        raise SpecError(
            f"straight_through: node {node.name!r} ({node.op_type}) that gives {output.name!r} has not one float "
            f"operand but {listed}; say which value gets the gradient with input="
        )
    return floats[0]


def _computed(value: ir.Value) -> ir.Value:
    """What an operator gives, before the relatives that stand behind it."""
    node = value.producer()
    while node is not None and is_relative(node):
        before = node.inputs[node.outputs.index(value)]
        assert before is not None
        value, node = before, before.producer()
    return value


def _named(model: ir.Model, output: ir.Value, name: str) -> ir.Value:
    known = values_of(model.graph)
    if name not in known:
        hint = ", ".join(nearest(name, known))
        raise SpecError(f"straight_through: there is no value {name!r}." + (f" Nearest: {hint}." if hint else ""))
    behind = _read_by(nodes_behind(output))
    source = next((value for value in known[name] if value in behind), None)
    if source is None:
        raise SpecError(f"straight_through: {output.name!r} is not computed from {name!r}")
    standing = read_as(source)
    return standing if standing in behind else source


def _read_by(nodes: Iterable[ir.Node]) -> set[ir.Value]:
    return {value for node in nodes for value in (*node.inputs, *captured(inner_graphs(node))) if value is not None}


def _check_fit(output: ir.Value, source: ir.Value) -> None:
    for value in (output, source):
        if value.dtype is not None and value.dtype not in FLOATS:
            raise SpecError(f"straight_through: {value.name!r} is {value.dtype.name}; only floats carry a gradient")
    if output.dtype is not None and source.dtype is not None and output.dtype != source.dtype:
        raise SpecError(
            f"straight_through: {output.name!r} is {output.dtype.name} and {source.name!r} {source.dtype.name}; a "
            "gradient is handed on as it is, so they are of one dtype"
        )
    if not _may_be_equal(output.shape, source.shape):
        raise SpecError(
            f"straight_through: {output.name!r} has the shape {_text(output)} and {source.name!r} {_text(source)}; a "
            "gradient is handed on as it is, so they are of one shape"
        )


def _may_be_equal(one: ir.Shape | None, other: ir.Shape | None) -> bool:
    if one is None or other is None:
        return True
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _text(value: ir.Value) -> str:
    return "[" + ", ".join(str(dim) for dim in value.shape or ()) + "]"
