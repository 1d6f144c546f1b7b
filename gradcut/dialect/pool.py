"""Adjoints of pooling."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir import AttributeType

from gradcut.dialect.core import dialect_op
from gradcut.dialect.shape import _zeros_like, spatial_axes
from gradcut.ops import AttrRef, Builder

Ints = Sequence[int] | AttrRef


@dialect_op("dY Indices shape", carried="kernel_shape strides pads dilations")
def max_pool_grad(b: Builder, dY: ir.Value, Indices: ir.Value, shape: ir.Value) -> ir.Value:
    """dX: each cotangent added at the place its maximum came from. Indices are flat over the whole of X."""
    flat = b.ints([-1])
    zeros = _zeros_like(b, dY, b.Reshape(b.ReduceProd(shape, keepdims=0), b.ints([1])))
    added = b.ScatterElements(zeros, b.Reshape(Indices, flat), b.Reshape(dY, flat), axis=0, reduction="add")
    return b.Reshape(added, shape)


@dialect_op(
    "dY shape",
    kernel_shape=AttributeType.INTS,
    strides=AttributeType.INTS,
    pads=AttributeType.INTS,
    dilations=AttributeType.INTS,
)
def average_pool_grad(
    b: Builder,
    dY: ir.Value,
    shape: ir.Value,
    *,
    kernel_shape: Ints,
    strides: Ints,
    pads: Ints,
    dilations: Ints,
) -> ir.Value:
    """dX of a pool whose cotangent is already divided by its window's count: dY spread over each window.

    The channels are taken into the batch, so that spreading is a transposed convolution with a kernel of ones.
    """
    size = b.Slice(shape, b.ints([2]), b.ints([2**62]), b.ints([0]))
    ones_shape = b.Concat(b.ints([1, 1]), b.attribute_ints(kernel_shape), axis=0)
    kernel = b.Expand(b.scalar_like(1.0, dY), ones_shape)
    single = b.Concat(b.ints([-1, 1]), b.Slice(b.Shape(dY), b.ints([2]), b.ints([2**62]), b.ints([0])), axis=0)
    full = b.ConvTranspose(b.Reshape(dY, single), kernel, strides=strides, dilations=dilations)
    begins = b.Slice(b.attribute_ints(pads), b.ints([0]), b.Shape(size), b.ints([0]))
    cut = b.Slice(full, begins, begins + size, spatial_axes(b, strides))
    want = b.Concat(b.Slice(b.Shape(cut), b.ints([0]), b.ints([2]), b.ints([0])), size, axis=0)
    short = want - b.Shape(cut)
    filled = b.Pad(cut, b.Concat(b.Mul(short, b.ints([0])), short, axis=0))
    return b.Reshape(filled, shape)
