"""Adjoints of convolution. Y = Conv(X, W): X [N, C, *D], W [M, C/group, *K], Y [N, M, *O].

Pads are explicit and whole (begin then end); a rule resolves auto_pad before it builds one of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir import AttributeType

from gradcut.dialect.core import dialect_op
from gradcut.dialect.shape import spatial_axes
from gradcut.ops import AttrRef, Builder

Ints = Sequence[int] | AttrRef
INT, INTS = AttributeType.INT, AttributeType.INTS


@dialect_op("dY W shape", strides=INTS, pads=INTS, dilations=INTS, group=INT)
def conv_input_grad(
    b: Builder,
    dY: ir.Value,
    W: ir.Value,
    shape: ir.Value,
    *,
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    group: int | AttrRef,
) -> ir.Value:
    """dX: the transposed convolution of dY with W without pads, cut and filled up to the `shape` of X.

    Rows of X that no window reaches (a stride that does not divide) are the zeros that fill up.
    """
    axes = spatial_axes(b, strides)
    full = b.ConvTranspose(dY, W, strides=strides, dilations=dilations, group=group)
    two = b.ints([2])
    size = b.Slice(shape, two, b.ints([2**62]), b.ints([0]))
    begins = b.Slice(b.attribute_ints(pads), b.ints([0]), b.Shape(size), b.ints([0]))
    cut = b.Slice(full, begins, begins + size, axes)
    short = shape - b.Shape(cut)
    return b.Pad(cut, b.Concat(b.Mul(short, b.ints([0])), short, axis=0))


@dialect_op("dY X shape", strides=INTS, pads=INTS, dilations=INTS, group=INT)
def conv_weight_grad(
    b: Builder,
    dY: ir.Value,
    X: ir.Value,
    shape: ir.Value,
    *,
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    group: int | AttrRef,
) -> ir.Value:
    """dW, of the `shape` of W: X convolved with dY, batch and channels swapped, stride and dilation swapped.

    Groups: X becomes [C/group, group * N, *D], so that each group's images are its input channels.
    """
    axes = spatial_axes(b, strides)
    data = swap_batch(b, X, group)
    kernel = swap_batch(b, dY, 1)
    full = b.Conv(data, kernel, strides=dilations, dilations=strides, pads=pads, group=group)
    size = b.Slice(shape, b.ints([2]), b.ints([2**62]), b.ints([0]))
    cut = b.Slice(full, b.Mul(size, b.ints([0])), size, axes)
    return swap_batch(b, cut, 1)


def swap_batch(b: Builder, x: ir.Value, group: int | AttrRef) -> ir.Value:
    """[N, group * C, *D] -> [C, group * N, *D]."""
    if group == 1 and x.shape is not None:
        return b.Transpose(x, perm=[1, 0, *range(2, len(x.shape))])
    groups = _group_count(b, group)
    wide = b.Shape(x)
    first, second = b.ints([0]), b.ints([1])
    n = b.Slice(wide, first, second, b.ints([0]))
    c = b.Slice(wide, second, b.ints([2]), b.ints([0])) / groups
    rest = b.Slice(wide, b.ints([2]), b.ints([2**62]), b.ints([0]))
    split = b.Reshape(x, b.Concat(n, groups, c, b.ints([-1]), axis=0))
    swapped = b.Transpose(split, perm=[2, 1, 0, 3])
    return b.Reshape(swapped, b.Concat(c, groups * n, rest, axis=0))


def _group_count(b: Builder, group: int | AttrRef) -> ir.Value:
    if not isinstance(group, AttrRef):
        return b.ints([group])
    return b.Reshape(b.op("Constant", value_int=group, dtype=ir.DataType.INT64), b.ints([1]))
