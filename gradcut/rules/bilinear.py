"""Bilinear reading of images at places that are computed, and its three adjoints.

An image [T, C, H, W] is a table of rows [T * H * W, C]; what is read at (y, x) is a sum of four rows by weight. A sum
over rows is linear in the table, whose cotangent is `GatherGrad`, and smooth in the weights, whose slopes by y and x
stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.sizes import Size, value


@dataclass(frozen=True)
class Line:
    """The two places beside a coordinate: clipped to the image, their weights, and the slopes of these."""

    places: tuple[ir.Value, ir.Value]
    weights: tuple[ir.Value, ir.Value]
    slopes: tuple[ir.Value, ir.Value]

    def reshaped(self, b: Builder, shape: ir.Value) -> Line:
        """Each value in another shape, to broadcast against the other axis."""
        each = [tuple(b.Reshape(v, shape) for v in pair) for pair in (self.places, self.weights, self.slopes)]
        return Line(*((pair[0], pair[1]) for pair in each))


@dataclass(frozen=True)
class Corner:
    """One of the four rows: its number within the image, its weight, and the slopes of that by y and x."""

    row: ir.Value
    weight: ir.Value
    dy: ir.Value
    dx: ir.Value


def corners(b: Builder, y: Line, x: Line, width: Size) -> Iterator[Corner]:
    """The four, the first axis slowest; what broadcasts against what is the lines' matter."""
    for i in (0, 1):
        for j in (0, 1):
            row = b.Add(b.Mul(y.places[i], value(b, width)), x.places[j])
            weight = y.weights[i] * x.weights[j]
            yield Corner(row, weight, y.slopes[i] * x.weights[j], y.weights[i] * x.slopes[j])


def table(b: Builder, X: ir.Value, images: Size, channels: Size) -> ir.Value:
    """X, of `images` times `channels` planes, as rows [images * places, channels]."""
    planes = b.Reshape(X, b.dims(images, channels, -1))
    return b.Reshape(b.Transpose(planes, perm=[0, 2, 1]), b.dims(-1, channels))


def untable(b: Builder, rows: ir.Value, X: ir.Value, images: Size, channels: Size) -> ir.Value:
    """The inverse of `table`."""
    planes = b.Transpose(b.Reshape(rows, b.dims(images, -1, channels)), perm=[0, 2, 1])
    return b.op("Reshape", planes, b.shape_of(X), dtype=rows.dtype, shape=X.shape)


def scattered(b: Builder, parts: Sequence[tuple[ir.Value, ir.Value]], rows: ir.Value) -> ir.Value:
    """The cotangent of a table `rows` that was read at several (index [...], cotangent [..., channels])."""
    indices = b.op("Concat", *(index for index, _ in parts), axis=0)
    updates = b.op("Concat", *(cotangent for _, cotangent in parts), axis=0)
    return b.op("GatherGrad", updates, indices, b.Shape(rows), axis=0, domain="gradcut", dtype=rows.dtype)
