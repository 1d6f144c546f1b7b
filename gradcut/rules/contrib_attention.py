"""Attention of ONNX Runtime's own: with the projections in it, of several heads, of grouped ones.

Operands and attributes: docs/ContribOperators.md of onnxruntime. Masks add `mask_filter_value` where they forbid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from gradcut.dims import same_dim
from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint
from gradcut.rules.attention import (
    after,
    merge_heads,
    of_rank,
    places,
    positions,
    scaled_scores,
    split_heads,
    weighted,
)
from gradcut.rules.compose import composed
from gradcut.rules.contrib import MICROSOFT


@composed(
    "Attention",
    "input weights bias past attention_bias",
    operands="input weights bias mask_index past attention_bias past_sequence_length",
    weights="weights bias",
    outputs=lambda node: {"1": "input weights bias past"},
    domain=MICROSOFT,
)
def attention(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = softmax(scale Q K^T + masks) V for each head, Q, K and V the parts of input weights + bias.

    Not covered: do_rotary, past_present_share_buffer, a mask_index of 4 dimensions, the output present where values
    are of another size than keys.
    """
    if op.attr("do_rotary", 0) or op.attr("past_present_share_buffer", 0):
        op.refuse("do_rotary or past_present_share_buffer has no rule")
    b, heads = op.b, op.attr("num_heads")
    Q, K, V = (split_heads(b, x, heads) for x in _projected(op))
    past = op.get("past")
    if past is not None:
        K, V = (after(b, _half(b, past, at), new) for at, new in ((0, K), (1, V)))
    sizes = set(op.attr("qkv_hidden_sizes", ())[1:])
    if len(sizes) > 1 and op.cotangent(1) is not None:
        op.refuse("its output present holds keys and values of different sizes, which ONNX Runtime does not lay out")
    present = [b.op("Unsqueeze", x, b.ints([0]), shape=ir.Shape([1, *(x.shape or ())])) for x in (K, V)]
    both = b.op("Concat", *present, axis=0, shape=ir.Shape([2, *(K.shape or ())]))
    Y, _ = _attended(op, Q, K, V, "mask_index", b.dim(K, 2) - b.dim(Q, 2))
    return [merge_heads(b, Y), both]


def _projected(op: Adjoint) -> Sequence[ir.Value]:
    """Q, K and V, [batch, sequence, hidden] each."""
    b, bias = op.b, op.get("bias")
    x, weights = of_rank(b, op["input"], 3), of_rank(b, op["weights"], 2)
    assert x.shape is not None and weights.shape is not None
    joint = b.op("MatMul", x, weights, shape=ir.Shape([x.shape[0], x.shape[1], weights.shape[1]]))
    joint = joint if bias is None else b.op("Add", joint, bias, shape=joint.shape)
    sizes = [size for size in op.attr("qkv_hidden_sizes", ()) if size]
    width = weights.shape[1]
    if not sizes and isinstance(width, int):
        sizes = [width // 3] * 3
    operands = (joint, b.ints(sizes)) if sizes else (joint,)
    parts = b.node("Split", *operands, axis=2, outputs=3, num_outputs=None if sizes else 3).outputs
    for at, part in enumerate(parts):
        part.type, part.shape = x.type, ir.Shape([x.shape[0], x.shape[1], sizes[at] if sizes else None])
    return parts


def _half(b: Builder, past: ir.Value, at: int) -> ir.Value:
    """The keys or the values of a past [2, batch, heads, sequence, size]."""
    return _row(b, of_rank(b, past, 5), at)


@composed(
    "MultiHeadAttention",
    "query key value bias attention_bias past_key past_value",
    operands="query key value bias key_padding_mask attention_bias past_key past_value past_sequence_length "
    "cache_indirection",
    weights="bias",
    outputs=lambda node: {
        "1": "query key bias past_key",
        "2": "query value bias past_value",
        "3": "query key bias attention_bias past_key",
    },
    domain=MICROSOFT,
)
def multi_head_attention(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = softmax(scale Q K^T + masks) V for each head, bias added to query, key and value before.

    Keys and values of 4 dimensions take no bias. Not covered: cache_indirection.
    """
    b, heads = op.b, op.attr("num_heads")
    if op.get("value") is None or op.get("key") is None:
        op.refuse("query, key and value are packed into one of a rank that is not known; give the inputs their shapes")
    if op.get("cache_indirection") is not None:
        op.refuse("cache_indirection has no rule")
    Q, K, V = (_operand_heads(op, name, heads) for name in ("query", "key", "value"))
    for name in ("past_key", "past_value"):
        past = op.get(name)
        if past is not None and name == "past_key":
            K = after(b, of_rank(b, past, 4), K)
        elif past is not None:
            V = after(b, of_rank(b, past, 4), V)
    past = op.get("past_key")
    Y, scores = _attended(op, Q, K, V, "key_padding_mask", b.ints([0]) if past is None else b.dim(past, 2))
    return [merge_heads(b, Y), K, V, b.Cast(scores, to=Q.dtype)]


def _operand_heads(op: Adjoint, name: str, heads: int) -> ir.Value:
    """query, key or value with its part of the bias, [batch, heads, sequence, size]."""
    b, x = op.b, op[name]
    rank = 3 if x.shape is None else len(x.shape)
    if rank == 4:
        return x
    x, bias = split_heads(b, of_rank(b, x, 3), heads), op.get("bias")
    if bias is None:
        return x
    part = _bias_part(op, bias, name)
    rows = b.op("Reshape", part, b.ints([1, heads, 1, -1]), shape=ir.Shape([1, heads, 1, None]))
    return b.op("Add", x, rows, shape=x.shape)


def _bias_part(op: Adjoint, bias: ir.Value, name: str) -> ir.Value:
    """The bias is those of query, key (of one width) and value, one behind the other."""
    b = op.b
    query = of_rank(b, op["query"], 3)
    width = b.dim(query, 2)
    bounds = {"query": (b.ints([0]), width), "key": (width, b.Add(width, width)), "value": (b.Add(width, width), None)}
    start, end = bounds[name]
    last = b.ints([2**31 - 1]) if end is None else end
    return b.op("Slice", bias, start, last, b.ints([0]), dtype=bias.dtype, shape=ir.Shape([None]))


# --- what is shared ------------------------------------------------------------------------------------------


def _attended(op: Adjoint, Q: ir.Value, K: ir.Value, V: ir.Value, mask: str, ahead: ir.Value) -> list[ir.Value]:
    """softmax(scale Q K^T + mask + attention_bias) V, in the operands' type, and what the softmax is of.

    Args:
        mask: the operand's name.
        ahead: how many keys come before that of the first query, INT64 [1]. Where unidirectional is set, no query sees
            a key behind its own, but for the last query: ONNX Runtime's kernel leaves its row as it is.
    """
    b, bias = op.b, op.get("attention_bias")
    scores = scaled_scores(op, op.wide(Q), op.wide(K), op.attr("scale", 0.0) or None)
    shape = scores.shape
    if op.get(mask) is not None:
        allowed = b.Cast(_allowed(op, mask, Q, K), to=scores.dtype)
        scores = b.op("Add", scores, (1.0 - allowed) * op.attr("mask_filter_value", -10000.0), shape=shape)
    if bias is not None:
        scores = b.op("Add", scores, op.wide(bias), shape=shape)
    if op.attr("unidirectional", 0):
        rows = places(b, Q)
        last = b.Equal(rows, b.dim(Q, 2) - 1)
        seen = b.Or(b.LessOrEqual(positions(b, K, 2), rows + ahead), last)
        scores = b.op("Where", seen, scores, b.scalar_like(-math.inf, scores), dtype=scores.dtype, shape=shape)
    P = b.op("Softmax", scores, axis=-1, shape=shape)
    return [b.Cast(weighted(b, P, op.wide(V)), to=V.dtype), scores]


def _allowed(op: Adjoint, name: str, Q: ir.Value, K: ir.Value) -> ir.Value:
    """Which keys may be seen, BOOL, to broadcast against [batch, heads, queries, keys]."""
    b, mask, rank = op.b, op[name], op.rank(name)
    if rank == 1:
        return _lengths(op, mask, Q, K)
    if rank not in (2, 3):
        op.refuse(f"a mask of {rank} dimensions has no rule")
    shape = ir.Shape([mask.shape[0], *[1] * (4 - rank), *mask.shape[1:]]) if mask.shape is not None else None
    wide = b.op("Unsqueeze", mask, b.ints(range(1, 5 - rank)), shape=shape)
    return b.Greater(wide, 0)


def _lengths(op: Adjoint, mask: ir.Value, Q: ir.Value, K: ir.Value) -> ir.Value:
    """Keys up to an end for each row, and, of a mask of two numbers a row, from a start; it may hold more."""
    b, keys = op.b, op.b.Cast(positions(op.b, K, 2), to=mask.dtype)
    rows, batch = (x.shape[0] if x.shape is not None else ir.SymbolicDim(None) for x in (mask, Q))
    known = isinstance(rows, int) and isinstance(batch, int)
    count = b.dim(Q, 0)
    before = b.Less(keys, _numbers(b, mask, b.ints([0]), count))
    if (known and rows != 2 * batch) or same_dim(rows, batch):
        return before
    nothing = b.zeros(count, mask.dtype or ir.DataType.INT32)
    starts = _numbers(b, b.op("Concat", mask, nothing, axis=0, dtype=mask.dtype), count, count * 2)
    twice = b.Equal(b.op("Shape", mask, dtype=ir.DataType.INT64, shape=ir.Shape([1])), count * 2)
    return b.And(before, b.Or(b.GreaterOrEqual(keys, starts), b.op("Not", twice, shape=ir.Shape([1]))))


def _numbers(b: Builder, mask: ir.Value, start: ir.Value, end: ir.Value) -> ir.Value:
    part = b.op("Slice", mask, start, end, b.ints([0]), dtype=mask.dtype, shape=ir.Shape([None]))
    return b.op("Reshape", part, b.ints([-1, 1, 1, 1]), dtype=mask.dtype, shape=ir.Shape([None, 1, 1, 1]))


def _row(b: Builder, x: ir.Value, at: int) -> ir.Value:
    assert x.shape is not None
    return b.op("Gather", x, b.constant(at, ir.DataType.INT64), axis=0, shape=ir.Shape(x.shape[1:]))
