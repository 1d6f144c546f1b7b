"""Resize, GridSample and AffineGrid for onnx's reference evaluator, as ONNX Runtime has them.

Onnx's own Resize takes lengths that scales leave fractional for what they say, and its GridSample holds the places of
border padding before a cubic reads around them; both walk in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]


class Resize(OpRun):
    """Axis by axis, each by a matrix [out, in] of its own. Places are float32 numbers, as the runtime has them."""

    def _run(
        self,
        X: Array,
        roi: Array | None = None,
        scales: Array | None = None,
        sizes: Array | None = None,
        antialias: int = 0,
        axes: Sequence[int] | None = None,
        coordinate_transformation_mode: str = "half_pixel",
        cubic_coeff_a: float = -0.75,
        exclude_outside: int = 0,
        extrapolation_value: float = 0.0,
        keep_aspect_ratio_policy: str = "stretch",
        mode: str = "nearest",
        nearest_mode: str = "round_prefer_floor",
    ) -> tuple[Array]:
        moved = [axis % X.ndim for axis in (range(X.ndim) if axes is None else axes)]
        lengths = [X.shape[axis] for axis in moved]
        factors, results = _results(lengths, scales, sizes, keep_aspect_ratio_policy)
        crop = coordinate_transformation_mode == "tf_crop_and_resize"
        box = np.asarray(roi if crop and roi is not None and roi.size else [0.0] * len(moved) + [1.0] * len(moved))
        Y, outside = X, np.zeros([1] * X.ndim, bool)
        for at, axis in enumerate(moved):
            if factors[at] == 1:  # the runtime leaves such an axis as it is, even where a part is to be cut out
                continue
            ends = float(box[at]), float(box[at + len(moved)])
            places = _places(coordinate_transformation_mode, lengths[at], results[at], factors[at], ends)
            taps = _taps(mode, places, float(factors[at]) if antialias else 1.0, cubic_coeff_a, nearest_mode)
            matrix = _matrix(lengths[at], *taps, bool(exclude_outside))
            Y = np.moveaxis(np.moveaxis(Y, axis, -1) @ matrix.T.astype(X.dtype), -1, axis)
            if crop:
                gone = (places < 0) | (places > lengths[at] - 1)
                outside = outside | gone.reshape([-1 if a == axis else 1 for a in range(X.ndim)])
        return (np.where(outside, np.asarray(extrapolation_value, X.dtype), Y),)


def _results(
    lengths: Sequence[int], scales: Array | None, sizes: Array | None, policy: str
) -> tuple[list[np.float32], list[int]]:
    """The factor and the length of the result along each axis."""
    if sizes is None or not sizes.size:
        assert scales is not None
        factors = [np.float32(scale) for scale in scales]
        return factors, [int(factor * np.float32(n)) for factor, n in zip(factors, lengths, strict=True)]
    factors = [np.float32(size) / np.float32(n) for size, n in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return factors, [int(size) for size in sizes]
    one = min(factors) if policy == "not_larger" else max(factors)
    return [one] * len(lengths), [int(np.floor(one * np.float32(n) + np.float32(0.5))) for n in lengths]


def _places(mode: str, n: int, count: int, factor: np.float32, ends: tuple[float, float]) -> Array:
    """Where in the input each element of the result lies; `n` and `count` are the lengths of both."""
    x, half = np.arange(count, dtype=np.float32), np.float32(0.5)
    if mode == "asymmetric":
        return x / factor
    if mode == "align_corners":
        return x * np.float32(n - 1) / np.float32(max(count - 1, 1)) if count > 1 else np.zeros_like(x)
    if mode == "tf_crop_and_resize":
        start, end = map(np.float32, ends)
        if count <= 1:
            return np.full_like(x, half * (start + end) * np.float32(n - 1))
        return start * np.float32(n - 1) + x * (end - start) * np.float32(n - 1) / np.float32(count - 1)
    if mode == "pytorch_half_pixel" and count <= 1:
        return np.zeros_like(x)
    if mode == "tf_half_pixel_for_nn":
        return (x + half) / factor
    if mode == "half_pixel_symmetric":
        offset = np.float32(n) * half * (1 - np.float32(count) / (factor * np.float32(n)))
        return np.asarray(offset + (x + half) / factor - half)
    return (x + half) / factor - half


def _taps(mode: str, places: Array, factor: float, a: float, rounding: str) -> tuple[Array, Array]:
    """The neighbours of each place [count, taps], and the weight of each; a factor below 1 widens them."""
    if mode == "nearest":
        return _rounded(places, rounding)[:, None], np.ones((len(places), 1))
    wide = 1 / min(factor, 1.0)
    reach = (1 if mode == "linear" else 2) * wide
    first = np.floor(places - np.float32(reach)).astype(np.int64)
    neighbours = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    far = np.abs(neighbours - places.astype(np.float64)[:, None]) / wide
    weights = np.maximum(1 - far, 0) if mode == "linear" else cubic(far, a)
    return neighbours, weights if wide == 1 else weights / weights.sum(1, keepdims=True)


def cubic(far: Array, a: float) -> Array:
    """The cubic convolution kernel (Keys 1981) at a distance."""
    near = ((a + 2) * far - (a + 3)) * far**2 + 1
    return np.where(far <= 1, near, np.where(far < 2, ((a * far - 5 * a) * far + 8 * a) * far - 4 * a, 0.0))


def _rounded(places: Array, rounding: str) -> Array:
    below = {
        "floor": np.floor(places),
        "ceil": np.ceil(places),
        "round_prefer_floor": np.ceil(places - np.float32(0.5)),
        "round_prefer_ceil": np.floor(places + np.float32(0.5)),
    }
    return below[rounding].astype(np.int64)


def _matrix(n: int, neighbours: Array, weights: Array, exclude: bool) -> Array:
    """[count, n]: the weight of each element; one outside is left out, or is that at the border."""
    if exclude:
        weights = np.where((neighbours >= 0) & (neighbours < n), weights, 0.0)
        weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((len(neighbours), n))
    np.add.at(matrix, (np.arange(len(neighbours))[:, None], np.clip(neighbours, 0, n - 1)), weights)
    return matrix


class GridSample(OpRun):
    """Places in elements, their neighbours held or reflected one by one, as in torch's grid_sampler."""

    def _run(
        self,
        X: Array,
        grid: Array,
        align_corners: int = 0,
        mode: str = "linear",
        padding_mode: str = "zeros",
    ) -> tuple[Array]:
        rank, mode = X.ndim - 2, mode.removeprefix("bi")
        flat = X.reshape(*X.shape[:2], -1)
        Y, batch = np.zeros((*X.shape[:2], *grid.shape[1:-1]), X.dtype), np.arange(X.shape[0])
        along = [
            _along(grid[..., rank - 1 - axis], X.shape[2 + axis], bool(align_corners), mode, padding_mode)
            for axis in range(rank)
        ]
        for taps in np.ndindex(*(len(each) for each in along)):
            place, weight = np.zeros(grid.shape[:-1], np.int64), np.ones(grid.shape[:-1])
            for axis, tap in enumerate(taps):
                at, much = along[axis][tap]
                place, weight = place * X.shape[2 + axis] + at, weight * much
            seen = flat[batch[:, None], :, place.reshape(len(batch), -1)]  # [N, P, C]
            Y += (np.moveaxis(seen, -1, 1).reshape(Y.shape) * weight[:, None]).astype(X.dtype)
        return (Y,)


def _along(grid: Array, n: int, aligned: bool, mode: str, padding: str) -> list[tuple[Array, Array]]:
    """The neighbours along an axis of n elements, and the weight of each, 0 where zeros are read outside."""
    place = (grid + 1) / 2 * (n - 1) if aligned else ((grid + 1) * n - 1) / 2
    if mode != "cubic":
        place = _inside(place, n, aligned, padding)
    base = np.rint(place) if mode == "nearest" else np.floor(place)
    taps = {"nearest": [0], "linear": [0, 1], "cubic": [-1, 0, 1, 2]}[mode]
    found = []
    for tap in taps:
        far = np.abs(base + tap - place)
        weight = {"nearest": np.ones_like(far), "linear": 1 - far, "cubic": cubic(far, -0.75)}[mode]
        at = _inside(base + tap, n, aligned, padding)
        weight = np.where((at >= 0) & (at < n), weight, 0.0)
        found.append((np.clip(at, 0, n - 1).astype(np.int64), weight))
    return found


def _inside(place: Array, n: int, aligned: bool, padding: str) -> Array:
    if padding == "zeros":
        return place
    if padding == "reflection":
        low, span = (0.0, n - 1) if aligned else (-0.5, n)
        around = np.mod(place - low, 2 * span) if span else np.zeros_like(place)
        place = np.minimum(around, 2 * span - around) + low
    return np.asarray(np.clip(place, 0, n - 1))


class AffineGrid(OpRun):
    """theta times (x, y, 1) of each place; onnx's own rounds to float32."""

    def _run(self, theta: Array, size: Array, align_corners: int = 0) -> tuple[Array]:
        def ends(n: int) -> Array:
            if align_corners:
                return np.linspace(-1, 1, n) if n > 1 else np.ones(1)
            return (2 * np.arange(n) + 1) / n - 1

        places = np.meshgrid(*(ends(int(n)) for n in size[2:]), indexing="ij")
        known = np.stack([*reversed(places), np.ones_like(places[0])], -1)
        return (np.einsum("nrk,...k->n...r", theta, known).astype(theta.dtype),)


SAMPLERS: list[type[OpRun]] = [Resize, GridSample, AffineGrid]
