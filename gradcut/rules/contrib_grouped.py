"""GroupQueryAttention of ONNX Runtime: a head of keys and values serves several of queries, and there is a cache.

Operands and attributes: docs/ContribOperators.md of onnxruntime. Where that leaves it open, this is what the kernel for
CPUs does. Rows of a batch may be of different lengths: seqlens_k holds the place of the last key of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint
from gradcut.rules.attention import (
    forbidding,
    guarded,
    merge_heads,
    of_rank,
    places,
    positions,
    probabilities,
    scaled_scores,
    soft_cap,
    split_heads,
    weighted,
)
from gradcut.rules.compose import composed
from gradcut.rules.contrib import MICROSOFT
from gradcut.rules.rotary import angles, rotated

_INT64 = ir.DataType.INT64


@composed(
    "GroupQueryAttention",
    "query key value past_key past_value cos_cache sin_cache attention_bias head_sink",
    operands="query key value past_key past_value seqlens_k total_sequence_length cos_cache sin_cache position_ids "
    "attention_bias head_sink k_scale v_scale q_norm_weight k_norm_weight",
    outputs=lambda node: {"1": "query key past_key cos_cache sin_cache", "2": "query value past_value"},
    domain=MICROSOFT,
)
def group_query_attention(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = softmax(cap(scale Q K^T) + masks) V, each head of K and V serving several of Q, which rotate before.

    Not covered: keys and values stored in few bits, norms of Q and K, the scores as an output, position_ids beside
    past keys.
    """
    b = op.b
    _refuse_beyond(op)
    Q, K, V = _grouped_heads(op, op.attr("num_heads"), op.attr("kv_num_heads"))
    cache = _Cache(op, Q) if _has_past(op) else None
    if op.attr("do_rotary", 0):
        ids = _prompt_positions(op, Q) if cache is None else cache.rows
        cos, sin = (angles(b, of_rank(b, op[name], 2), ids) for name in ("cos_cache", "sin_cache"))
        Q, K = (rotated(b, x, cos, sin, 0, bool(op.attr("rotary_interleaved", 0))) for x in (Q, K))
    present = [K, V] if cache is None else [cache.after("past_key", K), cache.after("past_value", V)]
    K, V = present if cache is None else map(cache.seen, present)
    Y = _attended(op, Q, K, V, cache)
    return [merge_heads(b, Y), *present]


def _refuse_beyond(op: Adjoint) -> None:
    others = ("k_scale", "v_scale", "q_norm_weight", "k_norm_weight")
    found = [name for name in others if op.get(name) is not None]
    found += ["sliding_window_cache"] if op.attr("sliding_window_cache", 0) > 0 else []
    if found:
        op.refuse(f"{found[0]} has no rule")
    if op.cotangent(3) is not None:
        op.refuse("a derivative of the output qk has no rule")
    if _has_past(op) and op.get("position_ids") is not None:
        op.refuse("position_ids beside past keys have no rule")


def _has_past(op: Adjoint) -> bool:
    """Whether there may be past keys: an operand of none is as good as left out."""
    past = op.get("past_key")
    return past is not None and (past.shape is None or past.shape[2] != 0)


def _grouped_heads(op: Adjoint, heads: int, groups: int) -> list[ir.Value]:
    """Q, K and V, which may be one behind the other in query."""
    b, query = op.b, of_rank(op.b, op["query"], 3)
    if op.get("key") is not None:
        return [
            split_heads(b, of_rank(b, op[n], 3), h) for n, h in (("query", heads), ("key", groups), ("value", groups))
        ]
    together = split_heads(b, query, heads + 2 * groups)
    sizes = [heads, groups, groups]
    parts = b.node("Split", together, b.ints(sizes), axis=1, outputs=3).outputs
    assert together.shape is not None
    for part, size in zip(parts, sizes, strict=True):
        part.type, part.shape = together.type, ir.Shape([together.shape[0], size, *together.shape[2:]])
    return list(parts)


def _prompt_positions(op: Adjoint, Q: ir.Value) -> ir.Value:
    """The places of a prompt [1, sequence]: of position_ids the kernel reads the first alone, and counts from it."""
    b, given = op.b, op.get("position_ids")
    row = b.op("Unsqueeze", positions(b, Q, 2), b.ints([0]), shape=ir.Shape([1, Q.shape[2] if Q.shape else None]))
    if given is None:
        return row
    first = b.Slice(b.Reshape(given, b.ints([-1])), b.ints([0]), b.ints([1]), b.ints([0]))
    return b.op("Add", row, first, shape=row.shape)


class _Cache:
    """Past keys and values, of which each row of the batch has some, and the new ones behind them.

    Attributes:
        start: how many past keys each row has, INT64 [batch, 1]: none where the queries are all there is.
    """

    def __init__(self, op: Adjoint, Q: ir.Value) -> None:
        self.op, self.b, self.Q = op, op.b, Q
        b = op.b
        column = ir.Shape([Q.shape[0] if Q.shape is not None else None, 1])
        lengths = b.op("Reshape", op["seqlens_k"], b.ints([-1, 1]), dtype=op["seqlens_k"].dtype, shape=column)
        before = b.Cast(lengths, to=_INT64) + 1 - self.count
        self.start = b.op("Where", b.Equal(self.total, self.count), b.ints([0]), before, dtype=_INT64, shape=column)

    @cached_property
    def count(self) -> ir.Value:
        """How many queries there are, [1]."""
        return self.b.dim(self.Q, 2)

    @cached_property
    def total(self) -> ir.Value:
        """How many keys the longest row has, [1]."""
        total = self.op["total_sequence_length"]
        flat = self.b.op("Reshape", total, self.b.ints([1]), dtype=total.dtype, shape=ir.Shape([1]))
        return self.b.Cast(flat, to=_INT64)

    @cached_property
    def rows(self) -> ir.Value:
        """The places of the new keys, [batch, sequence]."""
        row = self.b.op("Unsqueeze", positions(self.b, self.Q, 2), self.b.ints([0]), dtype=_INT64)
        length = self.Q.shape[2] if self.Q.shape is not None else None
        return self.b.op("Add", self.start, row, dtype=_INT64, shape=ir.Shape([*self.start.shape[:1], length]))  # type: ignore[index]

    def after(self, name: str, new: ir.Value) -> ir.Value:
        """The past and the new of each row behind each other, [batch, heads, all, size]; zeros behind them."""
        b, past = self.b, of_rank(self.b, self.op[name], 4)
        assert new.shape is not None
        shape = ir.Shape([*new.shape[:2], None, new.shape[3]])
        both = b.op("Concat", past, new, axis=2, dtype=new.dtype, shape=shape)
        length, held = b.Max(b.dim(past, 2), self.total), b.dim(past, 2)
        place = b.op("Range", b.constant(0), b.Squeeze(length), b.constant(1), dtype=_INT64)
        place.shape = ir.Shape([None])
        index = b.Where(b.Less(place, self.start), place, b.Min(place - self.start, self.count - 1) + held)
        wide = b.op("Unsqueeze", index, b.ints([1, 3]), dtype=_INT64)
        target = b.dims(b.dim(new, 0), b.dim(new, 1), length, b.dim(new, 3))
        wide = b.op("Expand", wide, target, dtype=_INT64, shape=shape)
        found = b.op("GatherElements", both, wide, axis=2, dtype=new.dtype, shape=shape)
        there = b.op("Unsqueeze", b.Less(place, self.start + self.count), b.ints([1, 3]), dtype=ir.DataType.BOOL)
        return b.op("Where", there, found, b.scalar_like(0.0, found), dtype=new.dtype, shape=shape)

    def seen(self, present: ir.Value) -> ir.Value:
        """What the queries look at: a cache may be longer than it is full."""
        bounds = self.b.ints([0]), self.total, self.b.ints([2])
        return self.b.op("Slice", present, *bounds, dtype=present.dtype, shape=present.shape)


def _attended(op: Adjoint, Q: ir.Value, K: ir.Value, V: ir.Value, cache: _Cache | None) -> ir.Value:
    b = op.b
    scores = scaled_scores(op, op.wide(Q), op.wide(K), op.attr("scale", 0.0) or None)
    scores = soft_cap(b, scores, op.attr("softcap", 0.0))
    bias = op.get("attention_bias")
    if bias is not None:
        scores = b.op("Add", scores, op.wide(bias), shape=scores.shape)
    bias = forbidding(b, _seen_by_group(op, Q, K, cache), scores.dtype)
    if _sinks(op):
        return b.Cast(weighted(b, _with_sink(op, b.Add(scores, bias), scores), op.wide(V)), to=V.dtype)
    P, empty = probabilities(op, scores, bias, certain=op.attr("local_window_size", -1) <= 0)
    return b.Cast(guarded(b, empty, weighted(b, P, op.wide(V))), to=V.dtype)


def _with_sink(op: Adjoint, total: ir.Value, like: ir.Value) -> ir.Value:
    """softmax over the keys and one number more for each head, 0 where head_sink is left out; that is thrown away."""
    b, sink = op.b, op.get("head_sink")
    one = b.scalar_like(0.0, like)
    if sink is not None:
        one = b.op("Reshape", op.wide(sink), b.ints([1, -1, 1, 1]), dtype=like.dtype, shape=ir.Shape([1, None, 1, 1]))
    assert like.shape is not None
    target = b.dims(*(b.dim(like, axis) for axis in range(3)), 1)
    column = b.op("Expand", one, target, dtype=like.dtype, shape=ir.Shape([*like.shape[:3], 1]))
    both = b.op("Concat", total, column, axis=3, dtype=like.dtype, shape=ir.Shape([*like.shape[:3], None]))
    P = b.op("Softmax", both, axis=-1, dtype=like.dtype, shape=both.shape)
    return b.op("Slice", P, b.ints([0]), b.ints([-1]), b.ints([3]), dtype=like.dtype, shape=like.shape)


def _seen_by_group(op: Adjoint, Q: ir.Value, K: ir.Value, cache: _Cache | None) -> ir.Value:
    """Which keys a query may see, [batch, 1, queries, keys]: those that its row has, none ahead, and in the window.

    A query behind the last key of its row, which is there to fill the batch, sees what the last one sees, or, where
    the kernel goes through the keys in blocks, what is left of its window.
    """
    b, window = op.b, op.attr("local_window_size", -1)
    keys = positions(b, K, 2)
    last = b.op("Reshape", op["seqlens_k"], b.ints([-1, 1, 1, 1]), shape=ir.Shape([None, 1, 1, 1]))
    last = b.op("Cast", last, to=7, dtype=_INT64, shape=last.shape)
    if not op.attr("causal", 1):
        return b.LessOrEqual(keys, last)
    own = places(b, Q) if cache is None else b.op("Unsqueeze", cache.rows, b.ints([1, 3]), dtype=_INT64)
    if not _in_blocks(op):
        own = b.op("Min", own, last, dtype=_INT64, shape=ir.Shape([None, 1, None, 1]))
    seen = b.And(b.LessOrEqual(keys, own), b.LessOrEqual(keys, last))
    return b.And(seen, b.Greater(keys - own, -window)) if window > 0 else seen


def _in_blocks(op: Adjoint) -> bool:
    """Whether the kernel is the one that goes through the keys in blocks."""
    return not (op.attr("softcap", 0.0) or _sinks(op)) and len(op.node.outputs) < 4


def _sinks(op: Adjoint) -> bool:
    return op.get("head_sink") is not None or op.attr("smooth_softmax", 0) > 0
