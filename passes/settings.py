"""Scalars that a run sets: what a relative of the mark reads by name, such as a scale or a condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.dims import FLOATS
from gradcut.errors import SpecError
from gradcut.passes.propagate import main_values
from gradcut.places import Uses, values_of
from gradcut.subgraphs import captured, every_node, inner_graphs


@dataclass(frozen=True)
class Setting:
    """A scalar of the main graph; `new` if it is still to become an input of it."""

    value: ir.Value
    new: bool

    def put_in(self, graph: ir.Graph) -> None:
        if self.new:
            graph.inputs.append(self.value)


def named_setting(model: ir.Model, name: str, what: str, dtype: ir.DataType, places: Sequence[Uses]) -> Setting:
    """The scalar of a name, or the graph input of `dtype` that it is to become.

    Args:
        what: the argument that named it, for errors. places: where the relatives that read it are to stand.

    Raises:
        SpecError: the name is empty, or stands for something else than such a scalar, or for one that is computed from
            what is to be changed.
    """
    known = main_values(model.graph)
    if not name:
        raise SpecError(f"{what} is empty; name a scalar")
    if name not in known:
        _check_free(model, name, what)
        return Setting(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([])), new=True)
    value = known[name]
    _check_scalar(value, what, dtype)
    _check_order(value, what, places)
    return Setting(value, new=False)


def named_mask(
    model: ir.Model, name: str, masked: Sequence[ir.Value], axis: int | None, places: Sequence[Uses]
) -> Setting:
    """The BOOL value of a name, or the graph input that it is to become.

    Args:
        masked: the values that it masks, with their shapes as far as they are known; the first says the shape of a new
            input.
        axis: along which it lies; None: it broadcasts.
    """
    known = main_values(model.graph)
    if name not in known:
        if not name or not masked:
            raise SpecError("mask is empty; name a BOOL value" if not name else "mask: no float value is to be masked")
        _check_free(model, name, "mask")
        shape = masked[0].shape
        if shape is not None and axis is not None:
            shape = ir.Shape([shape[axis]])
        return Setting(ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=shape), new=True)
    value = known[name]
    if value.dtype is not None and value.dtype != ir.DataType.BOOL:
        raise SpecError(f"mask: {name!r} is {value.dtype.name}; it takes BOOL")
    for other in masked:
        _check_broadcast(value, other, axis)
    _check_order(value, "mask", places)
    return Setting(value, new=False)


def _check_broadcast(mask: ir.Value, value: ir.Value, axis: int | None) -> None:
    if mask.shape is None or value.shape is None:
        return
    dims, sizes = list(value.shape), list(mask.shape)
    if axis is not None:
        dims = [dims[axis]]
    pairs = zip(reversed(sizes), reversed(dims), strict=False)
    clash = any(isinstance(size, int) and size != 1 and isinstance(dim, int) and size != dim for size, dim in pairs)
    if clash or len(sizes) > len(dims) or (axis is not None and len(sizes) != 1):
        raise SpecError(f"mask: {mask.name!r} {sizes} does not broadcast to {value.name!r} {dims}")


def _check_free(model: ir.Model, name: str, what: str) -> None:
    nodes = {node.name for node in model.graph.all_nodes()}
    if name in values_of(model.graph) or name in nodes:
        raise SpecError(f"{what}: {name!r} is not a value of the main graph, and the name is taken; choose another")


def _check_scalar(value: ir.Value, what: str, dtype: ir.DataType) -> None:
    kinds = FLOATS if dtype in FLOATS else frozenset({dtype})
    if value.dtype is not None and value.dtype not in kinds:
        wanted = "a float" if dtype in FLOATS else f"a {dtype.name}"
        raise SpecError(f"{what}: {value.name!r} is {value.dtype.name}; it takes {wanted} scalar")
    if value.shape is not None and (len(value.shape) > 1 or any(isinstance(d, int) and d != 1 for d in value.shape)):
        raise SpecError(f"{what}: {value.name!r} has the shape {list(value.shape)}; it takes a scalar")


def _check_order(setting: ir.Value, what: str, places: Sequence[Uses]) -> None:
    """Nothing that computes a setting may come behind a relative that reads it."""
    needed = set(every_node(nodes_behind(setting)))
    for place in places:
        uses = list(place.value.uses()) if place.whole else place.uses
        user = next((node for node, _ in uses if node in needed), None)
        if user is not None or (place.whole and place.value is setting):
            raise SpecError(
                f"{what}: {setting.name!r} is computed from {place.value.name!r}, whose gradient it is to change; name "
                "the single uses to change (value->node)"
            )


def nodes_behind(value: ir.Value) -> set[ir.Node]:
    """Every node that a value is computed by."""
    found: set[ir.Node] = set()
    stack = [value]
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            stack += [operand for operand in node.inputs if operand is not None]
            stack += captured(inner_graphs(node))
    return found
