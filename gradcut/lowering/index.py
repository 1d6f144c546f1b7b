"""The adjoint of Gather, as x of torch's own kernel on one thread.

Not by ScatterND: with reduction=add the runtime adds in parallel and loses updates of an index that comes twice
(onnxruntime #18048 and #23396; 83 of 100 runs on two threads with 1,024 tokens of 30,522).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, lowering
from gradcut.ops import Builder

_SCATTER = 7.0  # per element that ScatterElements adds
_EQUAL = 1.2  # per element of a comparison of INT64, cast to numbers
#: Larger tables are never compared with.
_ROWS = 1024


def _scattered_cost(call: Call) -> float:
    table, updates = call.output_dims(), call.dims(0)
    if table is None or updates is None or call[1].shape is None:
        return cost.NEVER
    return 4 * cost.NODE + cost.copy(math.prod(table)) + _SCATTER * math.prod(updates)


@lowering("GatherGrad", _scattered_cost)
def scattered(b: Builder, call: Call) -> ir.Value:
    """ScatterElements along the gathered axis adds dY onto zeros, in one thread and so in one order.

    30,522 x 256, 256 rows: 0.8; 1,000 x 128: 7; 512 x 256, 1,024 rows: 24, of a training step of BERT-mini 1 %.
    """
    axis, shape = call.attr("axis"), call.output.shape
    assert shape is not None
    updates = call[0]
    if call[1].shape is None or len(call[1].shape) != 1:
        after = list(shape)[axis + 1 :]
        known = all(isinstance(size, int) for size in after)
        rest = after if known else [b.Slice(call[2], b.ints([axis + 1]), b.ints([len(shape)]))]
        updates = b.Reshape(updates, b.dims(*[0] * axis, -1, *rest))
    line = b.ints([1] * axis + [-1] + [1] * (len(shape) - axis - 1))
    indices = b.Reshape(b.Cast(call[1], to=ir.DataType.INT64), line)
    zeros = b.zeros(call[2], call[0].dtype or ir.DataType.FLOAT, shape)
    return b.ScatterElements(zeros, b.Expand(indices, b.Shape(updates)), updates, axis=axis, reduction="add")


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
