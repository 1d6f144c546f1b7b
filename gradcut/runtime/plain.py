"""Relatives of the mark, for differences: a derivative that is one by means of marks, which differences hold still.

What bounds a cotangent by its own size, or takes it from a graph of the user's, is the derivative of nothing: it is
taken out of what is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from gradcut.dialect import declare, is_relative, new_mark
from gradcut.dialect.core import calls
from gradcut.dialect.custom import is_custom
from gradcut.dialect.relatives import CLIP_NORM, CLIP_VALUE, CONDITIONAL, MASK, REVERSAL, SCALE, STRAIGHT_THROUGH
from gradcut.dims import is_float
from gradcut.ops import Builder, Names
from gradcut.passes import Import
from gradcut.passes.emit import strip
from gradcut.passes.importing.instead import put_instead
from gradcut.passes.importing.straight_through import allow
from gradcut.source import Source, own
from gradcut.text import join_names

Values = Sequence[ir.Value]


def plain(model: Source, quantized: str = "refuse") -> tuple[Source, tuple[str, ...]]:
    """The model without what no difference shows, and what to say of it; a model without it is handed back as it is."""
    work = own(model)
    if not any(map(is_relative, calls(work))):
        return model, ()
    allow(work, quantized)
    Import()(work)
    found = [node for node in work.graph.all_nodes() if is_relative(node) and node.op_type not in _WRITTEN]
    if not found:
        return model, ()
    places = join_names(f"{node.op_type} at {node.inputs[0].name if node.inputs[0] else ''}" for node in found)
    names = Names.of(work)
    for node in [node for node in found if is_custom(node)]:
        marks = [new_mark(value, names) for value in node.inputs[: len(node.outputs)] if value is not None]
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, marks)
        for index, mark in enumerate(marks):
            node.replace_input_with(index, mark.outputs[0])
    strip(work, lambda node: is_custom(node) or (is_relative(node) and node.op_type in _BOUNDS))
    declare(work)
    return work, (f"what is no derivative was taken out first: {places}",)


_BOUNDS = frozenset({CLIP_VALUE, CLIP_NORM})


def spell_out_relatives(model: ir.Model) -> None:
    """Put what a relative means in its place, by marks: its value is its first operand, its derivative what it says."""
    names = Names.of(model)
    for node in [node for node in model.graph.all_nodes() if is_relative(node) and node.op_type in _WRITTEN]:
        b = Builder(names, prefix=f"{node.outputs[0].name}_")
        values = [value for value in node.inputs if value is not None]
        if is_float(values[0]):
            with b.arithmetic():
                held = [_held(b, value, names) for value in values]
                value = _WRITTEN[node.op_type](b, values, held)
        else:
            value = b.op("Identity", values[0], dtype=values[0].dtype)
        value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
        put_instead(b, value, node, names)
    declare(model)


def _held(b: Builder, value: ir.Value, names: Names) -> ir.Value:
    b.nodes.append(new_mark(value, names))
    return b.nodes[-1].outputs[0]


def _scaled(b: Builder, values: Values, held: Values) -> ir.Value:
    """stop(X) + scale (X - stop(X))"""
    scale = b.Reshape(b.op("CastLike", held[1], held[0], dtype=held[0].dtype), b.ints([]))
    return b.Add(held[0], b.Mul(b.Sub(values[0], held[0]), scale))


def _reversed(b: Builder, values: Values, held: Values) -> ir.Value:
    scale = b.Reshape(b.op("CastLike", held[1], held[0], dtype=held[0].dtype), b.ints([]))
    return b.Sub(held[0], b.Mul(b.Sub(values[0], held[0]), scale))


def _straight(b: Builder, values: Values, held: Values) -> ir.Value:
    """stop(Y) + (X - stop(X))"""
    return b.Add(held[0], b.Sub(values[1], held[1]))


def _conditional(b: Builder, values: Values, held: Values) -> ir.Value:
    """stop(X) where the condition is true, else X"""
    return b.op("Where", b.Reshape(held[1], b.ints([])), held[0], values[0], dtype=held[0].dtype)


def _masked(b: Builder, values: Values, held: Values) -> ir.Value:
    """X where the mask is true, else stop(X)"""
    return b.op("Where", held[1], values[0], held[0], dtype=held[0].dtype)


_WRITTEN: dict[str, Callable[[Builder, Values, Values], ir.Value]] = {
    SCALE: _scaled,
    REVERSAL: _reversed,
    STRAIGHT_THROUGH: _straight,
    CONDITIONAL: _conditional,
    MASK: _masked,
}
