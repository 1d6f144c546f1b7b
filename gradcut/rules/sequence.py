"""Sequences: the cotangent of a sequence is a sequence as long, of the cotangents of its elements.

What exporters write for a Split, a Concat or a stack is one after import (`gradcut.passes.importing.sequences`); these
rules see the rest: sequences that a Loop or an If gives, and those read at places that only a run knows.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule

_INT64 = ir.DataType.INT64


@rule("SequenceConstruct", "inputs")
def sequence_construct(op: Adjoint) -> Cotangents:
    """Each operand gets its element."""
    for index in sorted(op.wanted):
        element = op.b.at(op.dY, index)
        element.shape = op[index].shape
        yield index, element


@rule("SequenceAt", "input_sequence")
def sequence_at(op: Adjoint) -> Cotangents:
    """Zeros, but for the element that was taken."""
    b, S = op.b, op["input_sequence"]
    place = _place(op, b, S)
    others = _without(b, b.zeros_like(S), place)
    yield "input_sequence", _with(b, others, op.dY, place)


@rule("SequenceInsert", "input_sequence tensor")
def sequence_insert(op: Adjoint) -> Cotangents:
    """tensor gets its element, input_sequence the others."""
    b = op.b
    place = None if op.get("position") is None else _place(op, b, op["input_sequence"])
    if op.wants("tensor"):
        element = b.at(op.dY, -1 if place is None else place)
        element.shape = op["tensor"].shape
        yield "tensor", element
    if op.wants("input_sequence"):
        yield "input_sequence", _without(b, op.dY, place)


@rule("SequenceErase", "input_sequence")
def sequence_erase(op: Adjoint) -> Cotangents:
    """Zeros in the place of the element that went."""
    b, S = op.b, op["input_sequence"]
    place = b.constant(-1) if op.get("position") is None else _place(op, b, S)
    gone = b.zeros_like(b.at(S, place))
    yield "input_sequence", _with(b, op.dY, gone, None if op.get("position") is None else place)


@rule("SplitToSequence", "input")
def split_to_sequence(op: Adjoint) -> Cotangents:
    """The parts behind each other again, or stacked where the split took their axis away."""
    b, axis, X, parts = op.b, op.attr("axis", 0), op["input"], op.dY
    stacked = op.get("split") is None and not op.attr("keepdims", 1)
    size = X.shape[axis] if X.shape is not None else None
    if not isinstance(size, int):  # no part at all, maybe: then one of size 0
        if stacked:
            parts = b.each(parts, lambda inner, place, part: inner.op("Unsqueeze", part, inner.ints([axis])))
        empty = b.op("Slice", X, b.ints([0]), b.ints([0]), b.ints([axis]), dtype=X.dtype)
        parts, stacked = _with(b, parts, empty, b.constant(0)), False
    yield "input", b.op("ConcatFromSequence", parts, axis=axis, new_axis=int(stacked), dtype=X.dtype, shape=X.shape)


@rule("ConcatFromSequence", "input_sequence")
def concat_from_sequence(op: Adjoint) -> Cotangents:
    """Split as the elements were."""
    b, S, axis = op.b, op["input_sequence"], op.attr("axis")
    if op.attr("new_axis", 0):
        parts = b.op("SplitToSequence", op.dY, axis=axis, keepdims=0)
    else:
        parts = b.op("SplitToSequence", op.dY, _sizes(b, S, axis), axis=axis)
    parts.type = S.type
    yield "input_sequence", parts


def _place(op: Adjoint, b: Builder, S: ir.Value) -> ir.Value:
    """The operand position, from the front."""
    place = b.Cast(op["position"], to=_INT64)
    length = b.op("SequenceLength", S, dtype=_INT64, shape=ir.Shape([]))
    return b.Where(b.Less(place, 0), b.Add(place, length), place)


def _without(b: Builder, S: ir.Value, place: ir.Value | None) -> ir.Value:
    operands = (S,) if place is None else (S, place)
    rest = b.op("SequenceErase", *operands)
    rest.type = S.type
    return rest


def _with(b: Builder, S: ir.Value, element: ir.Value, place: ir.Value | None) -> ir.Value:
    operands = (S, element) if place is None else (S, element, place)
    longer = b.op("SequenceInsert", *operands)
    longer.type = S.type
    return longer


def _sizes(b: Builder, S: ir.Value, axis: int) -> ir.Value:
    """The size along an axis of each element, INT64 [length]."""
    place = ir.Value(name="place", type=ir.TensorType(_INT64), shape=ir.Shape([]))
    going = ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))

    def turn(inner: Builder, place: ir.Value, going: ir.Value) -> list[ir.Value]:
        return [going, inner.Squeeze(inner.dim(inner.at(S, place), axis))]

    length = b.op("SequenceLength", S, dtype=_INT64, shape=ir.Shape([]))
    body = b.body([place, going], turn, "sizes")
    return b.op("Loop", length, b.constant(True), body=body, dtype=_INT64, shape=ir.Shape([None]))
