"""Pools for onnx's reference evaluator: its own are slow, and refuse or misread what ONNX Runtime takes.

With ``auto_pad=SAME_*`` ONNX Runtime's pools take the kernel without its dilation for the pads, which are negative
where the stride is larger than the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]
Sizes = Sequence[int] | None


@dataclass(frozen=True)
class _Line:
    """The windows along one axis: the places [window, tap] they read, which of them exist, and which count as pads."""

    places: Array
    inside: Array
    counted: Array


def _line(size: int, k: int, stride: int, dilation: int, pads: tuple[int, int], auto_pad: str, ceil: bool) -> _Line:
    begin, end = (0, 0) if auto_pad == "VALID" else pads
    if auto_pad.startswith("SAME"):
        total = (math.ceil(size / stride) - 1) * stride + k - size
        begin = int((total + (auto_pad == "SAME_LOWER")) / 2)
        end = total - begin
    room = size + begin + end - (k - 1) * dilation - 1
    count = -(-room // stride) + 1 if ceil else int(room / stride) + 1
    if ceil and (count - 1) * stride >= size + begin:
        count -= 1
    places = np.arange(count)[:, None] * stride + np.arange(k) * dilation - begin
    return _Line(places, (places >= 0) & (places < size), (places >= -begin) & (places < size + end))


class _Pool(OpRun):
    """What pools share: `_seen` gives their windows."""

    def _lines(self, X: Array, given: dict[str, Any]) -> list[_Line]:
        kernel, n = given["kernel_shape"], X.ndim - 2
        steps, holes, pads = given.get("strides") or [1] * n, given.get("dilations") or [1] * n, given.get("pads")
        pads, auto, ceil = pads or [0] * 2 * n, given.get("auto_pad") or "NOTSET", bool(given.get("ceil_mode"))
        return [
            _line(X.shape[i + 2], kernel[i], steps[i], holes[i], (pads[i], pads[i + n]), auto, ceil) for i in range(n)
        ]

    def _seen(self, X: Array, lines: Sequence[_Line], fill: float) -> Array:
        """[N, C, out..., taps]: what each window reads, `fill` where there is nothing."""
        n, outside = len(lines), ~_spread([line.inside for line in lines], np.logical_and)
        for axis, line in enumerate(lines):
            X = np.take(X, np.clip(line.places, 0, X.shape[2 + 2 * axis] - 1), axis=2 + 2 * axis)
        order = [0, 1, *range(2, 2 + 2 * n, 2), *range(3, 2 + 2 * n, 2)]
        windows = np.transpose(X, order)
        seen = windows.reshape(*windows.shape[: 2 + n], math.prod(windows.shape[2 + n :])).copy()
        seen[..., outside] = fill
        return seen


def _spread(tables: Sequence[Array], combine: np.ufunc) -> Array:
    """One table [out, k] an axis -> [out..., taps], each entry combined from all axes."""
    n, total = len(tables), tables[0]
    for table in tables[1:]:
        total = combine.outer(total, table)
    total = np.transpose(total, [*range(0, 2 * n, 2), *range(1, 2 * n, 2)])
    return np.asarray(total.reshape(*total.shape[:n], math.prod(total.shape[n:])))


class AveragePool(_Pool):
    def _run(self, X: Array, count_include_pad: int | None = None, **given: Any) -> tuple[Array]:
        lines = self._lines(X, given)
        counted = [line.counted if count_include_pad else line.inside for line in lines]
        return (self._seen(X, lines, 0.0).sum(-1) / _spread(counted, np.logical_and).sum(-1),)


class LpPool(_Pool):
    def _run(self, X: Array, p: int | None = None, **given: Any) -> tuple[Array]:
        return (_norm(self._seen(X, self._lines(X, given), 0.0), p, -1),)


class GlobalLpPool(OpRun):
    """Onnx has none."""

    def _run(self, X: Array, p: int | None = None) -> tuple[Array]:
        return (_norm(X, p, tuple(range(2, X.ndim)), keepdims=True),)


def _norm(X: Array, p: int | None, axes: int | tuple[int, ...], keepdims: bool = False) -> Array:
    power = 2 if p is None else p
    return np.asarray(np.sum(np.abs(X) ** power, axes, keepdims=keepdims) ** (1.0 / power))


class MaxPool(_Pool):
    """The largest of each window and, where it is asked for, the place of the first of them in the whole of X."""

    def _run(self, X: Array, storage_order: int | None = None, **given: Any) -> tuple[Array, ...]:
        lines = self._lines(X, given)
        seen = self._seen(X, lines, -np.inf)
        Y = seen.max(-1)
        if len(self.output) == 1:
            return (Y,)
        sizes = X.shape[2:]
        steps = [math.prod(sizes[:i] if storage_order else sizes[i + 1 :]) for i in range(len(sizes))]
        places = _spread([line.places * step for line, step in zip(lines, steps, strict=True)], np.add)
        first = seen.argmax(-1)
        indices = np.take_along_axis(np.broadcast_to(places, seen.shape), first[..., None], -1)[..., 0]
        channels = np.arange(math.prod(X.shape[:2])).reshape(*X.shape[:2], *[1] * len(sizes))
        return Y, (indices + channels * math.prod(sizes)).astype(np.int64)


class MaxUnpool(OpRun):
    """Places are flat over the whole of Y, as ONNX Runtime has it; onnx's takes them before output_shape."""

    def _run(
        self,
        X: Array,
        I: Array,  # noqa: E741 (the operator page's name)
        output_shape: Array | None = None,
        kernel_shape: Sizes = None,
        pads: Sizes = None,
        strides: Sizes = None,
    ) -> tuple[Array]:
        n, kernel = X.ndim - 2, kernel_shape or ()
        steps, edges = strides or [1] * n, pads or [0] * 2 * n
        sizes = [(X.shape[i + 2] - 1) * steps[i] + kernel[i] - edges[i] - edges[i + n] for i in range(n)]
        shape = [*X.shape[:2], *sizes] if output_shape is None else list(output_shape)
        Y = np.zeros(math.prod(shape), X.dtype)
        Y[I.reshape(-1)] = X.reshape(-1)
        return (Y.reshape(shape),)


class LRN(OpRun):
    """Onnx's counts images where it means channels."""

    def _run(
        self,
        X: Array,
        alpha: float | None = None,
        beta: float | None = None,
        bias: float | None = None,
        size: int | None = None,
    ) -> tuple[Array]:
        assert alpha is not None and beta is not None and bias is not None and size is not None
        squares, channels = np.square(X), X.shape[1]
        sums = np.stack(
            [squares[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1].sum(1) for c in range(channels)], axis=1
        )
        return (X / (bias + alpha / size * sums) ** beta,)


POOLS: list[type[OpRun]] = [AveragePool, LpPool, GlobalLpPool, MaxPool, MaxUnpool, LRN]
