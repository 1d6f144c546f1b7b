"""ONNX Runtime's own operators for onnx's reference evaluator, so that a gradient check runs in float64.

Written from docs/ContribOperators.md of onnxruntime, apart from the rules; a test holds them against the runtime.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_rotary_embedding import rotary_embedding

from gradcut.runtime.evaluators.ops import Conv, erf

Array = np.ndarray[Any, Any]


class Contrib(OpRun):
    op_domain = "com.microsoft"

    def attr(self, name: str, default: Any) -> Any:
        """An attribute of the node; onnx knows none of these operators, so it fills in no defaults."""
        found = {a.name: self._extract_attribute_value(a) for a in self.onnx_node.attribute}
        return found.get(name, default)


def _swapped(x: Array, axes: bool, batches: bool) -> Array:
    if batches and x.ndim > 2:
        x = np.moveaxis(x, 0, -2)
    return np.swapaxes(x, -1, -2) if axes and x.ndim > 1 else x


def _tanh_gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))))


def _erf_gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + erf(x * math.sqrt(0.5))))


def _normed(x: Array, epsilon: float, *, centre: bool, axes: tuple[int, ...] = (-1,)) -> tuple[Array, Array, Array]:
    """x without its mean over its deviation; the mean, and 1 / the deviation."""
    mean = x.mean(axes, keepdims=True) if centre else np.zeros((1,) * x.ndim, x.dtype)
    deviation = 1.0 / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + epsilon)
    return (x - mean) * deviation, mean, deviation


class FusedMatMul(Contrib):
    def _run(self, A: Array, B: Array, **_: Any) -> tuple[Array]:
        A, B = (
            _swapped(x, self.attr(f"trans{name}", 0), self.attr(f"transBatch{name}", 0))
            for name, x in (("A", A), ("B", B))
        )
        return (np.asarray(np.matmul(A, B) * np.asarray(self.attr("alpha", 1.0), A.dtype)),)


class Inverse(Contrib):
    def _run(self, X: Array, **_: Any) -> tuple[Array]:
        return (np.asarray(np.linalg.inv(X)),)


class FusedGemm(Contrib):
    def _run(self, A: Array, B: Array, C: Array | None = None, **_: Any) -> tuple[Array]:
        A, B = (_swapped(x, self.attr(f"trans{name}", 0), False) for name, x in (("A", A), ("B", B)))
        y = A @ B * self.attr("alpha", 1.0) + (0.0 if C is None else C * self.attr("beta", 1.0))
        settings = [self.attr(f"activation_{name}", None) for name in ("alpha", "beta", "gamma")]
        return (_activated(y, self.attr("activation", ""), settings),)


class FusedConv(Contrib):
    def _run(self, X: Array, W: Array, B: Array | None = None, Z: Array | None = None, **_: Any) -> tuple[Array]:
        own = {n: self.attr(n, None) for n in ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")}
        (y,) = Conv._run(self, X, W, B, **own)  # type: ignore[arg-type]
        return (_activated(y if Z is None else y + Z, self.attr("activation", ""), self.attr("activation_params", [])),)


def _activated(x: Array, name: str, p: Any) -> Array:
    kinds = {
        "": lambda: x,
        "Relu": lambda: np.maximum(x, 0),
        "Tanh": lambda: np.tanh(x),
        "Sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "LeakyRelu": lambda: np.where(x > 0, x, x * p[0]),
        "HardSigmoid": lambda: np.clip(x * p[0] + p[1], 0, 1),
        "Clip": lambda: np.clip(x, p[0], p[1]),
    }
    return np.asarray(kinds[name]())  # type: ignore[no-untyped-call]


class Gelu(Contrib):
    def _run(self, X: Array, **_: Any) -> tuple[Array]:
        return (_erf_gelu(X),)


class BiasGelu(Contrib):
    def _run(self, A: Array, B: Array, **_: Any) -> tuple[Array]:
        return (_erf_gelu(A + B),)


class FastGelu(Contrib):
    def _run(self, X: Array, bias: Array | None = None, **_: Any) -> tuple[Array]:
        return (_tanh_gelu(X if bias is None else X + bias),)


class QuickGelu(Contrib):
    def _run(self, X: Array, **_: Any) -> tuple[Array]:
        return (np.asarray(X / (1.0 + np.exp(-X * self.attr("alpha", 1.702)))),)


class SkipLayerNormalization(Contrib):
    def _run(
        self, x: Array, skip: Array, gamma: Array, beta: Array | None = None, bias: Array | None = None, **_: Any
    ) -> tuple[Array, ...]:
        total = x + skip + (0.0 if bias is None else bias)
        y, mean, deviation = _normed(total, self.attr("epsilon", 1e-12), centre=True)
        y = y * gamma + (0.0 if beta is None else beta)
        return (y, mean, deviation, total)[: max(1, len(self.output))]


class SkipSimplifiedLayerNormalization(Contrib):
    def _run(self, x: Array, skip: Array, gamma: Array, bias: Array | None = None, **_: Any) -> tuple[Array, ...]:
        total = x + skip + (0.0 if bias is None else bias)
        y, mean, deviation = _normed(total, self.attr("epsilon", 1e-12), centre=False)
        return (y * gamma, mean, deviation, total)[: max(1, len(self.output))]


class SimplifiedLayerNormalization(Contrib):
    """ONNX Runtime has it in ONNX's own domain."""

    op_domain = ""

    def _run(self, X: Array, scale: Array, **_: Any) -> tuple[Array, ...]:
        axes = tuple(range(self.attr("axis", -1) % X.ndim, X.ndim))
        y, _mean, deviation = _normed(X, self.attr("epsilon", 1e-5), centre=False, axes=axes)
        return (y * scale, deviation)[: max(1, len(self.output))]


class EmbedLayerNormalization(Contrib):
    def _run(
        self,
        ids: Array,
        segments: Array | None,
        words: Array,
        places: Array,
        kinds: Array | None,
        gamma: Array,
        beta: Array,
        mask: Array | None = None,
        position_ids: Array | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        total = words[ids] + places[np.arange(ids.shape[1])[None] if position_ids is None else position_ids]
        if segments is not None and kinds is not None:
            total = total + kinds[segments]
        y = _normed(total, self.attr("epsilon", 1e-12), centre=True)[0] * gamma + beta
        lengths = np.zeros(len(ids), np.int32) if mask is None else mask.sum(1).astype(np.int32)
        return (y, lengths, total)[: max(1, len(self.output))]


class RotaryEmbedding(Contrib):
    def _run(self, x: Array, ids: Array, cos: Array, sin: Array, **_: Any) -> tuple[Array]:
        length = x.shape[1] if x.ndim == 3 else x.shape[2]
        if ids.ndim == 1:
            ids = np.broadcast_to(ids + np.arange(length)[None], (x.shape[0], length))
        heads = self.attr("num_heads", 0) or (x.shape[2] // (2 * cos.shape[1]) if x.ndim == 3 else None)
        size = self.attr("rotary_embedding_dim", 0)
        return (rotary_embedding(x, cos, sin, ids, self.attr("interleaved", 0), size, heads),)


CONTRIB: list[type[OpRun]] = [
    FusedMatMul,
    Inverse,
    FusedGemm,
    FusedConv,
    Gelu,
    BiasGelu,
    FastGelu,
    QuickGelu,
    SkipLayerNormalization,
    SkipSimplifiedLayerNormalization,
    SimplifiedLayerNormalization,
    EmbedLayerNormalization,
    RotaryEmbedding,
]
