"""Blocks of columns, put together to images."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule
from gradcut.rules.window import pad_spatial


@rule("Col2Im", "input")
def col2im(op: Adjoint) -> Cotangents:
    """Each element of a column reads the cotangent at the place it was added to: im2col of dY.

    input [N, C * K, L]: along each spatial axis dY is gathered as [k, l], then the k are brought before the l.

    Not covered: dilations of other than two axes, where ONNX Runtime adds columns up at other places than ONNX says.
    """
    b, columns, dY = op.b, op["input"], op.dY
    count = _spatial_count(op)
    if count != 2 and _is_dilated(op):
        op.refuse("dilations of other than two axes, of which ONNX Runtime makes another image than ONNX says")
    pads = op.attr("pads") or [0] * (2 * count)
    read = pad_spatial(b, dY, b.ints(pads[:count]), b.ints(pads[count:]))
    for axis in range(count):
        read = b.Gather(read, _places(op, axis, count), axis=2 + 2 * axis)
    order = [0, 1, *range(2, 2 + 2 * count, 2), *range(3, 2 + 2 * count, 2)]
    yield "input", b.op("Reshape", b.Transpose(read, perm=order), b.shape_of(columns), shape=columns.shape)


def _spatial_count(op: Adjoint) -> int:
    """How many spatial axes the image has."""
    for attribute, each in (("strides", 1), ("dilations", 1), ("pads", 2)):
        if op.attr(attribute) is not None:
            return len(op.attr(attribute)) // each
    for operand in ("block_shape", "image_shape"):
        known = op.static(operand) if op[operand].shape is not None else None
        if known is not None:
            return known[0]
    shape = op.out().shape
    if shape is None:
        op.refuse("the rank of its image is known only at run time")
    return len(shape) - 2


def _is_dilated(op: Adjoint) -> bool:
    dilations = op.attr("dilations") or ()
    block = op.constant("block_shape")
    return any(dilation > 1 and (block is None or block[axis] > 1) for axis, dilation in enumerate(dilations))


def _places(op: Adjoint, axis: int, count: int) -> ir.Value:
    """[k, l] -> the place along an axis of the padded image that element k of block l is added to."""
    b, kind = op.b, ir.DataType.INT64
    pads, dilation = op.attr("pads") or [0] * (2 * count), (op.attr("dilations") or [1] * count)[axis]
    stride, room = (op.attr("strides") or [1] * count)[axis], pads[axis] + pads[axis + count]
    image, block = op.constant("image_shape"), op.constant("block_shape")
    if image is not None and block is not None:
        blocks = (int(image[axis]) + room - dilation * (int(block[axis]) - 1) - 1) // stride + 1
        return b.constant(np.arange(block[axis])[:, None] * dilation + np.arange(blocks) * stride, kind)
    size, k = (b.Gather(op[name], b.constant(axis, kind), axis=0) for name in ("image_shape", "block_shape"))
    size.shape = k.shape = ir.Shape([])
    last = size + (room - 1) - (k - 1) * dilation
    zero, one = b.constant(0, kind), b.constant(1, kind)
    within = b.Unsqueeze(b.Range(zero, k, one, dtype=kind) * dilation, b.ints([1]))
    return b.Add(within, b.Range(zero, last / stride + 1, one, dtype=kind) * stride)
