"""Following the class axis from a head to the output, and mending the shapes written down on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.heads.constants import remove_unread
from gradcut.heads.find import ACTIVATIONS, POINTWISE, POOLS, Step
from gradcut.ops import Builder, Names
from gradcut.parameters import constant_tensor

Dims = Sequence[int | None]


class Follower:
    """Where the classes lie behind each step.

    Args:
        classes, wanted: how many there were, and are to be.
        shapes: of values by name, as inferred before anything changed; None for an open dimension.
    """

    def __init__(self, classes: int, wanted: int, shapes: dict[str, Dims], names: Names) -> None:
        self.classes, self.wanted, self.shapes, self.names = classes, wanted, shapes, names
        self._written: list[tuple[ir.Node, int, int]] = []

    def through(self, step: Step, axis: int) -> int:
        """The class axis behind a step, from the front where the rank is known, else from the end.

        Raises:
            SpecError: the step mixes the classes with something else, or its shape is computed at run time.
        """
        node, op_type = step.node, step.op_type
        dims = self.shapes.get(step.source.name or "")
        axis = axis % len(dims) if dims is not None else axis
        if op_type in ACTIVATIONS | POINTWISE | {"mark", "Add", "Sub", "Mul", "Div"}:
            return axis
        if dims is None:
            self._refuse(node, f"the rank of {step.source.name!r} is unknown")
        if op_type in POOLS:
            return axis if axis == 1 else self._refuse(node, "it pools over the classes")
        if op_type == "Transpose":
            perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(dims))[::-1]
            return list(perm).index(axis)
        if op_type in ("ReduceMean", "ReduceMax"):
            return self._reduced(node, axis, dims)
        if op_type in ("Squeeze", "Unsqueeze"):
            return self._squeezed(node, axis, dims)
        if op_type == "Flatten":
            return self._flattened(node, axis, dims)
        if op_type in ("Resize", "Upsample"):
            return self._resized(node, axis, len(dims))
        return self._reshaped(node, axis, dims)

    # --- axes ------------------------------------------------------------------------------------------------

    def _reduced(self, node: ir.Node, axis: int, dims: Dims) -> int:
        axes = self._axes(node, dims)
        if axes is None or axis in axes:
            self._refuse(node, "it reduces over the classes")
        keep = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int()
        return axis if keep else axis - sum(one < axis for one in axes)

    def _squeezed(self, node: ir.Node, axis: int, dims: Dims) -> int:
        if node.op_type == "Unsqueeze":
            axes = self._axes(node, dims, extra=True)
            if axes is None:
                self._refuse(node, "its axes are computed at run time")
            rest = [place for place in range(len(dims) + len(axes)) if place not in axes]
            return rest[axis]
        axes = self._axes(node, dims)
        axes = [place for place, dim in enumerate(dims) if dim == 1] if axes is None else axes
        if axis in axes:
            self._refuse(node, "it squeezes the one class away")
        return axis - sum(one < axis for one in axes)

    def _flattened(self, node: ir.Node, axis: int, dims: Dims) -> int:
        split = (node.attributes["axis"].as_int() if "axis" in node.attributes else 1) % (len(dims) + 1)
        side = range(split, len(dims)) if axis >= split else range(split)
        if any(dims[place] != 1 for place in side if place != axis):
            self._refuse(node, "it mixes the classes with other axes")
        return 1 if axis >= split else 0

    def _axes(self, node: ir.Node, dims: Dims, extra: bool = False) -> list[int] | None:
        """Axes by attribute or by a constant operand, from the front; None where there are none."""
        if "axes" in node.attributes:
            axes = list(node.attributes["axes"].as_ints())
        else:
            operand = node.inputs[1] if len(node.inputs) > 1 else None
            known = None if operand is None else _known(operand)
            if known is None:
                return None if operand is None else self._refuse(node, "its axes are computed at run time")
            axes = known
        rank = len(dims) + (len(axes) if extra else 0)
        return [one % rank for one in axes]

    # --- written shapes --------------------------------------------------------------------------------------

    def _resized(self, node: ir.Node, axis: int, rank: int) -> int:
        if "axes" in node.attributes:
            among = axis in [one % rank for one in node.attributes["axes"].as_ints()]
            return axis if not among else self._refuse(node, "it resizes along the classes")
        index = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
        scales = node.inputs[index] if len(node.inputs) > index else None
        factors = None if scales is None else constant_tensor(scales)
        if "scales" in node.attributes:
            written: Sequence[float] = node.attributes["scales"].as_floats()
        else:
            written = [] if factors is None else [float(one) for one in factors.numpy()]
        if written:
            return axis if written[axis] == 1 else self._refuse(node, "it resizes along the classes")
        if len(node.inputs) < 4 or node.inputs[3] is None:
            self._refuse(node, "its sizes are computed at run time")
        entries = self._entries(node.inputs[3])
        if entries is None or len(entries) != rank or entries[axis] not in (self.classes, None):
            self._refuse(node, "its sizes are computed at run time")
        if entries[axis] is not None:
            self._written.append((node, 3, axis))
        return axis

    def _reshaped(self, node: ir.Node, axis: int, dims: Dims) -> int:
        """The classes keep a place of their own: with the same places before them, or nothing but ones behind."""
        entries = self._entries(node.inputs[1])
        if entries is None:
            self._refuse(node, "its shape is computed at run time")
        places = [place for place, entry in enumerate(entries) if entry == self.classes]
        inferred = [place for place, entry in enumerate(entries) if entry == -1 or (entry == 0 and place == axis)]
        for place in places:
            if self._is_class_place(place, entries, axis, dims):
                self._written.append((node, 1, place))
                return place
        if not places and self.classes != 1:
            for place in inferred:
                if self._is_class_place(place, entries, axis, dims):
                    return place
        if not places and axis in inferred and len(entries) == len(dims):
            return axis
        return self._refuse(node, f"it does not keep the {self.classes} classes apart (its shape is {entries})")

    def _is_class_place(self, place: int, entries: Dims, axis: int, dims: Dims) -> bool:
        """Whether what lies behind the classes stays behind them, in the same number."""
        behind, now = dims[axis + 1 :], entries[place + 1 :]
        if None in behind or any(entry is None or entry <= 0 for entry in now):
            return list(now) == [-1] and len(behind) == 1 and entries[place] == self.classes
        same = math.prod(one for one in behind if one) == math.prod(one for one in now if one)
        before = place == axis or entries[place] != -1 or (place == 1 and axis == 1)
        return same and before

    def mend(self) -> None:
        """Put the new number of classes into the shapes on the way, once all of it can be gone."""
        for node, index, place in self._written:
            self._write(node, index, place)

    def _write(self, node: ir.Node, index: int, place: int) -> None:
        """A shape operand with the new number at a place; the old one may have other readers."""
        old = node.inputs[index]
        assert old is not None and isinstance(node.graph, ir.Graph)
        b, operands, at = Builder(self.names, prefix=f"{old.name}_"), list[ir.Value](), 0
        for part, entries in _pieces(old, self.shapes) or ():
            if None in entries:
                operands.append(b.op("Cast", part, to=int(ir.DataType.INT64), dtype=ir.DataType.INT64))
            else:
                operands.append(
                    b.ints([self.wanted if at + k == place else int(e or 0) for k, e in enumerate(entries)])
                )
            at += len(entries)
        new = operands[0] if len(operands) == 1 else b.op("Concat", *operands, axis=0, dtype=ir.DataType.INT64)
        node.graph.insert_before(node, b.nodes)
        node.replace_input_with(index, new)
        if (made := old.producer()) is not None:
            remove_unread(node.graph, made)

    def _entries(self, value: ir.Value | None) -> list[int | None] | None:
        """A shape operand as numbers, None for one that is computed; None where it is computed as a whole."""
        pieces = _pieces(value, self.shapes)
        return None if pieces is None else [entry for _, entries in pieces for entry in entries]

    def _refuse(self, node: ir.Node, why: str) -> NoReturn:
        raise SpecError(
            f"replace_head: {node.name!r} ({node.op_type}) stands behind the head, and {why}; name the head's own "
            "output with output= (--new-head OUTPUT=K)"
        )


# --- shapes in the graph -------------------------------------------------------------------------------------

#: An operand of the Concat that puts a shape together, and its entries; None for one that is computed.
Piece = tuple[ir.Value, Sequence[int | None]]
_SAME_NUMBERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def _pieces(value: ir.Value | None, shapes: dict[str, Dims]) -> list[Piece] | None:
    """A shape operand by its parts; None where it is neither constant nor a Concat."""
    if value is None:
        return None
    known = _known(value)
    if known is not None:
        return [(value, known)]
    node = _source(value).producer()
    if node is None or node.op_type != "Concat" or node.domain != "" or None in node.inputs:
        return None
    return [(part, _known(part) or _unknown(part, shapes)) for part in node.inputs if part is not None]


def _known(value: ir.Value) -> list[int] | None:
    """The numbers of a constant, as torch's exporter has it too: behind a Cast, or a Reshape to one axis."""
    tensor = constant_tensor(_source(value))
    return None if tensor is None else [int(one) for one in tensor.numpy().reshape(-1)]


def _unknown(value: ir.Value, shapes: dict[str, Dims]) -> list[int | None]:
    count = shapes.get(value.name or "", [1])
    return [None] * (count[0] or 1) if len(count) == 1 else [None]


def _source(value: ir.Value) -> ir.Value:
    """What holds the same numbers in the same order."""
    node = value.producer()
    while node is not None and node.op_type in _SAME_NUMBERS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
