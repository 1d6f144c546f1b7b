"""Attention of ONNX Runtime's own domain, as its kernels for CPUs compute it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_rotary_embedding import rotary_embedding

from gradcut.runtime.evaluators.contrib import Contrib
from gradcut.runtime.widen import Array


def _softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) if x.ndim == 3 else x


def _flat(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


class _Attended(Contrib):
    def attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, ahead: int
    ) -> tuple[Array, Array]:
        """The result, and what the softmax is of; `ahead`: how many keys come before that of the first query."""
        scores = np.einsum("bhqd,bhkd->bhqk", q, k) * (self.attr("scale", 0.0) or 1.0 / math.sqrt(q.shape[-1]))
        if mask is not None:
            added = np.where(_kept(mask, len(q), k.shape[2]), 0.0, self.attr("mask_filter_value", -10000.0))
            scores = scores + added.astype(scores.dtype)
        scores = scores if bias is None else scores + bias
        if self.attr("unidirectional", 0):
            at = np.arange(q.shape[2])[:, None]
            hidden = (np.arange(k.shape[2])[None] > at + ahead) & (at < q.shape[2] - 1)
            scores = np.where(hidden, np.finfo(np.float32).min, scores)
        return _flat(_softmax(scores) @ v), scores


def _kept(mask: Array, batch: int, keys: int) -> Array:
    """Raw masks of rank 2 and 3; ends of the rows first, [batch], and with their starts, [2 * batch]."""
    if mask.ndim > 1:
        return (mask > 0).reshape(mask.shape[0], *[1] * (4 - mask.ndim), *mask.shape[1:])
    at = np.arange(keys)[None]
    kept = at < mask[:batch, None]
    if len(mask) == 2 * batch:
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
        y = self.attend(q, k, v, mask, attention_bias, k.shape[2] - q.shape[2])[0]
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
        heads, given = self.attr("num_heads", 1), (q, k, v)
        q, k, v = (_heads(x, heads) for x in given)
        if bias is not None:
            parts = np.split(bias, [given[0].shape[-1], 2 * given[0].shape[-1]])
            rows = [0.0 if x.ndim == 4 else p.reshape(1, heads, 1, -1) for x, p in zip(given, parts, strict=True)]
            q, k, v = q + rows[0], k + rows[1], v + rows[2]
        k = k if past_key is None else np.concatenate((past_key, k), 2)
        v = v if past_value is None else np.concatenate((past_value, v), 2)
        y, scores = self.attend(q, k, v, mask, attention_bias, 0 if past_key is None else past_key.shape[2])
        return (y, k, v, scores)[: max(1, len(self.output))]


class GroupQueryAttention(Contrib):
    def _run(self, q: Array, k: Array | None, v: Array | None, *rest: Array | None, **_: Any) -> tuple[Array, ...]:
        past_key, past_value, ends, total, cos, sin, ids, bias, sink = (*rest, *[None] * 9)[:9]
        assert ends is not None and total is not None
        heads, groups = self.attr("num_heads", 1), self.attr("kv_num_heads", 1)
        if k is None or v is None:
            q, k, v = np.split(q, np.array([heads, heads + groups]) * (q.shape[2] // (heads + 2 * groups)), -1)
        q, k, v = _heads(q, heads), _heads(k, groups), _heads(v, groups)
        longest, count = int(total.reshape(())), q.shape[2]
        start = np.zeros_like(ends) if longest == count else ends + 1 - count
        own = start.reshape(-1, 1) + np.arange(count)[None]
        if self.attr("do_rotary", 0):
            assert cos is not None and sin is not None
            turn = own + (0 if ids is None else ids.ravel()[0])
            q, k = (rotary_embedding(x, cos, sin, turn, self.attr("rotary_interleaved", 0), 0, None) for x in (q, k))
        k, v = (_after(old, new, start.ravel(), longest) for old, new in ((past_key, k), (past_value, v)))
        each_k, each_v = (np.repeat(x[:, :, :longest], heads // groups, 1) for x in (k, v))
        scores = q @ each_k.swapaxes(2, 3) * (self.attr("scale", 0.0) or 1.0 / math.sqrt(q.shape[3]))
        cap = self.attr("softcap", 0.0)
        scores = cap * np.tanh(scores / cap) if cap else scores
        scores = scores if bias is None else scores + bias
        sinks = np.zeros(heads) if sink is None and self.attr("smooth_softmax", 0) > 0 else sink
        hidden = self._hidden(own, ends.reshape(-1), longest, blocks=not cap and sinks is None)
        weights = _masked_softmax(np.where(hidden, -np.inf, scores), sinks)
        return (_flat(weights.astype(q.dtype) @ each_v), k, v)[: max(1, len(self.output))]

    def _hidden(self, own: Array, ends: Array, longest: int, blocks: bool) -> Array:
        """[batch, 1, queries, keys], by the places of the queries; `blocks`: a window is not moved back to the end."""
        at, window, last = np.arange(longest), self.attr("local_window_size", -1), ends[:, None, None, None]
        hidden = np.asarray(at > last)
        if self.attr("causal", 1):
            mine = own[:, None, :, None]
            mine = mine if blocks else np.minimum(mine, last)
            hidden = hidden | (at > mine) | ((at - mine <= -window) & (window > 0))
        return hidden


def _after(past: Array | None, new: Array, start: Array, longest: int) -> Array:
    """The first `start` of the past of each row and the new behind it; zeros behind them."""
    if past is None:
        return new
    found = np.zeros((*new.shape[:2], max(past.shape[2], longest), new.shape[3]), new.dtype)
    for row, begin in enumerate(start):
        found[row, :, :begin] = past[row, :, :begin]
        found[row, :, begin : begin + new.shape[2]] = new[row]
    return found


def _masked_softmax(scores: Array, sinks: Array | None) -> Array:
    """Zeros where everything is hidden; `sinks`: a number more for each head, which is thrown away."""
    rows = np.full((1, scores.shape[1], 1, 1), -np.inf) if sinks is None else sinks.reshape(1, -1, 1, 1)
    most = np.maximum(scores.max(-1, keepdims=True), rows)
    most = np.where(np.isinf(most), 0.0, most)
    weights = np.exp(scores - most)
    total = weights.sum(-1, keepdims=True) + np.exp(rows - most)
    return np.asarray(np.where(total > 0, weights / np.where(total > 0, total, 1.0), 0.0))


CONTRIB_ATTENTION: list[type[OpRun]] = [Attention, MultiHeadAttention, GroupQueryAttention]
