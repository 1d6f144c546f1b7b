"""Pooling."""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.conv import window_attributes
from gradcut.rules.registry import rule


@rule("MaxPool", "X")
def max_pool(op: Adjoint) -> Cotangents:
    """Each cotangent goes to the first maximum of its window (torch's convention), by the forward's Indices."""
    if op.attr("storage_order", 0):
        op.refuse("storage_order=1 has no rule")
    b, X = op.b, op["X"]
    indices = op.out("Indices")
    indices.dtype = ir.DataType.INT64
    indices.shape = op.out().shape
    yield (
        "X",
        b.op("MaxPoolGrad", op.dY, indices, b.shape_of(X), domain="gradcut", dtype=X.dtype, shape=X.shape),
    )


@rule("AveragePool", "X")
def average_pool(op: Adjoint) -> Cotangents:
    """The cotangent over the window's count, spread over the window."""
    b, X = op.b, op["X"]
    if op.attr("ceil_mode", 0):
        op.refuse("ceil_mode=1 has no rule")
    window = window_attributes(op)
    if any(window["pads"]) and not op.attr("count_include_pad", 0):
        divided = op.dY / _counts(op, window)
    else:
        divided = op.dY * (1.0 / math.prod(window["kernel_shape"]))
    yield (
        "X",
        b.op(
            "AveragePoolGrad",
            divided,
            b.shape_of(X),
            domain="gradcut",
            dtype=X.dtype,
            shape=X.shape,
            **window,
        ),
    )


def _counts(op: Adjoint, window: dict[str, list[int]]) -> ir.Value:
    """How many elements of X each window holds: a pool of ones that counts pads, times the window's size."""
    b, X = op.b, op["X"]
    ones = b.Expand(b.scalar_like(1.0, X), b.shape_of(X))
    share = b.op("AveragePool", ones, count_include_pad=1, shape=op.out().shape, **window)
    return share * float(math.prod(window["kernel_shape"]))


@rule("GlobalAveragePool", "X")
def global_average_pool(op: Adjoint) -> Cotangents:
    """The cotangent over the number of places, at each place."""
    b, X = op.b, op["X"]
    spatial = list(X.shape or ())[2:]
    if all(isinstance(dim, int) for dim in spatial):
        divided = op.dY * (1.0 / math.prod(int(dim) for dim in spatial))  # type: ignore[arg-type]
    else:
        sizes = b.Size(X), b.Size(op.dY)
        divided = op.dY * (b.Cast(sizes[1], to=X.dtype) / b.Cast(sizes[0], to=X.dtype))
    yield "X", b.op("Expand", divided, b.shape_of(X), shape=X.shape)


@rule("GlobalMaxPool", "X")
def global_max_pool(op: Adjoint) -> Cotangents:
    """The first maximum of each channel gets the cotangent."""
    b, X = op.b, op["X"]
    flat = b.Reshape(X, b.ints([0, 0, -1]))
    first = b.ArgMax(flat, axis=2, keepdims=1)
    cotangent = b.Reshape(op.dY, b.ints([0, 0, -1]))
    zeros = b.zeros(b.Shape(flat), X.dtype or ir.DataType.FLOAT)
    placed = b.ScatterElements(zeros, first, cotangent, axis=2)
    yield "X", b.op("Reshape", placed, b.shape_of(X), shape=X.shape)
