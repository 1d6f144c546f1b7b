"""Deformable convolution."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.bilinear import Corner, Line, corners, scattered, table, untable
from gradcut.rules.registry import rule
from gradcut.rules.sizes import Size, counting, over, size, times, value


@rule("DeformConv", "X W offset B mask", weights="W B")
def deform_conv(op: Adjoint) -> Cotangents:
    """Y = W columns + B; a column is mask times X read bilinearly beside its place; Dai et al. 2017, Zhu et al. 2018.

    With dcolumns = W' dY: dX adds mask dcolumns up at the four places by their weights, doffset takes the weights'
    slopes for them, dmask is the sum over channels of dcolumns times what was read.

    Not covered: images of other than two axes.
    """
    b = op.b
    if op.rank("X") != 4:
        op.refuse(f"X has {op.rank('X') - 2} spatial axes, and only 2 are covered")
    if op.wants("B"):
        yield "B", b.Cast(b.ReduceSum(op.wide(op.dY), b.ints([0, 2, 3]), keepdims=0), to=op["B"].dtype)
    if not op.wants("X", "W", "offset", "mask"):
        return
    read = _Reading.of(op)
    if op.wants("W"):
        yield "W", b.Cast(_weight(op, read), to=op["W"].dtype)
    if not op.wants("X", "offset", "mask"):
        return
    columns = _column_cotangent(op, read)
    if op.wants("X"):
        yield "X", b.Cast(_image(op, read, columns), to=op["X"].dtype)
    if not op.wants("offset", "mask"):
        return
    dots = [b.ReduceSum(columns * found, b.ints([2]), keepdims=0) for found in read.found(op)]
    if op.wants("offset"):
        yield "offset", b.Cast(_offset(op, read, dots), to=op["offset"].dtype)
    if op.wants("mask"):
        total = b.Sum(*(dot * corner.weight for dot, corner in zip(dots, read.corners, strict=True)))
        mask = b.op("Reshape", total, b.shape_of(op["mask"]), shape=op["mask"].shape)
        yield "mask", b.Cast(mask, to=op["mask"].dtype)


@dataclass(frozen=True)
class _Reading:
    """Where columns read X. G = N * offset_group images of C / offset_group channels, R = taps * places rows each.

    Attributes:
        images: G. channels: of each. taps, places: K and O. corners: with row numbers in the table, [G, R].
        mask: [G, R, 1], None for one of ones.
    """

    images: Size
    channels: Size
    taps: Size
    places: Size
    rows: ir.Value
    corners: list[Corner]
    mask: ir.Value | None

    @classmethod
    def of(cls, op: Adjoint) -> _Reading:
        b, X, W, parts = op.b, op["X"], op["W"], op.attr("offset_group", 1)
        images, channels = times(b, size(b, X, 0), parts), over(b, size(b, X, 1), parts)
        taps = times(b, size(b, W, 2), size(b, W, 3))
        places = times(b, size(b, op.dY, 2), size(b, op.dY, 3))
        height, width = size(b, X, 2), size(b, X, 3)
        y, x = (_line(op, axis, images) for axis in (0, 1))
        first = b.Mul(b.Reshape(counting(b, images), b.ints([-1, 1])), value(b, times(b, height, width)))
        found = [
            Corner(b.Add(corner.row, first), corner.weight, corner.dy, corner.dx) for corner in corners(b, y, x, width)
        ]
        mask = op.get("mask")
        if mask is not None:
            mask = b.Reshape(op.wide(mask), b.dims(images, -1, 1))
        return cls(images, channels, taps, places, table(b, op.wide(X), images, channels), found, mask)

    def found(self, op: Adjoint) -> list[ir.Value]:
        """The rows of each corner, [G, R, channels]."""
        return [op.b.op("Gather", self.rows, corner.row, axis=0, dtype=self.rows.dtype) for corner in self.corners]

    def masked(self, x: ir.Value) -> ir.Value:
        return x if self.mask is None else x * self.mask


def _line(op: Adjoint, axis: int, images: Size) -> Line:
    """The coordinate [G, R] along an axis, and the places beside it; those outside the image weigh nothing."""
    b, offset, W = op.b, op.wide(op["offset"]), op["W"]
    kernel, out = [size(b, W, i) for i in (2, 3)], [size(b, op.dY, i) for i in (2, 3)]
    stride, dilation = (list(op.attr(name) or (1, 1))[axis] for name in ("strides", "dilations"))
    moved = b.Reshape(offset, b.dims(images, *kernel, 2, *out))
    moved = b.op("Gather", moved, b.constant(axis, ir.DataType.INT64), axis=3, dtype=offset.dtype)
    taps = b.Unsqueeze(counting(b, kernel[axis]) * dilation - list(op.attr("pads") or (0, 0))[axis], b.ints([1]))
    fixed = b.Add(taps, counting(b, out[axis]) * stride)
    fixed = b.Unsqueeze(b.Cast(fixed, to=offset.dtype), b.ints([1, 3] if axis == 0 else [0, 2]))
    at = b.Reshape(b.Add(moved, fixed), b.dims(images, -1))
    low = b.Floor(at)
    far = at - low
    last = value(b, size(b, op["X"], 2 + axis)) - 1
    places = [b.Cast(low, to=ir.DataType.INT64) + step for step in (0, 1)]
    clipped = [b.Max(b.Min(place, last), b.constant(0, ir.DataType.INT64)) for place in places]
    inside = [b.Cast(b.Equal(place, clip), to=offset.dtype) for place, clip in zip(places, clipped, strict=True)]
    weights = (1.0 - far) * inside[0], far * inside[1]
    return Line((clipped[0], clipped[1]), weights, (-inside[0], inside[1]))


def _by_group(op: Adjoint) -> tuple[ir.Value, ir.Value]:
    """dY [N, groups, M / groups, O] and W [groups, M / groups, C / groups * K]."""
    b, W, groups = op.b, op["W"], op.attr("group", 1)
    each = over(b, size(b, W, 0), groups)
    dY = b.Reshape(op.wide(op.dY), b.dims(size(b, op.dY, 0), groups, each, -1))
    return dY, b.Reshape(op.wide(W), b.dims(groups, each, -1))


def _column_cotangent(op: Adjoint, read: _Reading) -> ir.Value:
    """W' dY as [G, R, channels]."""
    b = op.b
    dY, W = _by_group(op)
    columns = b.MatMul(b.Transpose(W, perm=[0, 2, 1]), dY)
    rows = times(b, read.taps, read.places)
    return b.Transpose(b.Reshape(columns, b.dims(read.images, read.channels, rows)), perm=[0, 2, 1])


def _weight(op: Adjoint, read: _Reading) -> ir.Value:
    """dY columns', summed over the images."""
    b, groups = op.b, op.attr("group", 1)
    parts = [found * b.Unsqueeze(corner.weight, b.ints([2]))
             for found, corner in zip(read.found(op), read.corners, strict=True)]  # fmt: skip
    columns = b.Transpose(read.masked(b.Sum(*parts)), perm=[0, 2, 1])
    dY, _ = _by_group(op)
    inner = b.Reshape(columns, b.dims(size(b, op.dY, 0), groups, -1, read.places))
    each = b.MatMul(dY, b.Transpose(inner, perm=[0, 1, 3, 2]))
    total = b.ReduceSum(each, b.ints([0]), keepdims=0)
    return b.op("Reshape", total, b.shape_of(op["W"]), dtype=dY.dtype, shape=op["W"].shape)


def _image(op: Adjoint, read: _Reading, columns: ir.Value) -> ir.Value:
    b, each = op.b, read.masked(columns)
    parts = [(corner.row, each * b.Unsqueeze(corner.weight, b.ints([2]))) for corner in read.corners]
    return untable(b, scattered(b, parts, read.rows), op["X"], read.images, read.channels)


def _offset(op: Adjoint, read: _Reading, dots: list[ir.Value]) -> ir.Value:
    """The slopes by y and x, in the order of the operand: [N, offset_group * K * 2, *O]."""
    b, offset, two = op.b, op["offset"], []
    for slopes in ([corner.dy for corner in read.corners], [corner.dx for corner in read.corners]):
        total = b.Sum(*(dot * slope for dot, slope in zip(dots, slopes, strict=True)))
        if read.mask is not None:
            total = total * b.Squeeze(read.mask, b.ints([2]))
        two.append(b.Reshape(total, b.dims(read.images, read.taps, 1, read.places)))
    both = b.op("Concat", *two, axis=2, dtype=two[0].dtype)
    return b.op("Reshape", both, b.shape_of(offset), shape=offset.shape)
