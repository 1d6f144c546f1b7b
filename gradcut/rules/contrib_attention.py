"""Attention of ONNX Runtime's own: with the projections in it, of several heads, of grouped ones.

Operands and attributes: docs/ContribOperators.md of onnxruntime. Masks add `mask_filter_value` where they forbid.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gradcut.ops import Builder, same_dim
from gradcut.rules.adjoint import Adjoint
from gradcut.rules.attention import (
    after,
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

    Not covered: do_rotary, past_present_share_buffer, a mask_index of 4 dimensions or of 3 numbers a row.
    """
    if op.attr("do_rotary", 0) or op.attr("past_present_share_buffer", 0):
        op.refuse("do_rotary or past_present_share_buffer has no rule")
    b, heads = op.b, op.attr("num_heads")
    Q, K, V = (split_heads(b, x, heads) for x in _projected(op))
    past = op.get("past")
    if past is not None:
        K, V = (after(b, _half(b, past, at), new) for at, new in ((0, K), (1, V)))
    present = [b.op("Unsqueeze", x, b.ints([0]), shape=ir.Shape([1, *(x.shape or ())])) for x in (K, V)]
    both = b.op("Concat", *present, axis=0, shape=ir.Shape([2, *(K.shape or ())]))
    Y = _attended(op, Q, K, V, "mask_index")
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
    outputs=lambda node: {"1": "query key bias past_key", "2": "query value bias past_value"},
    domain=MICROSOFT,
)
def multi_head_attention(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = softmax(scale Q K^T + masks) V for each head, bias added to query, key and value before.

    Not covered: query, key and value packed into one, cache_indirection, the product of query and key as an output,
    a key_padding_mask of 3 numbers a row.
    """
    b, heads = op.b, op.attr("num_heads")
    if op.get("value") is None or op.get("key") is None:
        op.refuse("packed query, key and value have no rule")
    if op.get("cache_indirection") is not None or op.cotangent(3) is not None:
        op.refuse("cache_indirection, and a derivative of the output qk, have no rule")
    Q, K, V = (_operand_heads(op, name, heads) for name in ("query", "key", "value"))
    for name in ("past_key", "past_value"):
        past = op.get(name)
        if past is not None and name == "past_key":
            K = after(b, of_rank(b, past, 4), K)
        elif past is not None:
            V = after(b, of_rank(b, past, 4), V)
    Y = _attended(op, Q, K, V, "key_padding_mask")
    return [merge_heads(b, Y), K, V]


def _operand_heads(op: Adjoint, name: str, heads: int) -> ir.Value:
    """query, key or value with its part of the bias, [batch, heads, sequence, size]."""
    b, x = op.b, op[name]
    rank = 3 if x.shape is None else len(x.shape)
    if rank == 5:
        op.refuse("packed query, key and value have no rule")
    x = x if rank == 4 else split_heads(b, of_rank(b, x, 3), heads)
    bias = op.get("bias")
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


@composed(
    "GroupQueryAttention",
    "query key value cos_cache sin_cache attention_bias",
    operands="query key value past_key past_value seqlens_k total_sequence_length cos_cache sin_cache position_ids "
    "attention_bias head_sink k_scale v_scale q_norm_weight k_norm_weight",
    outputs=lambda node: {"1": "query key cos_cache sin_cache", "2": "query value"},
    domain=MICROSOFT,
)
def group_query_attention(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = softmax(cap(scale Q K^T) + masks) V, each head of K and V serving several of Q, which rotate before.

    Not covered: past keys and values, head_sink and smooth_softmax, norms of Q and K, the scores as an output.
    """
    b, heads, groups = op.b, op.attr("num_heads"), op.attr("kv_num_heads")
    _refuse_beyond(op)
    Q, K, V = _grouped_heads(op, heads, groups)
    if op.attr("do_rotary", 0):
        ids = _prompt_positions(op, Q)
        cos, sin = (angles(b, of_rank(b, op[name], 2), ids) for name in ("cos_cache", "sin_cache"))
        Q, K = (rotated(b, x, cos, sin, 0, bool(op.attr("rotary_interleaved", 0))) for x in (Q, K))
    scores = scaled_scores(op, op.wide(Q), op.wide(K), op.attr("scale", 0.0) or None)
    scores = soft_cap(b, scores, op.attr("softcap", 0.0))
    bias = op.get("attention_bias")
    if bias is not None:
        scores = b.op("Add", scores, op.wide(bias), shape=scores.shape)
    bias = forbidding(b, _seen_by_group(op, Q, K), scores.dtype)
    P, empty = probabilities(op, scores, bias, certain=op.attr("local_window_size", -1) <= 0)
    Y = b.Cast(guarded(b, empty, weighted(b, P, op.wide(V))), to=V.dtype)
    return [merge_heads(b, Y), K, V]


def _refuse_beyond(op: Adjoint) -> None:
    others = ("past_key", "past_value", "head_sink", "k_scale", "v_scale", "q_norm_weight", "k_norm_weight")
    found = [name for name in others if op.get(name) is not None]
    found += [name for name in ("smooth_softmax", "sliding_window_cache") if op.attr(name, 0) > 0]
    if found:
        op.refuse(f"{found[0]} has no rule")
    if op.cotangent(3) is not None:
        op.refuse("a derivative of the output qk has no rule")


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


def _seen_by_group(op: Adjoint, Q: ir.Value, K: ir.Value) -> ir.Value:
    """Which keys a query may see, [batch, 1, queries, keys]: those that its row has, none ahead, and in the window."""
    b, window = op.b, op.attr("local_window_size", -1)
    keys = positions(b, K, 2)
    last = b.op("Reshape", op["seqlens_k"], b.ints([-1, 1, 1, 1]), shape=ir.Shape([None, 1, 1, 1]))
    seen = b.LessOrEqual(keys, b.op("Cast", last, to=7, dtype=ir.DataType.INT64, shape=last.shape))
    if not op.attr("causal", 1):
        return seen
    ahead = keys - places(b, Q)
    seen = b.And(seen, b.LessOrEqual(ahead, 0))
    return b.And(seen, b.Greater(ahead, -window)) if window > 0 else seen


# --- what is shared ------------------------------------------------------------------------------------------


def _attended(op: Adjoint, Q: ir.Value, K: ir.Value, V: ir.Value, mask: str) -> ir.Value:
    """softmax(scale Q K^T + mask + attention_bias) V, in the operands' type; `mask` is the operand's name."""
    b, bias = op.b, op.get("attention_bias")
    scores = scaled_scores(op, op.wide(Q), op.wide(K), op.attr("scale", 0.0) or None)
    shape = scores.shape
    if op.get(mask) is not None:
        allowed = b.Cast(_allowed(op, mask, Q, K), to=scores.dtype)
        scores = b.op("Add", scores, (1.0 - allowed) * op.attr("mask_filter_value", -10000.0), shape=shape)
    if bias is not None:
        scores = b.op("Add", scores, op.wide(bias), shape=shape)
    if op.attr("unidirectional", 0):
        seen = b.LessOrEqual(positions(b, K, 2), places(b, Q) + (b.dim(K, 2) - b.dim(Q, 2)))
        scores = b.op("Add", scores, forbidding(b, seen, scores.dtype), shape=shape)
    P = b.op("Softmax", scores, axis=-1, shape=shape)
    return b.Cast(weighted(b, P, op.wide(V)), to=V.dtype)


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
    """Keys up to an end for each row, [batch], and from a start, [2 * batch]."""
    b, keys = op.b, op.b.Cast(positions(op.b, K, 2), to=mask.dtype)
    rows, batch = (x.shape[0] if x.shape is not None else ir.SymbolicDim(None) for x in (mask, Q))
    twice = isinstance(rows, int) and isinstance(batch, int) and rows == 2 * batch
    if not twice and not same_dim(rows, batch):
        op.refuse(f"a mask of {rows} numbers for a batch of {batch} has no rule; one or two a row have")
    parts = b.op("Reshape", mask, b.ints([2 if twice else 1, -1, 1, 1, 1]), shape=ir.Shape([None, batch, 1, 1, 1]))
    before = b.Less(keys, _row(b, parts, 0))
    return b.And(before, b.GreaterOrEqual(keys, _row(b, parts, 1))) if twice else before


def _row(b: Builder, x: ir.Value, at: int) -> ir.Value:
    assert x.shape is not None
    return b.op("Gather", x, b.constant(at, ir.DataType.INT64), axis=0, shape=ir.Shape(x.shape[1:]))
