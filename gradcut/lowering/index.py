"""The adjoint of Gather, as x of torch's own kernel on one thread.

Not by ScatterND: with reduction=add the runtime adds in parallel and loses updates of an index that comes twice
(onnxruntime #18048 and #23396; 83 of 100 runs on two threads with 1,024 tokens of 30,522).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.dims import static_dims
from gradcut.lowering import cost
from gradcut.lowering.registry import Call, lowering
from gradcut.ops import Builder

_SCATTER = 5.0  # per element that ScatterElements adds
_TABLE = 0.35  # per element of a table of zeros that ScatterElements copies, in one thread
_WRITTEN = 0.12  # per element of a table that Gather writes, in all threads
_EQUAL = 1.2  # per element of a comparison of INT64, cast to numbers
#: Larger tables are never compared with.
_ROWS = 1024


def _scattered_cost(call: Call) -> float:
    table, updates = call.output_dims(), call.dims(0)
    if table is None or updates is None or call[1].shape is None:
        return cost.NEVER
    return 4 * cost.NODE + _TABLE * math.prod(table) + _SCATTER * math.prod(updates)


@lowering("GatherGrad", _scattered_cost)
def scattered(b: Builder, call: Call) -> ir.Value:
    """ScatterElements along the gathered axis adds dY onto zeros, in one thread and so in one order.

    1,000 x 128, 256 rows: 4.4; 512 x 256, 1,024 rows: 12, of a training step of BERT-mini 1 %.
    """
    axis, shape = call.attr("axis"), call.output.shape
    assert shape is not None
    updates = _updates(b, call)
    zeros = b.zeros(call[2], call[0].dtype or ir.DataType.FLOAT, shape)
    return _added(b, zeros, _flat(b, call), updates, axis, len(shape))


def _flat(b: Builder, call: Call) -> ir.Value:
    """The indices, INT64 [n]."""
    return b.Reshape(b.Cast(call[1], to=ir.DataType.INT64), b.ints([-1]))


def _updates(b: Builder, call: Call) -> ir.Value:
    """dY with the n indices along `axis`."""
    if call[1].shape is not None and len(call[1].shape) == 1:
        return call[0]
    axis, shape = call.attr("axis"), list(call.output.shape or ())
    after = shape[axis + 1 :]
    known = all(isinstance(size, int) for size in after)
    rest = after if known else [b.Slice(call[2], b.ints([axis + 1]), b.ints([len(shape)]))]
    count = static_dims(call[1].shape)
    along = (-1 if count is None else math.prod(count)) or -1  # 0 copies a size, and may meet none to copy
    return b.Reshape(call[0], b.dims(*[0] * axis, along, *rest))


def _added(b: Builder, onto: ir.Value, flat: ir.Value, updates: ir.Value, axis: int, rank: int) -> ir.Value:
    """`onto` with each update added to its row along `axis`."""
    indices = b.Reshape(flat, b.ints([1] * axis + [-1] + [1] * (rank - axis - 1)))
    return b.ScatterElements(onto, b.Expand(indices, b.Shape(updates)), updates, axis=axis, reduction="add")


def _slotted_cost(call: Call) -> float:
    table, updates, axis = call.output_dims(), call.dims(0), call.attr("axis")
    if table is None or updates is None or call[1].shape is None or call.static_axis(axis) is None:
        return cost.NEVER
    once = cost.copy(4 * table[axis]) + _WRITTEN * math.prod(table)
    return 12 * cost.NODE + once + (_SCATTER + _TABLE) * math.prod(updates)


@lowering("GatherGrad", _slotted_cost)
def slotted(b: Builder, call: Call) -> ir.Value:
    """dY is added up in one slot for each index that occurs; the table is gathered from those and one row of zeros.

    The table is written once, in all threads, where ScatterElements copies one of zeros in one: 30,522 x 256, 256
    rows 0.64 (scattered 1.07), 1,024 rows 1.23 (1.66).
    """
    axis, rank = call.attr("axis"), len(call.output.shape or ())
    rows = call.static_axis(axis)
    assert rows is not None
    flat, updates = _flat(b, call), _updates(b, call)
    count = b.Shape(flat)
    none = b.Expand(count, b.ints([rows]))  # the slot past the last one holds the zeros
    places = b.op("Range", b.constant(0), b.Squeeze(count), b.constant(1), dtype=ir.DataType.INT64)
    slots = b.ScatterElements(none, flat, places, axis=0)
    one_more = b.ints([int(place == axis) for place in range(rank)])
    empty = b.zeros(b.Shape(updates) + one_more, call[0].dtype or ir.DataType.FLOAT)
    return b.Gather(_added(b, empty, b.Gather(slots, flat), updates, axis, rank), slots, axis=axis)


def _compared_cost(call: Call) -> float:
    table, indices = call.static_output(), call.dims(1)
    if call.attr("axis") != 0 or table is None or indices is None or len(table) != 2 or table[0] > _ROWS:
        return cost.NEVER
    count = math.prod(indices)
    return 6 * cost.NODE + _EQUAL * table[0] * count + cost.product(table[0], count, table[1])


@lowering("GatherGrad", _compared_cost)
def compared(b: Builder, call: Call) -> ir.Value:
    """A small table [V, D]: the product of [V, n], 1 where a row is the index's, with dY [n, D]."""
    (rows, columns), kind = call.static_output() or [0, 0], ir.DataType.INT64
    flat = b.Reshape(b.Cast(call[1], to=kind), b.ints([1, -1]))
    flat = b.Where(b.Less(flat, b.constant(0, kind)), flat + rows, flat)
    same = b.Equal(b.constant([[row] for row in range(rows)], kind), flat)
    return b.Gemm(b.Cast(same, to=call[0].dtype), b.Reshape(call[0], b.ints([-1, columns])))
