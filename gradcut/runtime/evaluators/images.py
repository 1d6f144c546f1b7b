"""Operators over images for onnx's reference evaluator: its own refuse, round to float32, or do not exist."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]
Sizes = Sequence[int] | None


class ConvTranspose(OpRun):
    """Each tap of the kernel adds to the frame that all windows reach; what was asked for is cut out of it."""

    def _run(
        self,
        X: Array,
        W: Array,
        B: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sizes = None,
        group: int | None = None,
        kernel_shape: Sizes = None,
        output_padding: Sizes = None,
        output_shape: Sizes = None,
        pads: Sizes = None,
        strides: Sizes = None,
    ) -> tuple[Array]:
        n, groups = X.ndim - 2, group or 1
        steps, holes = list(strides or [1] * n), list(dilations or [1] * n)
        extra = list(output_padding or [0] * n)
        frame = [(X.shape[i + 2] - 1) * steps[i] + (W.shape[i + 2] - 1) * holes[i] + 1 for i in range(n)]
        whole = [size + more for size, more in zip(frame, extra, strict=True)]
        begins, sizes = _cut(whole, X.shape[2:], steps, auto_pad or "NOTSET", pads, output_shape)
        room = [max(f, b + s) for f, b, s in zip(frame, begins, sizes, strict=True)]
        Y = np.zeros((X.shape[0], W.shape[1] * groups, *room), X.dtype)
        x = X.reshape(X.shape[0], groups, -1, *X.shape[2:])
        w = W.reshape(groups, -1, *W.shape[1:])
        for tap in itertools.product(*map(range, W.shape[2:])):
            added = np.einsum("ngc...,gcm->ngm...", x, w[_at_end(tap)])
            at = [slice(t * h, t * h + (d - 1) * s + 1, s)
                  for t, h, d, s in zip(tap, holes, X.shape[2:], steps, strict=True)]  # fmt: skip
            Y[_at_end(at)] += added.reshape(X.shape[0], -1, *X.shape[2:])
        Y = Y[_at_end([slice(b, b + s) for b, s in zip(begins, sizes, strict=True)])]
        return (Y if B is None else Y + B.reshape(-1, *[1] * n),)


def _at_end(places: Sequence[int | slice]) -> Any:
    """An index of the last axes."""
    return (..., *places)


def _cut(
    whole: Sequence[int], given: Sequence[int], steps: Sequence[int], auto_pad: str, pads: Sizes, said: Sizes
) -> tuple[list[int], list[int]]:
    """Where the output begins in the frame, and its sizes; ONNX Runtime takes no pad to be negative."""
    n = len(whole)
    if said is None and not auto_pad.startswith("SAME"):
        edges = list(pads) if pads is not None and auto_pad != "VALID" else [0] * (2 * n)
        return edges[:n], [size - edges[i] - edges[i + n] for i, size in enumerate(whole)]
    sizes = (
        list(said)[-n:] if said is not None else [min(d * s, w) for d, s, w in zip(given, steps, whole, strict=True)]
    )
    totals = [max(0, size - want) for size, want in zip(whole, sizes, strict=True)]
    odd = auto_pad != "SAME_UPPER"
    return [(total + odd) // 2 for total in totals], sizes


class DeformConv(OpRun):
    """The columns of Dai et al. 2017 and Zhu et al. 2018, then a product."""

    def _run(
        self,
        X: Array,
        W: Array,
        offset: Array,
        B: Array | None = None,
        mask: Array | None = None,
        dilations: Sizes = None,
        group: int | None = None,
        kernel_shape: Sizes = None,
        offset_group: int | None = None,
        pads: Sizes = None,
        strides: Sizes = None,
    ) -> tuple[Array]:
        (N, C), groups, parts = X.shape[:2], group or 1, offset_group or 1
        out, taps = offset.shape[2:], math.prod(W.shape[2:])
        steps, holes, edges = list(strides or (1, 1)), list(dilations or (1, 1)), list(pads or (0, 0))
        moved = offset.reshape(N, parts, *W.shape[2:], 2, *out)
        y, x = (_starts(axis, W.shape[2:], out, steps, holes, edges) + moved[:, :, :, :, axis] for axis in (0, 1))
        columns = _bilinear(X.reshape(N, parts, C // parts, *X.shape[2:]), y, x)
        if mask is not None:
            columns = columns * mask.reshape(N, parts, 1, *W.shape[2:], *out)
        columns = columns.reshape(N, groups, C // groups * taps, -1)
        Y = np.einsum("gmk,ngkl->ngml", W.reshape(groups, -1, C // groups * taps), columns).reshape(N, -1, *out)
        return (Y if B is None else Y + B.reshape(-1, 1, 1),)


def _starts(
    axis: int, kernel: Sequence[int], out: Sequence[int], steps: Sequence[int], holes: Sequence[int], edges: Sizes
) -> Array:
    """[kh, kw, oh, ow]: the place along an axis that a tap reads without offsets."""
    assert edges is not None
    line = np.arange(kernel[axis])[:, None] * holes[axis] + np.arange(out[axis]) * steps[axis] - edges[axis]
    return line[:, None, :, None] if axis == 0 else line[None, :, None, :]


def _bilinear(X: Array, y: Array, x: Array) -> Array:
    """X [N, G, C, H, W] at y, x [N, G, ...]: [N, G, C, ...]; zero outside."""
    low_y, low_x = np.floor(y), np.floor(x)
    total = np.zeros((*X.shape[:3], *y.shape[2:]), X.dtype)
    n, g = (np.arange(size).reshape(shape) for size, shape in ((X.shape[0], (-1, 1)), (X.shape[1], (1, -1))))
    n, g = (index.reshape(*index.shape, *[1] * (y.ndim - 2)) for index in (n, g))
    for dy, dx in itertools.product((0, 1), repeat=2):
        at_y, at_x = (low_y + dy).astype(int), (low_x + dx).astype(int)
        inside = (at_y >= 0) & (at_y < X.shape[3]) & (at_x >= 0) & (at_x < X.shape[4])
        weight = (1 - np.abs(y - at_y)) * (1 - np.abs(x - at_x)) * inside
        read = X[n, g, :, np.clip(at_y, 0, X.shape[3] - 1), np.clip(at_x, 0, X.shape[4] - 1)]
        total += np.moveaxis(read * weight[..., None], -1, 2)
    return total


class MaxRoiPool(OpRun):
    """Onnx has none; Girshick 2015, with ONNX Runtime's rounding of the regions."""

    def _run(
        self, X: Array, rois: Array, pooled_shape: Sizes = None, spatial_scale: float | None = None
    ) -> tuple[Array]:
        assert pooled_shape is not None
        Y = np.zeros((len(rois), X.shape[1], *pooled_shape), X.dtype)
        for r, roi in enumerate(rois):
            rows, columns = (
                list(_bins(roi[first], roi[first + 2], spatial_scale or 1.0, size, count))
                for first, size, count in ((2, X.shape[2], pooled_shape[0]), (1, X.shape[3], pooled_shape[1]))
            )
            for (i, ys), (j, xs) in itertools.product(enumerate(rows), enumerate(columns)):
                region = X[int(roi[0]), :, ys, xs]
                Y[r, :, i, j] = region.max((1, 2)) if region.size else 0
        return (Y,)


def _bins(first: float, last: float, scale: float, size: int, count: int) -> list[slice]:
    start, end = (int(math.floor(abs(v * scale) + 0.5) * math.copysign(1, v)) for v in (first, last))
    each = max(end - start + 1, 1) / count
    edges = [(math.floor(i * each) + start, math.ceil((i + 1) * each) + start) for i in range(count)]
    return [slice(*(min(max(edge, 0), size) for edge in pair)) for pair in edges]


IMAGES: list[type[OpRun]] = [ConvTranspose, DeformConv, MaxRoiPool]
