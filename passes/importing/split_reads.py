"""What reads a SplitToSequence one part at a time, or asks how many parts there are, reads the tensor instead.

So exporters write a loop over the rows of a tensor (``for row in x.unbind(0)``), and the place of the part is known to
a run alone. Without sizes it is a Gather; with one size for all parts, a Slice.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.passes.importing.instead import put_instead

_INT64 = ir.DataType.INT64


def read_tensor(node: ir.Node, names: Names) -> None:
    """Rewrite the readers of one SplitToSequence that can be rewritten; the others stay."""
    size = _size(node)
    if size is None:
        return
    for user, index in list(node.outputs[0].uses()):
        if user.domain or index:
            continue
        b = Builder(names, prefix=f"{user.name}_")
        if user.op_type == "SequenceAt":
            with b.arithmetic():
                found = _part(b, node, user, size)
        elif user.op_type == "SequenceLength":
            found = _length(b, node, size)
        else:
            continue
        put_instead(b, found, user, names)


def _size(node: ir.Node) -> int | None:
    """Of each part: 0 where it is one slice, not said by the file; None where parts differ, or a run says it."""
    split = node.inputs[1] if len(node.inputs) > 1 else None
    if split is None:
        return 0
    tensor = ir.convenience.get_const_tensor(split)
    size = int(tensor.numpy()) if tensor is not None and not len(tensor.shape) else 0
    return size if size > 0 else None


def _part(b: Builder, node: ir.Node, user: ir.Node, size: int) -> ir.Value:
    data, place, axis = node.inputs[0], user.inputs[1], _number(node, "axis", 0)
    assert data is not None and place is not None
    if not size:
        if _number(node, "keepdims", 1):
            place = b.op("Reshape", place, b.ints([1]), dtype=place.dtype, shape=ir.Shape([1]))
        elif place.shape is not None and len(place.shape):
            place = b.op("Reshape", place, b.ints([]), dtype=place.dtype, shape=ir.Shape([]))
        return b.op("Gather", data, place, axis=axis, dtype=data.dtype)
    start = b.op("Reshape", b.op("Cast", place, to=int(_INT64), dtype=_INT64), b.ints([1]), dtype=_INT64)
    count = b.op("Reshape", _length(b, node, size), b.ints([1]), dtype=_INT64)
    start = b.Where(b.Less(start, 0), start + count, start) * size
    return b.op("Slice", data, start, start + size, b.ints([axis]), dtype=data.dtype)


def _length(b: Builder, node: ir.Node, size: int) -> ir.Value:
    """How many parts there are, an INT64 scalar."""
    data, axis = node.inputs[0], _number(node, "axis", 0)
    assert data is not None
    end = axis + 1 if axis != -1 else None
    length = b.op("Shape", data, start=axis, end=end, dtype=_INT64, shape=ir.Shape([1]))
    if size:
        length = b.Div(b.Add(length, size - 1), size)
    return b.op("Squeeze", length, b.ints([0]), dtype=_INT64, shape=ir.Shape([]))


def _number(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
