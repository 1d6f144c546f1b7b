"""Elementwise ops between an image and one number a channel.

The runtime broadcasts in runs of one channel of one image. Where an image is small, the numbers are repeated over it
first, and the runs are whole examples: [16, 960, 2, 2] by [960, 1, 1] a fourth of the time, from 8x8 on the same.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, rewriting
from gradcut.ops import Builder

_RUN = 7.5  # per run of a broadcast
_PASS = 0.15  # per element of an elementwise op
_REPEAT = 0.8  # per element that Expand writes


def _vector(call: Call) -> int | None:
    """Which operand holds one number a channel, [C, 1, ...] against [N, C, *D]; it changes in a run."""
    for index in (0, 1):
        mine, other = call[index].shape, call[1 - index].shape
        if mine is None or other is None or len(other) < 3 or call.static(1 - index, 1) is None:
            continue
        dims = list(mine)[-len(other) + 1 :]
        leading = list(mine)[: len(mine) - len(dims)]
        if dims == [other[1], *[1] * (len(other) - 2)] and leading in ([], [1]) and not call.is_constant(index):
            return index
    return None


def _sizes(call: Call) -> tuple[int, int]:
    """Elements of an example, and runs in all."""
    index = _vector(call)
    dims = [1, 1] if index is None else call.dims(1 - index) or [1, 1]
    return math.prod(dims[1:]), dims[0] * dims[1]


def _repeated_cost(call: Call) -> float:
    if call.output.dtype != ir.DataType.FLOAT or _vector(call) is None:
        return cost.NEVER
    example, _ = _sizes(call)
    return 2 * cost.NODE + _REPEAT * example


def _kernel_cost(call: Call) -> float:
    return cost.NODE + _RUN * _sizes(call)[1]


def repeated(b: Builder, call: Call) -> tuple[ir.Value]:
    """The vector expanded to [C, *D]."""
    index = _vector(call)
    assert index is not None
    shape = call.static(1 - index, 1) or []
    operands = [call[0], call[1]]
    operands[index] = b.Expand(call[index], b.ints(shape))
    return (b.op(call.node.op_type, *operands, shape=call.output.shape),)


for _op_type in ("Add", "Sub", "Mul", "Div"):
    rewriting(_op_type, _repeated_cost, _kernel_cost)(repeated)
