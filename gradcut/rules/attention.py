"""Attention of ONNX, and what it shares with ONNX Runtime's own operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from gradcut.dims import Dim
from gradcut.ops import Builder, Operand
from gradcut.rules.adjoint import Adjoint
from gradcut.rules.compose import composed

_BOOL, _INT64 = ir.DataType.BOOL, ir.DataType.INT64


@composed("Attention", "Q K V attn_mask past_key past_value", outputs=lambda node: _reach(node), since=23)
def attention(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = P V, P = softmax(cap(scale Q K^T) + bias) over the keys, for each head; Vaswani et al. 2017.

    The bias is the mask, and -inf where is_causal, a window or the padding of the cache forbids it. A query that may
    see no key gives zeros. In half precision the backward computes in float32.
    """
    Q, K, V = (_heads(op, name) for name in ("Q", "K", "V"))
    K, V = (_with_past(op, new, past) for new, past in ((K, "past_key"), (V, "past_value")))
    K_wide, V_wide = op.wide(K), op.wide(V)
    scores = scaled_scores(op, op.wide(Q), K_wide, op.attr("scale"))
    capped = soft_cap(op.b, scores, op.attr("softcap", 0.0))
    bias = _bias(op, Q, K, capped)
    P, empty = probabilities(op, capped, bias, certain=_sees_some_key(op))
    Y = guarded(op.b, empty, weighted(op.b, P, V_wide))
    shown = _shown(op, scores, capped, bias, guarded(op.b, empty, P))
    kind = op["Q"].dtype
    return [op.b.Cast(_merged(op, Y), to=kind), K, V, None if shown is None else op.b.Cast(shown, to=kind)]


def _reach(node: ir.Node) -> dict[str, str]:
    """present_key and present_value are the past and the new; the scores do not depend on the values."""
    products = "Q K past_key"
    mode = node.attributes["qk_matmul_output_mode"].as_int() if "qk_matmul_output_mode" in node.attributes else 0
    shown = f"{products} attn_mask" if mode >= 2 else products
    return {"present_key": "K past_key", "present_value": "V past_value", "qk_matmul_output": shown}


# --- operands ------------------------------------------------------------------------------------------------


def _is_flat(op: Adjoint) -> bool:
    """Whether Q, K and V are [batch, sequence, hidden]."""
    shape = op["Q"].shape
    return len(shape) == 3 if shape is not None else "q_num_heads" in op.node.attributes


def _heads(op: Adjoint, name: str) -> ir.Value:
    """An operand as [batch, heads, sequence, size]."""
    if not _is_flat(op):
        return of_rank(op.b, op[name], 4)
    return split_heads(op.b, op[name], op.attr("q_num_heads" if name == "Q" else "kv_num_heads"))


def of_rank(b: Builder, x: ir.Value, rank: int) -> ir.Value:
    """`x`, whose rank the operator's page says where the file does not."""
    return x if x.shape is not None else b.op("Identity", x, dtype=x.dtype, shape=ir.Shape([None] * rank))


def dims_of(x: ir.Value, rank: int) -> list[Dim | None]:
    """The dimensions of a value of some rank, None where nothing is known."""
    return [None] * rank if x.shape is None else list(x.shape)


def split_heads(b: Builder, x: ir.Value, heads: int) -> ir.Value:
    """[batch, sequence, heads * size] as [batch, heads, sequence, size]."""
    batch, length, hidden = dims_of(x, 3)
    size = hidden // heads if isinstance(hidden, int) else None
    parts = b.op(
        "Reshape", x, b.ints([0, 0, heads, -1 if size is None else size]), shape=ir.Shape([batch, length, heads, size])
    )
    return b.Transpose(parts, perm=[0, 2, 1, 3])


def merge_heads(b: Builder, x: ir.Value) -> ir.Value:
    """[batch, heads, sequence, size] as [batch, sequence, heads * size]."""
    batch, heads, length, size = dims_of(x, 4)
    hidden = heads * size if isinstance(heads, int) and isinstance(size, int) else None
    flat = b.Transpose(x, perm=[0, 2, 1, 3])
    return b.op(
        "Reshape", flat, b.ints([0, 0, -1 if hidden is None else hidden]), shape=ir.Shape([batch, length, hidden])
    )


def _merged(op: Adjoint, Y: ir.Value) -> ir.Value:
    return merge_heads(op.b, Y) if _is_flat(op) else Y


def _with_past(op: Adjoint, new: ir.Value, name: str) -> ir.Value:
    past = op.get(name)
    return new if past is None else after(op.b, of_rank(op.b, past, 4), new)


def after(b: Builder, past: ir.Value, new: ir.Value) -> ir.Value:
    """The past and the new along the sequence, [batch, heads, sequence, size]."""
    assert new.shape is not None and past.shape is not None
    lengths = past.shape[2], new.shape[2]
    total = sum(lengths) if all(isinstance(n, int) for n in lengths) else None
    shape = ir.Shape([new.shape[0], new.shape[1], total, new.shape[3]])
    return b.op("Concat", past, new, axis=2, shape=shape)


# --- products ------------------------------------------------------------------------------------------------


def scaled_scores(op: Adjoint, Q: ir.Value, K: ir.Value, scale: float | None) -> ir.Value:
    """scale Q K^T, [batch, heads of Q, queries, keys]; scale is 1/sqrt(size) where it is not said."""
    b = op.b
    scores = _grouped(b, Q * _scale(b, Q, scale), K, b.Transpose(K, perm=[0, 1, 3, 2]))
    return scores


def _scale(b: Builder, Q: ir.Value, scale: float | None) -> Operand:
    if scale is not None:
        return scale
    size = Q.shape[3] if Q.shape is not None else None
    if isinstance(size, int):
        return 1.0 / math.sqrt(size) if size else 1.0
    width = b.op("Squeeze", b.op("Shape", Q, start=3, end=4), shape=ir.Shape([]))
    return b.Reciprocal(b.Sqrt(b.Cast(width, to=Q.dtype)))


def weighted(b: Builder, P: ir.Value, V: ir.Value) -> ir.Value:
    """P V, [batch, heads of Q, queries, size of V]."""
    return _grouped(b, P, V, V)


def _grouped(b: Builder, left: ir.Value, keys: ir.Value, right: ir.Value) -> ir.Value:
    """left right, where each head of the keys serves as many neighbouring heads of the left: those are its rows.

    So nothing is repeated in the forward, and the sum over a group is a part of the product in the backward.
    """
    assert left.shape is not None and right.shape is not None
    if _same_heads(left.shape[1], keys.shape[1] if keys.shape is not None else None):
        return b.op("MatMul", left, right, shape=ir.Shape([*left.shape[:3], right.shape[3]]))
    rows = ir.Shape([left.shape[0], keys.shape[1] if keys.shape is not None else None, None, left.shape[3]])
    folded = b.op("Reshape", left, b.dims(b.dim(keys, 0), b.dim(keys, 1), -1, b.dim(left, 3)), shape=rows)
    product = b.op("MatMul", folded, right, shape=ir.Shape([*rows[:3], right.shape[3]]))
    whole = b.dims(*(b.dim(left, axis) for axis in range(3)), b.dim(right, 3))
    return b.op("Reshape", product, whole, shape=ir.Shape([*left.shape[:3], right.shape[3]]))


def _same_heads(one: Dim | None, other: Dim | None) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one == other


def soft_cap(b: Builder, scores: ir.Value, cap: float) -> ir.Value:
    """cap tanh(scores / cap); 0 is no cap."""
    return b.Tanh(scores * (1.0 / cap)) * cap if cap > 0 else scores


# --- what may be seen ----------------------------------------------------------------------------------------


def probabilities(
    op: Adjoint, scores: ir.Value, bias: ir.Value | None, *, certain: bool
) -> tuple[ir.Value, ir.Value | None]:
    """softmax(scores + bias) over the keys, and which queries see no key.

    Of those queries the bias, which is -inf throughout, is left out, so that nothing is NaN; what comes out for them
    is to be thrown away.

    Args:
        certain: every query sees some key.
    """
    b, empty = op.b, None
    if bias is not None and not certain:
        most = b.ReduceMax(bias, b.ints([-1]), keepdims=1)
        empty = b.Equal(most, -math.inf)
        bias = b.Where(empty, b.scalar_like(0.0, bias), bias)
    total = scores if bias is None else b.op("Add", scores, bias, shape=scores.shape)
    return b.op("Softmax", total, axis=-1, shape=scores.shape), empty


def guarded(b: Builder, empty: ir.Value | None, x: ir.Value) -> ir.Value:
    """Zero for the queries that see no key, [batch, heads, queries, any]."""
    return x if empty is None else b.op("Where", empty, b.scalar_like(0.0, x), x, shape=x.shape)


def _sees_some_key(op: Adjoint) -> bool:
    """Whether the causal frontier alone forbids keys: the first of them it never does."""
    windows = op.attr("left_window_size", -1) >= 0 or op.attr("right_window_size", -1) >= 0
    return op.get("attn_mask") is None and op.get("nonpad_kv_seqlen") is None and not windows


def _bias(op: Adjoint, Q: ir.Value, K: ir.Value, scores: ir.Value) -> ir.Value | None:
    """What is added to the scores, -inf where a query may not see a key; None where there is nothing."""
    b, kind = op.b, scores.dtype
    mask, allowed = op.get("attn_mask"), _allowed(op, Q, K)
    if mask is None:
        return None if allowed is None else forbidding(b, allowed, kind)
    mask = _padded(op, mask, K)
    if mask.dtype == _BOOL:
        both = mask if allowed is None else b.And(mask, allowed)
        return forbidding(b, both, kind)
    bias = b.Cast(mask, to=kind)
    return bias if allowed is None else b.Where(allowed, bias, b.scalar_like(-math.inf, bias))


def forbidding(b: Builder, allowed: ir.Value, kind: ir.DataType | None) -> ir.Value:
    """0 where allowed, -inf elsewhere."""
    zero, never = (b.constant(number, kind or ir.DataType.FLOAT) for number in (0.0, -math.inf))
    return b.op("Where", allowed, zero, never, dtype=kind, shape=allowed.shape)


def _padded(op: Adjoint, mask: ir.Value, K: ir.Value) -> ir.Value:
    """A mask shorter than the keys forbids those behind it."""
    assert K.shape is not None
    last, keys = (None if mask.shape is None else mask.shape[-1]), K.shape[2]
    if not isinstance(last, int) or not isinstance(keys, int) or last in (1, keys):
        return mask
    b, rank = op.b, len(mask.shape or ())
    fill = b.constant(False if mask.dtype == _BOOL else -math.inf, mask.dtype)
    pads = b.ints([*[0] * (2 * rank - 1), keys - last])
    return b.op("Pad", mask, pads, fill, shape=ir.Shape([*(mask.shape or ())[:-1], keys]))


def _allowed(op: Adjoint, Q: ir.Value, K: ir.Value) -> ir.Value | None:
    """Which keys each query may see, whatever the mask says, [queries, keys] or [batch, 1, queries, keys]."""
    b, parts = op.b, list[ir.Value]()
    left, right = op.attr("left_window_size", -1), op.attr("right_window_size", -1)
    bounded = op.attr("is_causal", 0) or left >= 0 or right >= 0
    filled = op.get("nonpad_kv_seqlen")
    if filled is not None:
        filled = b.op("Reshape", filled, b.ints([-1, 1, 1, 1]), shape=ir.Shape([None, 1, 1, 1]))
    if bounded:
        ahead = positions(b, K, 2) - (places(b, Q) + _offset(op, Q, filled))
        if op.attr("is_causal", 0):
            parts.append(b.LessOrEqual(ahead, 0))
        if left >= 0:
            parts.append(b.GreaterOrEqual(ahead, -left))
        if right >= 0:
            parts.append(b.LessOrEqual(ahead, right))
    if filled is not None:
        parts.append(b.Less(positions(b, K, 2), filled))
    return all_of(b, parts)


def all_of(b: Builder, parts: Sequence[ir.Value]) -> ir.Value | None:
    found: ir.Value | None = None
    for part in parts:
        found = part if found is None else b.And(found, part)
    return found


def _offset(op: Adjoint, Q: ir.Value, filled: ir.Value | None) -> Operand:
    """How many keys stand before the first query."""
    past = op.get("past_key")
    if past is not None:
        return op.b.dim(past, 2)
    return 0 if filled is None else filled - op.b.dim(Q, 2)


def places(b: Builder, x: ir.Value) -> ir.Value:
    """The numbers of the queries of `x`, [queries, 1]."""
    return b.op("Unsqueeze", positions(b, x, 2), b.ints([1]), shape=ir.Shape([x.shape[2] if x.shape else None, 1]))


def positions(b: Builder, x: ir.Value, axis: int) -> ir.Value:
    """0, 1, 2, ... along an axis of `x`, INT64 [n]."""
    length = x.shape[axis] if x.shape is not None else None
    if isinstance(length, int):
        return b.ints(range(length))
    zero, one = (b.constant(n, _INT64) for n in (0, 1))
    end = b.op("Squeeze", b.dim(x, axis), dtype=_INT64, shape=ir.Shape([]))
    return b.op("Range", zero, end, one, dtype=_INT64, shape=ir.Shape([length]))


def _shown(op: Adjoint, scores: ir.Value, capped: ir.Value, bias: ir.Value | None, P: ir.Value) -> ir.Value | None:
    """qk_matmul_output: the scores, capped, with the bias, or the probabilities. What is -inf depends on nothing."""
    mode = op.attr("qk_matmul_output_mode", 0)
    if mode != 2 or bias is None:
        return {0: scores, 1: capped, 2: capped, 3: P}.get(mode)
    b = op.b
    never = b.scalar_like(-math.inf, bias)
    return b.op("Where", b.Equal(bias, never), never, b.Add(capped, bias), shape=scores.shape)
