"""Resize as the operator page has it: one matrix [out, in] of weights for each axis."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.in_torch.call import Call


def resize(a: Call, x: Tensor, *operands: Tensor | None) -> Tensor:
    """All modes of places and of rounding, without `roi`, `antialias` and `exclude_outside`."""
    assert not a.get("antialias", 0) and not a.get("exclude_outside", 0)
    scales, sizes = _scales(a, x, operands)
    axes = list(a.get("axes", range(x.ndim)))
    for axis, scale, size in zip(axes, scales, sizes, strict=True):
        x = _along(x, axis, _matrix(a, x.shape[axis], size, scale).to(x.dtype))
    return x


def _scales(a: Call, x: Tensor, operands: tuple[Tensor | None, ...]) -> tuple[list[float], list[int]]:
    """By scales or by sizes; before opset 11 the scales are the second operand."""
    axes = list(a.get("axes", range(x.ndim)))
    scales = operands[0] if a.opset < 11 else operands[1] if len(operands) > 1 else None
    if scales is not None and scales.numel():
        given = scales.tolist()
        return given, [math.floor(x.shape[axis] * s) for axis, s in zip(axes, given, strict=True)]
    assert operands[2] is not None and a.text("keep_aspect_ratio_policy", "stretch") == "stretch"
    sizes = [int(size) for size in operands[2].tolist()]
    return [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)], sizes


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


def _place(a: Call, at: int, have: int, want: int, scale: float) -> float:
    """Where an output element lies in the input, in units of its elements."""
    kind = a.text("coordinate_transformation_mode", "half_pixel" if a.opset >= 11 else "asymmetric")
    if kind == "asymmetric":
        return at / scale
    if kind == "align_corners":
        return 0.0 if want == 1 else at * (have - 1) / (want - 1)
    if kind == "pytorch_half_pixel" and want == 1:
        return 0.0
    if kind == "half_pixel_symmetric":
        return have / 2 * (1 - want / (scale * have)) + (at + 0.5) / scale - 0.5
    assert kind in ("half_pixel", "pytorch_half_pixel"), kind
    return (at + 0.5) / scale - 0.5


_ROUND: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda place: math.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: math.floor(place + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


def _matrix(a: Call, have: int, want: int, scale: float) -> Tensor:
    weights = torch.zeros(want, have, dtype=torch.float64)
    for at in range(want):
        for place, weight in _taps(a, _place(a, at, have, want, scale)):
            weights[at, min(max(place, 0), have - 1)] += weight
    return weights


def _taps(a: Call, place: float) -> list[tuple[int, float]]:
    """Which elements an output element is made of, and how much of each."""
    mode = a.text("mode", "nearest")
    if mode == "nearest":
        default = "round_prefer_floor" if a.opset >= 11 else "floor"
        return [(_ROUND[a.text("nearest_mode", default)](place), 1.0)]
    below = math.floor(place)
    part = place - below
    if mode == "linear":
        return [(below, 1 - part), (below + 1, part)]
    return [(below + i - 1, w) for i, w in enumerate(_cubic(part, a.get("cubic_coeff_a", -0.75)))]


def _cubic(t: float, a: float) -> list[float]:
    """Keys 1981."""
    far = lambda s: ((a * s - 5 * a) * s + 8 * a) * s - 4 * a
    near = lambda s: ((a + 2) * s - (a + 3)) * s * s + 1
    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


OPERATORS = {"Resize": resize}
