"""``x[t]`` in a Loop: exporters write a Gather along axis 0 of a value from outside, by the number of the turn.

The gradient of such a Gather is as large as x, and there would be one a turn. What reads x in no other way is therefore
taken for sliced, as a Scan slices its operands: the backward stacks the cotangents of the slices.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.subgraphs import every_node

#: As an end of a Slice that goes backwards: the first element too.
BEFORE_ALL = -(2**63) + 1
_OF_SHAPES = ("Shape", "Size")


def picked(body: ir.Graph, captured: Iterable[ir.Value]) -> dict[ir.Value, list[ir.Value]]:
    """For each captured value that is sliced by the number of the turn alone: its slices, values of the body."""
    nodes, found = list(every_node(body)), dict[ir.Value, list[ir.Value]]()
    for value in captured:
        readers = [node for node in nodes if value in node.inputs and node.op_type not in _OF_SHAPES]
        if readers and all(_is_slice(node, value, body) for node in readers) and value not in body.outputs:
            found[value] = [node.outputs[0] for node in readers]
    return found


def _is_slice(node: ir.Node, value: ir.Value, body: ir.Graph) -> bool:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if (node.domain, node.op_type, axis) != ("", "Gather", 0):
        return False
    return node.graph is body and node.inputs[0] is value and node.inputs[1] is body.inputs[0]


def laid_out(b: Builder, value: ir.Value, stacked: ir.Value, count: ir.Value) -> ir.Value:
    """The cotangent of a value, of those of its slices, the last of `count` turns first; zeros where there was none."""
    stacked.type = value.type
    turns = b.op("Reshape", count, b.ints([1]), dtype=ir.DataType.INT64, shape=ir.Shape([1]))
    rest = b.op("Shape", value, start=1, dtype=ir.DataType.INT64)
    shape = ir.Shape([None, *list(value.shape)[1:]]) if value.shape is not None else None
    dims = b.op("Concat", turns, rest, axis=0, dtype=ir.DataType.INT64)
    stacked = b.op("Reshape", stacked, dims, allowzero=1, dtype=value.dtype, shape=shape)  # of no turn too
    ordered = b.op(
        "Slice", stacked, b.ints([-1]), b.ints([BEFORE_ALL]), b.ints([0]), b.ints([-1]), dtype=value.dtype, shape=shape
    )
    missing = b.Sub(b.dim(value, 0), turns)
    pads = b.op("Concat", b.ints([0]), missing, axis=0, dtype=ir.DataType.INT64, shape=ir.Shape([2]))
    return b.op("Pad", ordered, pads, None, b.ints([0]), dtype=value.dtype, shape=value.shape)
