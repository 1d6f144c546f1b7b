"""Pooling over regions of interest."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.bilinear import Corner, Line, corners, scattered, table, untable
from gradcut.rules.registry import rule
from gradcut.rules.sizes import Size, counting, size, times, value

INT64 = ir.DataType.INT64


@rule("RoiAlign", "X rois")
def roi_align(op: Adjoint) -> Cotangents:
    """Each bin is the mean of samples read bilinearly; He et al. 2017. Mode max: the largest weighted corner of them.

    That is what the ONNX page's own program and ONNX Runtime take the maximum of; the first of equal ones counts.
    The number of samples of sampling_ratio 0 is a constant of the region; their places move with rois.
    """
    b, X = op.b, op["X"]
    images, channels = size(b, X, 0), size(b, X, 1)
    rows = table(b, op.wide(X), images, channels)
    lines = _Samples.of(op, 0), _Samples.of(op, 1)
    four = _corners(op, lines)
    found = [b.op("Gather", rows, corner.row, axis=0, dtype=rows.dtype) for corner in four]
    shares = (_mean if op.attr("mode", "avg") == "avg" else _largest)(op, lines, four, found)
    if op.wants("X"):
        parts = [(corner.row, share * corner.weight) for corner, share in zip(four, shares, strict=True)]
        yield "X", b.Cast(untable(b, scattered(b, parts, rows), X, images, channels), to=X.dtype)
    if op.wants("rois"):
        dots = [b.ReduceSum(one * share, b.ints([3]), keepdims=1) for one, share in zip(found, shares, strict=True)]
        yield "rois", b.Cast(_regions(op, lines, four, dots), to=op["rois"].dtype)


@dataclass(frozen=True)
class _Samples:
    """Where bins are read along one axis, each [R, bins, samples] or broadcast to it.

    Attributes:
        at: the coordinates. unit: how far into the region, 0 to 1. there: 1 for each sample that the region has.
        count: samples of a bin, [R, 1, 1]. limit: samples of the region that has most.
        moves: 1 where the length of the region counts, 0 where it was raised to 1; [R, 1, 1].
    """

    at: ir.Value
    unit: ir.Value
    there: ir.Value
    count: ir.Value
    limit: Size
    moves: ir.Value | None

    @classmethod
    def of(cls, op: Adjoint, axis: int) -> _Samples:
        b, rois, bins = op.b, op.wide(op["rois"]), _bins(op)[axis]
        kind, aligned = rois.dtype, op.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
        scaled = rois * op.attr("spatial_scale", 1.0) - (0.5 if aligned else 0.0)
        start, end = (_column(b, scaled, c) for c in (1 - axis, 3 - axis))
        raw = end - start
        length = raw if aligned else b.Max(raw, b.scalar_like(1.0, raw))
        each = length / float(bins)
        count, limit = _count(op, each)
        samples = b.Cast(counting(b, limit), to=kind)
        there = b.Cast(b.Less(samples, count), to=kind)
        inner = (samples + 0.5) * each / b.Max(count, b.scalar_like(1.0, count))
        first = b.constant([[[float(i)] for i in range(bins)]], kind)
        within = (samples + 0.5) / b.Max(count, b.scalar_like(1.0, count))
        unit = (first + within) / float(bins)
        moves = None if aligned else b.Cast(b.GreaterOrEqual(raw, 1.0), to=kind)
        return cls(start + first * each + inner, unit, there, count, limit, moves)

    def line(self, op: Adjoint, axis: int) -> Line:
        """The places beside the coordinates; beyond the image by more than 1 they weigh nothing."""
        b, at, kind = op.b, self.at, self.at.dtype
        last = value(b, size(b, op["X"], 2 + axis)) - 1
        end = b.Cast(last, to=kind)
        inside = b.And(b.GreaterOrEqual(at, -1.0), b.LessOrEqual(at, end + 1.0))
        weighs = b.Cast(inside, to=kind) * self.there
        clipped = b.Max(at, b.scalar_like(0.0, at))
        below = b.Min(b.Floor(clipped), end)
        between = b.Cast(b.Less(below, end), to=kind)
        far = (clipped - below) * between
        low = b.Cast(below, to=INT64)
        high = b.Min(low + 1, last)
        slope = weighs * between * b.Cast(b.GreaterOrEqual(at, 0.0), to=kind)
        return Line((low, high), ((1.0 - far) * weighs, far * weighs), (-slope, slope))


def _column(b: Builder, x: ir.Value, column: int) -> ir.Value:
    """One column of [R, 4] as [R, 1, 1]."""
    return b.Unsqueeze(
        b.op("Slice", x, b.ints([column]), b.ints([column + 1]), b.ints([1]), dtype=x.dtype), b.ints([2])
    )


def _bins(op: Adjoint) -> tuple[int, int]:
    return op.attr("output_height", 1), op.attr("output_width", 1)


def _count(op: Adjoint, each: ir.Value) -> tuple[ir.Value, Size]:
    """Samples of a bin of that length, [R, 1, 1], and the largest such number."""
    b, said = op.b, op.attr("sampling_ratio", 0)
    if said > 0:
        return b.constant([[[float(said)]]], each.dtype), said
    count = b.op("Ceil", each, dtype=each.dtype)
    numbers = b.Cast(b.Reshape(count, b.ints([-1])), to=INT64)
    return count, b.op("ReduceMax", b.op("Concat", numbers, b.ints([1]), axis=0), keepdims=1, shape=ir.Shape([1]))


def _corners(op: Adjoint, lines: tuple[_Samples, _Samples]) -> list[Corner]:
    """The four rows of each sample, in the table of all images, [R, bins, samples]; the rest [R, bins, samples, 1]."""
    b = op.b
    down, across = (b.dims(-1, bins, 1, one.limit, 1) if axis == 0 else b.dims(-1, 1, bins, 1, one.limit)
                    for axis, (bins, one) in enumerate(zip(_bins(op), lines, strict=True)))  # fmt: skip
    y, x = lines[0].line(op, 0).reshaped(b, down), lines[1].line(op, 1).reshaped(b, across)
    height, width = size(b, op["X"], 2), size(b, op["X"], 3)
    first = b.Cast(op["batch_indices"], to=INT64) * value(b, times(b, height, width))
    flat = b.dims(-1, _bins(op)[0] * _bins(op)[1], times(b, lines[0].limit, lines[1].limit))
    deep = b.op("Concat", flat, b.ints([1]), axis=0)
    return [
        Corner(
            b.Add(b.Reshape(corner.row, flat), b.Reshape(first, b.ints([-1, 1, 1]))),
            *(b.Reshape(part, deep) for part in (corner.weight, corner.dy, corner.dx)),
        )
        for corner in corners(b, y, x, width)
    ]


def _cotangent(op: Adjoint) -> ir.Value:
    """dY as [R, bins, 1, C]."""
    b, bins = op.b, _bins(op)
    flat = b.Reshape(op.wide(op.dY), b.dims(0, 0, bins[0] * bins[1]))
    return b.Unsqueeze(b.Transpose(flat, perm=[0, 2, 1]), b.ints([2]))


def _mean(op: Adjoint, lines: tuple[_Samples, _Samples], four: list[Corner], found: list[ir.Value]) -> list[ir.Value]:
    """The cotangent over the number of samples, the same for every corner."""
    b = op.b
    count = lines[0].count * lines[1].count
    return [_cotangent(op) / b.Unsqueeze(b.Max(count, b.scalar_like(1.0, count)), b.ints([3]))] * len(four)


def _largest(
    op: Adjoint, lines: tuple[_Samples, _Samples], four: list[Corner], found: list[ir.Value]
) -> list[ir.Value]:
    """All of the cotangent for the first largest weighted corner of a bin and channel."""
    b, dY = op.b, _cotangent(op)
    samples = times(b, lines[0].limit, lines[1].limit)
    down, across = (b.Reshape(one.there, b.dims(-1, one.limit, 1) if axis == 0 else b.dims(-1, 1, one.limit))
                    for axis, one in enumerate(lines))  # fmt: skip
    there = b.Reshape(b.Greater(down * across, 0.0), b.dims(-1, 1, samples, 1))
    lowest = b.scalar_like(float("-inf"), dY)
    products = [b.Where(there, one * corner.weight, lowest) for one, corner in zip(found, four, strict=True)]
    best = b.ArgMax(b.op("Concat", *products, axis=2, dtype=dY.dtype), axis=2, keepdims=1)
    shares = []
    for number in range(len(four)):
        places = b.Reshape(b.Add(counting(b, samples), value(b, times(b, samples, number))), b.ints([-1, 1]))
        shares.append(b.Cast(b.Equal(places, best), to=dY.dtype) * dY)
    return shares


def _regions(op: Adjoint, lines: tuple[_Samples, _Samples], four: list[Corner], dots: list[ir.Value]) -> ir.Value:
    """drois [R, 4]: the coordinates' cotangents, through the start and the length of each region."""
    b, bins = op.b, _bins(op)
    full = b.dims(-1, *bins, lines[0].limit, lines[1].limit)
    starts, ends = [], []
    for axis, samples in enumerate(lines):
        slopes = [corner.dy if axis == 0 else corner.dx for corner in four]
        total = b.Sum(*(dot * slope for dot, slope in zip(dots, slopes, strict=True)))
        others = b.ints([2, 4] if axis == 0 else [1, 3])
        each = b.ReduceSum(b.Reshape(total, full), others, keepdims=0)
        length = b.ReduceSum(each * samples.unit, b.ints([2]), keepdims=0)
        length = b.ReduceSum(length, b.ints([1]), keepdims=1)
        if samples.moves is not None:
            length = length * b.Reshape(samples.moves, b.ints([-1, 1]))
        start = b.Reshape(b.ReduceSum(each, b.ints([1, 2]), keepdims=0), b.ints([-1, 1]))
        starts.append(start - length)
        ends.append(length)
    columns = b.op("Concat", starts[1], starts[0], ends[1], ends[0], axis=1, dtype=dots[0].dtype)
    return b.Mul(columns, op.attr("spatial_scale", 1.0))


@rule("MaxRoiPool", "X")
def max_roi_pool(op: Adjoint) -> Cotangents:
    """The first maximum of each bin gets its cotangent; Girshick 2015. The bins' borders are rounded: rois is constant.

    First the largest of each row within the columns of a bin, then the largest of those within its rows.
    """
    b, X, rois = op.b, op["X"], op.wide(op["rois"])
    height, width = (size(b, X, axis) for axis in (2, 3))
    batch = b.Cast(b.Slice(rois, b.ints([0]), b.ints([1]), b.ints([1])), to=INT64)
    seen = b.op("Gather", op.wide(X), b.Reshape(batch, b.ints([-1])), axis=0, dtype=op.wide(X).dtype)  # [R, C, H, W]
    lowest = b.scalar_like(float("-inf"), seen)
    down, across = _within(op, 0, height), _within(op, 1, width)
    wide = b.Where(b.Unsqueeze(across, b.ints([1, 2])), b.Unsqueeze(seen, b.ints([3])), lowest)
    column = b.ArgMax(wide, axis=4, keepdims=0)  # [R, C, H, pw]
    rows = b.Transpose(b.ReduceMax(wide, b.ints([4]), keepdims=0), perm=[0, 1, 3, 2])
    tall = b.Where(b.Unsqueeze(down, b.ints([1, 3])), b.Unsqueeze(rows, b.ints([2])), lowest)
    row = b.ArgMax(tall, axis=4, keepdims=0)  # [R, C, ph, pw]
    found = b.op("Greater", b.ReduceMax(tall, b.ints([4]), keepdims=0), lowest)
    place = b.Add(b.Mul(row, value(b, width)), b.GatherElements(column, row, axis=2))
    plane = b.Mul(batch, value(b, size(b, X, 1))) + counting(b, size(b, X, 1))  # [R, C]
    first = b.Mul(b.Unsqueeze(plane, b.ints([2, 3])), value(b, times(b, height, width)))
    dY = op.wide(op.dY)
    given = b.Where(found, dY, b.scalar_like(0.0, dY))
    indices = b.Add(first, place)
    added = b.op("MaxPoolGrad", given, indices, b.shape_of(X), domain="gradcut", dtype=dY.dtype, shape=X.shape)
    yield "X", b.Cast(added, to=X.dtype)


def _within(op: Adjoint, axis: int, room: Size) -> ir.Value:
    """[R, bins, places]: whether a bin covers a place along an axis; borders as ONNX Runtime rounds them."""
    b, rois, bins = op.b, op.wide(op["rois"]), op.attr("pooled_shape")[axis]
    kind, edges = rois.dtype, []
    for column in (2 - axis, 4 - axis):
        scaled = _column(b, rois, column) * op.attr("spatial_scale", 1.0)
        edges.append(b.Sign(scaled) * b.Floor(b.Abs(scaled) + 0.5))  # halves away from zero
    start, end = edges
    length = end - start + 1.0
    each = b.Max(length, b.scalar_like(1.0, length)) / float(bins)
    first = b.constant([[[float(i)] for i in range(bins)]], kind)
    low, high = start + b.Floor(first * each), start + b.Ceil((first + 1.0) * each)
    places = b.Cast(counting(b, room), to=kind)
    return b.And(b.GreaterOrEqual(places, low), b.Less(places, high))
