"""A product with a weight that is stored in few bits: gradients pass by its activations.

Operands and attributes: docs/ContribOperators.md of onnxruntime. The integers have no derivative; what they stand for
is made of them in the backward, where a kernel of the runtime multiplies by them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint
from gradcut.rules.compose import composed
from gradcut.rules.contrib import MICROSOFT

_UINT8 = ir.DataType.UINT8


@composed(
    "MatMulNBits",
    "A scales zero_points bias",
    operands="A B scales zero_points g_idx bias",
    weights="bias",
    domain=MICROSOFT,
)
def matmul_nbits(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = A W^T + bias, W [N, K] = (B - zero_points) scales, of integers of 2, 4 or 8 bits in blocks along K.

    Not covered: g_idx, weights that the runtime packed before.
    """
    b, A, bias = op.b, op["A"], op.get("bias")
    if op.get("g_idx") is not None or op.attr("weight_prepacked", 0):
        op.refuse("g_idx or weight_prepacked has no rule")
    W = b.Cast(_weight(op), to=A.dtype)
    product = b.op("MatMul", A, b.transpose(W, 2), dtype=A.dtype, shape=op.node.outputs[0].shape)
    return [product if bias is None else b.op("Add", product, bias, dtype=A.dtype, shape=product.shape)]


def _weight(op: Adjoint) -> ir.Value:
    """The weight that the integers stand for, [N, K]."""
    b, bits, size = op.b, op.attr("bits", 4), op.attr("block_size")
    N, K = op.attr("N"), op.attr("K")
    blocks, scales, zero = math.ceil(K / size), op["scales"], op.get("zero_points")
    numbers = b.Cast(_unpacked(op, op["B"], (N, blocks, size)), to=scales.dtype)
    by_block = ir.Shape([N, blocks, 1])
    if zero is None:
        offset = b.scalar_like(2.0 ** (bits - 1), scales)
    elif zero.dtype == _UINT8:
        whole = math.ceil(blocks * bits / 8) * 8 // bits
        rows = b.op("Slice", _unpacked(op, zero, (N, whole)), *map(b.ints, ([0], [blocks], [1])), dtype=_UINT8)
        offset = b.Cast(b.op("Reshape", rows, b.ints([N, blocks, 1]), dtype=_UINT8, shape=by_block), to=scales.dtype)
    else:
        offset = b.op("Reshape", zero, b.ints([N, blocks, 1]), dtype=zero.dtype, shape=by_block)
    factors = b.op("Reshape", scales, b.ints([N, blocks, 1]), dtype=scales.dtype, shape=by_block)
    W = b.op("Reshape", (numbers - offset) * factors, b.ints([N, -1]), shape=ir.Shape([N, blocks * size]))
    return W if blocks * size == K else b.op("Slice", W, *map(b.ints, ([0], [K], [1])), shape=ir.Shape([N, K]))


def _unpacked(op: Adjoint, stored: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Integers of few bits, each in a byte of its own; in a stored byte the lowest bits come first."""
    b, bits = op.b, op.attr("bits", 4)
    if bits != 8:
        bytes_ = b.op("Reshape", stored, b.ints([-1, 1]), dtype=_UINT8, shape=ir.Shape([None, 1]))
        shifts = b.constant(np.arange(0, 8, bits, dtype=np.uint8))
        apart = b.op("BitShift", bytes_, shifts, direction="RIGHT", dtype=_UINT8)
        stored = b.op("BitwiseAnd", apart, b.constant(2**bits - 1, _UINT8), dtype=_UINT8)
    return b.op("Reshape", stored, b.ints(shape), dtype=_UINT8, shape=ir.Shape(shape))
