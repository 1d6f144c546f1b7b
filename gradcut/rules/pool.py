"""Pooling."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.dims import static_dims
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule
from gradcut.rules.sizes import Size, size, times
from gradcut.rules.window import LatePads, Window, padded, spatial_sizes, unpadded, window_attributes, windows


@rule("MaxPool", "X")
def max_pool(op: Adjoint) -> Cotangents:
    """Each cotangent goes to the first maximum of its window (torch's convention), by the forward's Indices."""
    b, X = op.b, op["X"]
    indices = op.out("Indices")
    indices.dtype = ir.DataType.INT64
    indices.shape = op.out().shape
    dY = op.wide(op.dY)
    nothing = _nothing_read(op, indices) if _may_read_nothing(op) else None
    if op.attr("storage_order", 0):
        indices = _first_axis_slowest(op, indices)
    if nothing is not None:
        indices = b.Where(nothing, b.constant(0, ir.DataType.INT64), indices)
        dY = b.Where(nothing, b.scalar_like(0.0, dY), dY)
    window, late = ({}, None) if X.shape is None else window_attributes(op)
    window = {} if late is not None else window  # it is for lowerings alone
    added = b.op("MaxPoolGrad", dY, indices, b.shape_of(X), domain="gradcut", dtype=dY.dtype, shape=X.shape, **window)
    yield "X", b.Cast(added, to=X.dtype)


def _may_read_nothing(op: Adjoint) -> bool:
    """Whether all of a window may be padding: its places then lie apart."""
    pads = str(op.attr("auto_pad", "NOTSET")).startswith("SAME") or any(op.attr("pads") or ())
    return bool(pads) and max(op.attr("dilations") or (1,)) > 1


def _nothing_read(op: Adjoint, indices: ir.Value) -> ir.Value:
    """Windows without an element: ONNX Runtime gives them the place before the first one of their channel."""
    b, X, kind = op.b, op["X"], ir.DataType.INT64
    ones, places = b.ints([1] * (op.rank("X") - 2)), b.ReduceProd(spatial_sizes(b, X), keepdims=0)
    n, c = (b.op("Squeeze", b.dim(X, axis), shape=ir.Shape([])) for axis in (0, 1))
    channels = b.Range(b.constant(0, kind), n * c, b.constant(1, kind), dtype=kind) * places
    first = b.Reshape(channels, b.Concat(b.dim(X, 0), b.dim(X, 1), ones, axis=0))
    return b.Less(indices, first)


def _first_axis_slowest(op: Adjoint, indices: ir.Value) -> ir.Value:
    """Flat places whose first spatial axis is the fastest (storage_order 1), as those of storage_order 0."""
    b, X, count = op.b, op["X"], op.rank("X") - 2
    lengths = spatial_sizes(b, X)
    sizes = [b.Slice(lengths, b.ints([axis]), b.ints([axis + 1])) for axis in range(count)]
    places = b.op("ReduceProd", lengths, keepdims=1, shape=ir.Shape([1]))
    rest = b.Mod(indices, places)
    result = b.Div(indices - rest, places)
    for axis in range(count):
        result = b.Add(result * sizes[axis], b.Mod(rest, sizes[axis]))
        rest = rest / sizes[axis]
    return result


@rule("MaxUnpool", "X")
def max_unpool(op: Adjoint) -> Cotangents:
    """Each element reads the cotangent at the place it was put; of several put there the last stays.

    Places are flat over the whole of Y, as ONNX Runtime has it where output_shape makes Y larger too.
    """
    b, flat, kind = op.b, op.b.ints([-1]), ir.DataType.INT64
    places = b.Reshape(op["I"], flat)
    read = b.GatherElements(b.Reshape(op.dY, flat), places, axis=0)
    if not _without_overlap(op["I"].producer()):
        numbers = b.Range(b.constant(0, kind), b.Size(places), b.constant(1, kind), dtype=kind)
        table = b.zeros(b.Shape(b.Reshape(op.dY, flat)), kind)
        last = b.ScatterElements(table, places, numbers, axis=0, reduction="max")
        stays = b.Equal(b.GatherElements(last, places, axis=0), numbers)
        read = b.Where(stays, read, b.scalar_like(0.0, op.dY))
    yield "X", b.op("Reshape", read, b.shape_of(op["X"]), shape=op["X"].shape)


def _without_overlap(node: ir.Node | None) -> bool:
    """Whether a node is a MaxPool no two windows of which share a place."""
    if node is None or node.op_type != "MaxPool" or node.domain:
        return False
    kernel = node.attributes["kernel_shape"].as_ints()
    strides, dilations = (list(node.attributes[name].as_ints()) if name in node.attributes else [1] * len(kernel)
                          for name in ("strides", "dilations"))  # fmt: skip
    return all(s >= (k - 1) * d + 1 for k, s, d in zip(kernel, strides, dilations, strict=True))


@rule("AveragePool", "X")
def average_pool(op: Adjoint) -> Cotangents:
    """The cotangent over the window's count, spread over the window."""
    window, late = window_attributes(op)
    if _counts_all(op, window, late):
        divided = _over(op, _whole_count(op, window, late))
    else:
        divided = op.dY / _counts(op, window, late)
    yield "X", spread(op, divided, window, late)


def _counts_all(op: Adjoint, window: Window, late: LatePads) -> bool:
    """Whether every window lies within what counts."""
    same = str(op.attr("auto_pad", "NOTSET")).startswith("SAME")
    if op.attr("ceil_mode", 0) or (same and max(window["dilations"]) > 1):
        return False
    return bool(op.attr("count_include_pad", 0)) or not (any(window["pads"]) or late is not None)


def _whole_count(op: Adjoint, window: Window, late: LatePads) -> list[Size]:
    """The places of a window along each axis.

    ONNX Runtime has one window too where X and its pads are smaller than that by less than the stride: of their size.
    """
    b, X, sizes, count = op.b, op["X"], list[Size](), len(window["strides"])
    for axis, (k, stride, dilation) in enumerate(windows(window)):
        room, dim = window["pads"][axis] + window["pads"][axis + count], size(b, X, axis + 2)
        if stride == 1 or late is not None:
            sizes.append(k)
        elif isinstance(dim, int):
            sizes.append(min(k, -(-(dim + room) // dilation)))
        else:
            sizes.append(b.Min((dim + (room + dilation - 1)) / dilation, b.ints([k])))
    return sizes


def _over(op: Adjoint, sizes: list[Size]) -> ir.Value:
    """dY over a product of sizes."""
    total = times(op.b, *sizes)
    if isinstance(total, int):
        return op.b.Mul(op.dY, 1.0 / total)
    return op.b.Div(op.dY, op.b.Cast(total, to=op.dY.dtype))


def spread(op: Adjoint, value: ir.Value, window: Window, late: LatePads) -> ir.Value:
    """Each element of `value`, one a window, added at every place of X that its window reads."""
    b, X = op.b, padded(op, late)
    shape = b.shape_of(X)
    added = b.op("AveragePoolGrad", value, shape, domain="gradcut", dtype=value.dtype, shape=X.shape, **window)
    return unpadded(op, added, late)


def _counts(op: Adjoint, window: Window, late: LatePads) -> ir.Value:
    """How many elements each window counts, [*O]: a product over the axes.

    Windows reach over the end in ceil_mode, where nothing counts; pads count with count_include_pad.
    """
    lines = [_line_counts(op, window, axis, late) for axis in range(len(window["strides"]))]
    arrays = [line for line in lines if not isinstance(line, ir.Value)]
    if len(arrays) == len(lines):
        return op.b.constant(functools.reduce(np.multiply.outer, arrays), op["X"].dtype)
    total: ir.Value | None = None
    for axis, line in enumerate(lines):
        column = op.b.ints([-1, *[1] * (len(lines) - 1 - axis)])
        value = line if isinstance(line, ir.Value) else op.b.constant(line, op["X"].dtype)
        value = op.b.Reshape(value, column)
        total = value if total is None else total * value
    assert total is not None
    return total


def _line_counts(op: Adjoint, window: Window, axis: int, late: LatePads) -> np.ndarray[Any, Any] | ir.Value:
    """Along one spatial axis: for each window, its places that are inside."""
    b, kind, other = op.b, ir.DataType.INT64, axis + len(window["strides"])
    first, last = (window["pads"][end] if late is None else b.Slice(late, b.ints([end]), b.ints([end + 1]))
                   for end in (axis, other))  # fmt: skip
    stride, offsets = window["strides"][axis], np.arange(window["kernel_shape"][axis]) * window["dilations"][axis]
    low, high = (-first, last) if op.attr("count_include_pad", 0) else (0, 0)
    dims = [shape[axis + 2] if shape is not None else None for shape in (op["X"].shape, op.out().shape)]
    if late is None and isinstance(dims[0], int) and isinstance(dims[1], int):
        places = np.arange(dims[1])[:, None] * stride + offsets - first
        return np.asarray(np.sum((places >= low) & (places < dims[0] + high), axis=1))
    zero, count = b.constant(0, kind), b.op("Squeeze", b.dim(op.out(), axis + 2))
    starts = b.Range(zero, count, b.constant(1, kind), dtype=kind) * stride - first
    places = b.Unsqueeze(starts, b.ints([1])) + b.ints(offsets)
    inside = b.And(b.GreaterOrEqual(places, low), b.Less(places, b.dim(op["X"], axis + 2) + high))
    return b.ReduceSum(b.Cast(inside, to=op["X"].dtype), b.ints([1]), keepdims=0)


@rule("GlobalAveragePool", "X")
def global_average_pool(op: Adjoint) -> Cotangents:
    """The cotangent over the number of places, at each place."""
    b, X = op.b, op["X"]
    known = None if X.shape is None else static_dims(ir.Shape(list(X.shape)[2:]))
    if known is not None:
        divided = op.dY * (1.0 / math.prod(known))
    else:
        sizes = b.Size(X), b.Size(op.dY)
        divided = op.dY * (b.Cast(sizes[1], to=X.dtype) / b.Cast(sizes[0], to=X.dtype))
    yield "X", b.op("Expand", divided, b.shape_of(X), shape=X.shape)


@rule("GlobalMaxPool", "X")
def global_max_pool(op: Adjoint) -> Cotangents:
    """The first maximum of each channel gets the cotangent."""
    b, X = op.b, op["X"]
    sizes = None if X.shape is None else static_dims(ir.Shape(list(X.shape)[2:]))
    flat = b.Reshape(X, b.ints([0, 0, -1 if sizes is None else math.prod(sizes)]))
    first = b.ArgMax(flat, axis=2, keepdims=1)
    cotangent = b.Reshape(op.dY, b.ints([0, 0, 1]))
    zeros = b.zeros(b.Shape(flat), X.dtype or ir.DataType.FLOAT)
    placed = b.ScatterElements(zeros, first, cotangent, axis=2)
    yield "X", b.op("Reshape", placed, b.shape_of(X), shape=X.shape)
