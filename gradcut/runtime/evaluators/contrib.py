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


class _Contrib(OpRun):
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


class FusedMatMul(_Contrib):
    def _run(self, A: Array, B: Array, **_: Any) -> tuple[Array]:
        A, B = (
            _swapped(x, self.attr(f"trans{name}", 0), self.attr(f"transBatch{name}", 0))
            for name, x in (("A", A), ("B", B))
        )
        return (np.asarray(np.matmul(A, B) * np.asarray(self.attr("alpha", 1.0), A.dtype)),)


class FusedGemm(_Contrib):
    def _run(self, A: Array, B: Array, C: Array | None = None, **_: Any) -> tuple[Array]:
        A, B = (_swapped(x, self.attr(f"trans{name}", 0), False) for name, x in (("A", A), ("B", B)))
        y = A @ B * self.attr("alpha", 1.0) + (0.0 if C is None else C * self.attr("beta", 1.0))
        settings = [self.attr(f"activation_{name}", None) for name in ("alpha", "beta", "gamma")]
        return (_activated(y, self.attr("activation", ""), settings),)


class FusedConv(_Contrib):
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


class Gelu(_Contrib):
    def _run(self, X: Array, **_: Any) -> tuple[Array]:
        return (_erf_gelu(X),)


class BiasGelu(_Contrib):
    def _run(self, A: Array, B: Array, **_: Any) -> tuple[Array]:
        return (_erf_gelu(A + B),)


class FastGelu(_Contrib):
    def _run(self, X: Array, bias: Array | None = None, **_: Any) -> tuple[Array]:
        return (_tanh_gelu(X if bias is None else X + bias),)


class QuickGelu(_Contrib):
    def _run(self, X: Array, **_: Any) -> tuple[Array]:
        return (np.asarray(X / (1.0 + np.exp(-X * self.attr("alpha", 1.702)))),)


class SkipLayerNormalization(_Contrib):
    def _run(
        self, x: Array, skip: Array, gamma: Array, beta: Array | None = None, bias: Array | None = None, **_: Any
    ) -> tuple[Array, ...]:
        total = x + skip + (0.0 if bias is None else bias)
        y, mean, deviation = _normed(total, self.attr("epsilon", 1e-12), centre=True)
        y = y * gamma + (0.0 if beta is None else beta)
        return (y, mean, deviation, total)[: max(1, len(self.output))]


class SkipSimplifiedLayerNormalization(_Contrib):
    def _run(self, x: Array, skip: Array, gamma: Array, bias: Array | None = None, **_: Any) -> tuple[Array, ...]:
        total = x + skip + (0.0 if bias is None else bias)
        y, mean, deviation = _normed(total, self.attr("epsilon", 1e-12), centre=False)
        return (y * gamma, mean, deviation, total)[: max(1, len(self.output))]


class SimplifiedLayerNormalization(_Contrib):
    """ONNX Runtime has it in ONNX's own domain."""

    op_domain = ""

    def _run(self, X: Array, scale: Array, **_: Any) -> tuple[Array, ...]:
        axes = tuple(range(self.attr("axis", -1) % X.ndim, X.ndim))
        y, _mean, deviation = _normed(X, self.attr("epsilon", 1e-5), centre=False, axes=axes)
        return (y * scale, deviation)[: max(1, len(self.output))]


class EmbedLayerNormalization(_Contrib):
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


# --- attention -----------------------------------------------------------------------------------------------


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) if x.ndim == 3 else x


def _flat(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


class _Attended(_Contrib):
    def attend(self, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
        scores = np.einsum("bhqd,bhkd->bhqk", q, k) * (self.attr("scale", 0.0) or 1.0 / math.sqrt(q.shape[-1]))
        if mask is not None:
            added = np.where(_kept(mask, len(q), k.shape[2]), 0.0, self.attr("mask_filter_value", -10000.0))
            scores = scores + added.astype(scores.dtype)
        scores = scores if bias is None else scores + bias
        if self.attr("unidirectional", 0):
            ahead = np.arange(k.shape[2])[None] - np.arange(q.shape[2])[:, None] - (k.shape[2] - q.shape[2])
            scores = np.where(ahead > 0, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return _flat(weights / weights.sum(-1, keepdims=True) @ v)


def _kept(mask: Array, batch: int, keys: int) -> Array:
    """Raw masks of rank 2 and 3; ends of the rows, [batch], and with their starts, [2 * batch]."""
    if mask.ndim > 1:
        return (mask > 0).reshape(mask.shape[0], *[1] * (4 - mask.ndim), *mask.shape[1:])
    at = np.arange(keys)[None]
    kept = at < mask[:batch, None]
    if len(mask) > batch:
        kept &= at >= mask[batch:, None]
    return np.asarray(kept[:, None, None])


class Attention(_Attended):
    def _run(
        self,
        x: Array,
        weights: Array,
        bias: Array | None = None,
        mask: Array | None = None,
        past: Array | None = None,
        attention_bias: Array | None = None,
        *_rest: Any,
        **_: Any,
    ) -> tuple[Array, ...]:
        joint = x @ weights + (0.0 if bias is None else bias)
        sizes = self.attr("qkv_hidden_sizes", None) or [weights.shape[1] // 3] * 3
        q, k, v = (_heads(p, self.attr("num_heads", 1)) for p in np.split(joint, np.cumsum(sizes)[:2], axis=-1))
        if past is not None:
            k, v = (np.concatenate((old, new), 2) for old, new in zip(past, (k, v), strict=True))
        y = self.attend(q, k, v, mask, attention_bias)
        return (y, np.stack((k, v))) if len(self.output) > 1 else (y,)


class MultiHeadAttention(_Attended):
    def _run(
        self,
        q: Array,
        k: Array,
        v: Array,
        bias: Array | None = None,
        mask: Array | None = None,
        attention_bias: Array | None = None,
        past_key: Array | None = None,
        past_value: Array | None = None,
        *_rest: Any,
        **_: Any,
    ) -> tuple[Array, ...]:
        heads, width = self.attr("num_heads", 1), q.shape[-1]
        q, k, v = (_heads(x, heads) for x in (q, k, v))
        if bias is not None:
            parts = np.split(bias, [width, 2 * width])
            q, k, v = (x + p.reshape(1, heads, 1, -1) for x, p in zip((q, k, v), parts, strict=True))
        k = k if past_key is None else np.concatenate((past_key, k), 2)
        v = v if past_value is None else np.concatenate((past_value, v), 2)
        return (self.attend(q, k, v, mask, attention_bias), k, v)[: max(1, len(self.output))]


class GroupQueryAttention(_Contrib):
    """Of a prompt: without past keys and values."""

    def _run(self, q: Array, k: Array | None, v: Array | None, *rest: Array | None, **_: Any) -> tuple[Array, ...]:
        _past_key, _past_value, ends, _total, cos, sin, ids, bias = (*rest, *[None] * 8)[:8]
        assert ends is not None
        heads, groups = self.attr("num_heads", 1), self.attr("kv_num_heads", 1)
        if k is None or v is None:
            q, k, v = np.split(q, np.array([heads, heads + groups]) * (q.shape[2] // (heads + 2 * groups)), -1)
        q, k, v = _heads(q, heads), _heads(k, groups), _heads(v, groups)
        at = np.arange(q.shape[2])
        if self.attr("do_rotary", 0):
            assert cos is not None and sin is not None
            turn = np.broadcast_to(at + (0 if ids is None else ids.ravel()[0]), (len(q), len(at)))
            q, k = (rotary_embedding(x, cos, sin, turn, self.attr("rotary_interleaved", 0), 0, None) for x in (q, k))
        each_k, each_v = (np.repeat(x, heads // groups, 1) for x in (k, v))
        scores = q @ each_k.swapaxes(2, 3) * (self.attr("scale", 0.0) or 1.0 / math.sqrt(q.shape[3]))
        cap, window = self.attr("softcap", 0.0), self.attr("local_window_size", -1)
        scores = cap * np.tanh(scores / cap) if cap else scores
        scores = scores if bias is None else scores + bias
        ahead = at[None] - at[:, None]
        hidden = at > ends.reshape(-1, 1, 1, 1)
        if self.attr("causal", 1):
            hidden = hidden | (ahead > 0) | ((ahead <= -window) & (window > 0))
        scores = np.where(hidden, -np.inf, scores).astype(q.dtype)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (_flat(weights / weights.sum(-1, keepdims=True) @ each_v), k, v)[: max(1, len(self.output))]


class RotaryEmbedding(_Contrib):
    def _run(self, x: Array, ids: Array, cos: Array, sin: Array, **_: Any) -> tuple[Array]:
        length = x.shape[1] if x.ndim == 3 else x.shape[2]
        if ids.ndim == 1:
            ids = np.broadcast_to(ids + np.arange(length)[None], (x.shape[0], length))
        heads = self.attr("num_heads", 0) or (x.shape[2] // (2 * cos.shape[1]) if x.ndim == 3 else None)
        size = self.attr("rotary_embedding_dim", 0)
        return (rotary_embedding(x, cos, sin, ids, self.attr("interleaved", 0), size, heads),)


CONTRIB: list[type[OpRun]] = [
    FusedMatMul,
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
    Attention,
    MultiHeadAttention,
    GroupQueryAttention,
    RotaryEmbedding,
]
