"""Operators in place of onnx's own that are wrong, round to float32, or are slow, of no larger topic.

Its Conv and its pools walk over every place in Python; a gradient check evaluates a network a thousand times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_attention import Attention_24 as PlainAttention
from onnx.reference.ops.op_pad import Pad_18 as PlainPad

Array = np.ndarray[Any, Any]
Sizes = Sequence[int] | None


class Erf(OpRun):
    """Onnx's rounds to float32."""

    def _run(self, x: Array) -> tuple[Array]:
        return (erf(x),)


class Gelu(OpRun):
    """Likewise, by its Erf."""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate == "tanh":
            return (0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1.0 + erf(x * math.sqrt(0.5))),)


class GatherElements(OpRun):
    """Onnx's is wrong for some axes."""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        places: list[Array] = list(np.indices(indices.shape, sparse=True))
        places[axis] = indices
        return (data[tuple(places)],)


class Flatten(OpRun):
    """Onnx's cannot tell how long the rows of no element are."""

    def _run(self, x: Array, axis: int = 1) -> tuple[Array]:
        place = axis + x.ndim if axis < 0 else axis
        return (x.reshape(math.prod(x.shape[:place]), math.prod(x.shape[place:])),)


class Pad(PlainPad):
    """Onnx's takes no negative pads, which crop."""

    def _run(
        self, data: Array, pads: Array, constant_value: Any = None, axes: Any = None, mode: str | None = None
    ) -> tuple[Array, ...]:
        places = range(data.ndim) if axes is None else [int(axis) % data.ndim for axis in axes]
        for axis, before, after in zip(places, *np.split(np.asarray(pads), 2), strict=True):
            stop = data.shape[axis] + min(int(after), 0)
            data = data[(*[slice(None)] * axis, slice(max(-int(before), 0), stop))]
        return tuple(super()._run(data, np.maximum(pads, 0), constant_value, axes, mode=mode))  # type: ignore[no-untyped-call]


class Attention(PlainAttention):
    """Onnx's gives the capped scores where the plain ones are asked for."""

    def _run(self, *operands: Any, **attributes: Any) -> tuple[Array, ...]:  # type: ignore[override]
        outputs = tuple(super()._run(*operands, **attributes))
        if attributes.get("qk_matmul_output_mode") or not attributes.get("softcap"):
            return outputs
        plain = super()._run(*operands, **{**attributes, "softcap": 0.0})
        return (*outputs[:3], plain[3])


class GlobalMaxPool(OpRun):
    """Onnx's takes everything for a batch of images."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class LpNormalization(OpRun):
    """Onnx's adds the numbers themselves up, not their sizes."""

    def _run(self, x: Array, axis: int = -1, p: int = 2) -> tuple[Array]:
        sizes = np.linalg.norm(x, p, axis, keepdims=True)
        return (np.divide(x, sizes, out=np.zeros_like(x), where=sizes != 0),)


class Conv(OpRun):
    """Windows [N, C, out..., k...] against the kernel, group by group."""

    def _run(
        self,
        X: Array,
        W: Array,
        B: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sizes = None,
        group: int | None = None,
        kernel_shape: Sizes = None,
        pads: Sizes = None,
        strides: Sizes = None,
    ) -> tuple[Array]:
        seen = _windows(X, W.shape[2:], auto_pad, dilations, pads, strides)
        n, groups = X.ndim - 2, group or 1
        inside, outside = [1, *range(2 + n, 2 + 2 * n)], range(1, 2 + n)
        channels, kernels = (np.array_split(np.arange(size), groups) for size in (X.shape[1], W.shape[0]))
        parts = [
            np.tensordot(seen[:, c[0] : c[-1] + 1], W[k[0] : k[-1] + 1], (inside, list(outside)))
            for c, k in zip(channels, kernels, strict=True)
        ]
        Y = np.moveaxis(np.concatenate(parts, -1), -1, 1)
        return (np.ascontiguousarray(Y if B is None else Y + B.reshape(-1, *[1] * n)),)


OPS: list[type[OpRun]] = [Erf, Flatten, Gelu, GatherElements, GlobalMaxPool, Conv, Pad, Attention, LpNormalization]


def erf(x: Array) -> Array:
    numbers = np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size)
    return numbers.astype(x.dtype).reshape(x.shape)


def _windows(
    X: Array, kernel: Sequence[int], auto_pad: str | None, dilations: Sizes, pads: Sizes, strides: Sizes
) -> Array:
    """[N, C, out..., k...]: what each place of the output sees, a view of the padded input."""
    n = len(kernel)
    steps, holes = list(strides or [1] * n), list(dilations or [1] * n)
    spans = [(k - 1) * hole + 1 for k, hole in zip(kernel, holes, strict=True)]
    edges = _edges(X.shape[2:], spans, steps, auto_pad, pads)
    padded = np.pad(X, [(0, 0), (0, 0), *edges])
    seen = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + n)))
    every = [slice(None), slice(None), *(slice(None, None, s) for s in steps), *(slice(None, None, h) for h in holes)]
    return np.asarray(seen[tuple(every)])


def _edges(
    sizes: Sequence[int], spans: Sequence[int], steps: Sequence[int], auto_pad: str | None, pads: Sizes
) -> list[tuple[int, int]]:
    """Before and after, along each spatial axis."""
    n = len(sizes)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wide = [max(0, (-(-d // s) - 1) * s + span - d) for d, s, span in zip(sizes, steps, spans, strict=True)]
        more, less = [(total + 1) // 2 for total in wide], [total // 2 for total in wide]
        first, last = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
        return list(zip(first, last, strict=True))
    given = list(pads) if pads is not None and auto_pad != "VALID" else [0] * (2 * n)
    return list(zip(given[:n], given[n:], strict=True))
