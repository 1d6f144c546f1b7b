"""Scattering: updates are written to, or combined with, the elements of data that indices name.

ONNX leaves open which update stays where reduction is none and a place is named twice; so does the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule
from gradcut.rules.shape import row_numbers


@dataclass(frozen=True)
class _Places:
    """Where the updates of one node go.

    Attributes:
        into: (onto, updates, reduction) combined, in the shape of data.
        at: what stands at the place of each update, in the shape of updates.
    """

    into: Callable[[ir.Value, ir.Value, str], ir.Value]
    at: Callable[[ir.Value], ir.Value]


@rule("ScatterElements", "data updates")
def scatter_elements(op: Adjoint) -> Cotangents:
    """One index an element, along `axis`; what comes to each operand, see `_cotangents`."""
    b, axis, shape, count = op.b, op.attr("axis", 0), op["data"].shape, op["updates"].shape

    def into(onto: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
        options = {} if reduction == "none" else {"reduction": reduction}
        return b.op("ScatterElements", onto, op["indices"], updates, axis=axis, shape=shape, **options)

    def at(value: ir.Value) -> ir.Value:
        return b.op("GatherElements", value, op["indices"], axis=axis, shape=count)

    yield from _cotangents(op, _Places(into, at))


@rule("ScatterND", "data updates")
def scatter_nd(op: Adjoint) -> Cotangents:
    """As ScatterElements, slice by slice.

    Reductions by ScatterElements over the row numbers of the flat data: ONNX Runtime's ScatterND combines in parallel
    and loses updates of a place that comes twice.
    """
    b, shape, count = op.b, op["data"].shape, op["updates"].shape
    flat = b.ints([-1])

    def into(onto: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
        if reduction == "none":
            return b.op("ScatterND", onto, op["indices"], updates, shape=shape)
        places = b.Reshape(b.op("GatherND", row_numbers(b, op["data"]), op["indices"]), flat)
        combined = b.op(
            "ScatterElements", b.Reshape(onto, flat), places, b.Reshape(updates, flat), axis=0, reduction=reduction
        )
        return b.op("Reshape", combined, b.shape_of(op["data"]), allowzero=1, shape=shape)

    def at(value: ir.Value) -> ir.Value:
        return b.op("GatherND", value, op["indices"], shape=count)

    yield from _cotangents(op, _Places(into, at))


@rule("TensorScatter", "past_cache update", since=24)
def tensor_scatter(op: Adjoint) -> Cotangents:
    """The update's rows go to `write_indices` and the places behind, modulo the cache's length where it is circular.

    past_cache keeps its cotangent but where it was overwritten, update reads its own there.
    """
    b, dY, update = op.b, op.dY, op["update"]
    where = [] if op.get("write_indices") is None else [op["write_indices"]]
    axis, mode = op.attr("axis", -2), op.attr("mode", "linear")
    if op.wants("past_cache"):
        options = {"axis": axis, "mode": mode, "shape": dY.shape}
        yield "past_cache", b.op("TensorScatter", dY, b.zeros_like(update), *where, **options)
    if op.wants("update"):
        places = _written(op, where, axis % op.rank("update"), circular=mode == "circular")
        yield "update", b.op("GatherElements", dY, places, axis=axis, shape=update.shape)


def _written(op: Adjoint, first: list[ir.Value], axis: int, circular: bool) -> ir.Value:
    """Where each element of TensorScatter's update goes along `axis`, in the shape of the update."""
    b, update, kind = op.b, op["update"], ir.DataType.INT64
    length = b.Squeeze(b.dim(update, axis), b.ints([0]))
    rows = b.Range(b.constant(0, kind), length, b.constant(1, kind), dtype=kind)
    behind = [1] * (op.rank("update") - axis - 1)
    places = b.Reshape(rows, b.ints([-1, *behind]))
    for each in first:
        places = places + b.Reshape(each, b.ints([-1, *[1] * axis, *behind]))
    if circular:
        places = b.Mod(places, b.dim(op["past_cache"], axis))
    return b.Expand(places, b.shape_of(update))


def _cotangents(op: Adjoint, places: _Places) -> Cotangents:
    """By the node's reduction; a place that updates share gives each of them its cotangent."""
    reduction = op.attr("reduction", "none")
    serve = {"none": _overwritten, "add": _added, "mul": _multiplied, "max": _largest, "min": _largest}
    yield from serve[reduction](op, places)


def _overwritten(op: Adjoint, places: _Places) -> Cotangents:
    """data keeps its cotangent but where it was overwritten."""
    if op.wants("data"):
        yield "data", places.into(op.dY, op.b.zeros_like(op["updates"]), "none")
    if op.wants("updates"):
        yield "updates", places.at(op.dY)


def _added(op: Adjoint, places: _Places) -> Cotangents:
    if op.wants("data"):
        yield "data", op.dY
    if op.wants("updates"):
        yield "updates", places.at(op.dY)


def _multiplied(op: Adjoint, places: _Places) -> Cotangents:
    """dY times the product of the other factors: that of all over one's own, or, where one's own is the only zero
    among the updates of a place, the product without it (torch's scatter_reduce, and so right at second order but for
    two zeros at one place).
    """
    b, dY, data, updates = op.b, op.wide(op.dY), op.wide(op["data"]), op.wide(op["updates"])
    one, zero = b.scalar_like(1.0, updates), b.scalar_like(0.0, updates)
    if op.wants("data"):
        ones = b.Expand(one, b.shape_of(data))
        yield "data", b.Cast(dY * places.into(ones, updates, "mul"), to=op["data"].dtype)
    if op.wants("updates"):
        is_zero = b.Equal(updates, zero)
        zeros = places.into(b.zeros_like(data), b.Cast(is_zero, to=updates.dtype), "add")
        alone = b.And(is_zero, b.Equal(places.at(zeros), one))
        without = places.at(places.into(data, b.Where(alone, one, updates), "mul"))
        divided = places.at(op.wide(op.out())) / b.Where(is_zero, one, updates)
        yield "updates", b.Cast(places.at(dY) * b.Where(alone, without, divided), to=op["updates"].dtype)


def _largest(op: Adjoint, places: _Places) -> Cotangents:
    """Equal ones share the cotangent, data among them, as torch's scatter_reduce."""
    b, data, updates, Y = op.b, op["data"], op["updates"], op.out()
    dY = op.wide(op.dY)
    kept = b.Cast(b.Equal(data, Y), to=dY.dtype)
    won = b.Cast(b.Equal(updates, places.at(Y)), to=dY.dtype)
    share = dY / places.into(kept, won, "add")
    if op.wants("data"):
        yield "data", b.Cast(kept * share, to=data.dtype)
    if op.wants("updates"):
        yield "updates", b.Cast(won * places.at(share), to=updates.dtype)
