"""The rotary embedding of positions: ONNX's operator and ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint
from gradcut.rules.attention import dims_of, merge_heads, of_rank, positions, split_heads
from gradcut.rules.compose import composed
from gradcut.rules.contrib import MICROSOFT


@composed("RotaryEmbedding", "X cos_cache sin_cache", since=23)
def rotary_embedding(op: Adjoint) -> Sequence[ir.Value | None]:
    """Each pair (x1, x2) of a head turned by its position's angle: (c x1 - s x2, s x1 + c x2); Su et al. 2021.

    The cotangent of X is turned back; those of the caches are summed over the heads, and over equal positions.
    """
    b, X = op.b, op["X"]
    heads = op.attr("num_heads", 0)
    flat = len(X.shape) == 3 if X.shape is not None else bool(heads)
    if flat and not heads:
        op.refuse("X has rank 3, and num_heads is not said")
    x = split_heads(b, of_rank(b, X, 3), heads) if flat else of_rank(b, X, 4)
    cos, sin = (_at_positions(op, name) for name in ("cos_cache", "sin_cache"))
    turned = rotated(b, x, cos, sin, op.attr("rotary_embedding_dim", 0), bool(op.attr("interleaved", 0)))
    return [merge_heads(b, turned) if flat else turned]


def _at_positions(op: Adjoint, name: str) -> ir.Value:
    """A cache [batch, 1, sequence, size / 2]."""
    b, cache, ids = op.b, op[name], op.get("position_ids")
    if ids is not None:
        width = cache.shape[1] if cache.shape is not None else None
        shape = ir.Shape([*dims_of(ids, 2), width])
        cache = b.op("Gather", of_rank(b, cache, 2), ids, axis=0, shape=shape)
    batch, length, width = dims_of(of_rank(b, cache, 3), 3)
    return b.op("Unsqueeze", cache, b.ints([1]), shape=ir.Shape([batch, 1, length, width]))


# --- ONNX Runtime's own ----------------------------------------------------------------------------------------------


@composed(
    "RotaryEmbedding",
    "input cos_cache sin_cache",
    operands="input position_ids cos_cache sin_cache",
    domain=MICROSOFT,
)
def microsoft_rotary_embedding(op: Adjoint) -> Sequence[ir.Value | None]:
    """Pairs of a head turned by the angle of their position; Su et al. 2021. Position ids: [batch, sequence], or the
    first one, [1], of all rows.

    Not covered: is_packed_batching, and a rank of the input that is unknown.
    """
    b, rank = op.b, op.rank("input")
    if op.attr("is_packed_batching", 0):
        op.refuse("is_packed_batching=1 has no rule")
    size, heads = op.attr("rotary_embedding_dim", 0), op.attr("num_heads", 0)
    cos, sin = (of_rank(b, op[name], 2) for name in ("cos_cache", "sin_cache"))
    if rank == 3 and not heads:
        heads = _heads_by_cache(op, cos)
    x = split_heads(b, op["input"], heads) if rank == 3 else op["input"]
    ids = op["position_ids"]
    if op.rank("position_ids") == 1:
        ids = b.op("Unsqueeze", ids + positions(b, x, 2), b.ints([0]), shape=ir.Shape([1, None]))
    y = rotated(b, x, angles(b, cos, ids), angles(b, sin, ids), size, bool(op.attr("interleaved", 0)))
    return [merge_heads(b, y) if rank == 3 else y]


def _heads_by_cache(op: Adjoint, cos: ir.Value) -> int:
    """Where the number of heads is not said, a head is as wide as the whole of a cache turns."""
    shape, half = op["input"].shape, cos.shape[1] if cos.shape is not None else None
    hidden = shape[2] if shape is not None else None
    if not isinstance(hidden, int) or not isinstance(half, int) or hidden % (2 * half):
        op.refuse("num_heads is not said, and the widths of input and cos_cache do not say it")
    return hidden // (2 * half)


def angles(b: Builder, cache: ir.Value, ids: ir.Value) -> ir.Value:
    """[batch, 1, sequence, size / 2]"""
    width = cache.shape[1] if cache.shape is not None else None
    batch, length = (*ids.shape,) if ids.shape is not None else (None, None)
    found = b.op("Gather", cache, ids, axis=0, shape=ir.Shape([batch, length, width]))
    return b.op("Unsqueeze", found, b.ints([1]), shape=ir.Shape([batch, 1, length, width]))


# --- what they share -------------------------------------------------------------------------------------------------


def rotated(b: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value, size: int, interleaved: bool) -> ir.Value:
    """`x` [batch, heads, sequence, size of a head] turned in its first `size` numbers (0: all of them)."""
    assert x.shape is not None
    rest, whole = None, x.shape
    if size and size != whole[3]:
        x, rest = _cut(b, x, 0, size), _cut(b, x, size, None)
    assert x.shape is not None
    one, two = _pairs(b, x, interleaved)
    if interleaved:
        shapes = (ir.Shape([*dims_of(cache, 4), 1]) for cache in (cos, sin))
        cos, sin = (b.op("Unsqueeze", c, b.ints([4]), shape=s) for c, s in zip((cos, sin), shapes, strict=True))
    real, imaginary = cos * one - sin * two, sin * one + cos * two
    if interleaved:
        both = b.op("Concat", real, imaginary, axis=4, shape=ir.Shape([*dims_of(one, 5)[:4], 2]))
        turned = b.op("Reshape", both, b.ints([0, 0, 0, -1]), shape=x.shape)
    else:
        turned = b.op("Concat", real, imaginary, axis=3, shape=x.shape)
    return turned if rest is None else b.op("Concat", turned, rest, axis=3, shape=whole)


def _cut(b: Builder, x: ir.Value, start: int, end: int | None) -> ir.Value:
    assert x.shape is not None
    length = end - start if end is not None else x.shape[3] - start if isinstance(x.shape[3], int) else None
    bounds = b.ints([start]), b.ints([2**31 - 1 if end is None else end]), b.ints([3])
    return b.op("Slice", x, *bounds, shape=ir.Shape([*x.shape[:3], length]))


def _pairs(b: Builder, x: ir.Value, interleaved: bool) -> tuple[ir.Value, ir.Value]:
    """The first and the second of each pair: neighbours, [.., size / 2, 1], or the halves, [.., size / 2]."""
    assert x.shape is not None
    half = x.shape[3] // 2 if isinstance(x.shape[3], int) else None
    if interleaved:
        x = b.op("Reshape", x, b.ints([0, 0, 0, -1, 2]), shape=ir.Shape([*x.shape[:3], half, 2]))
    assert x.shape is not None
    split = b.node("Split", x, axis=-1, num_outputs=2, outputs=2)
    for part in split.outputs:
        part.type, part.shape = x.type, ir.Shape([*x.shape[:3], half, 1] if interleaved else [*x.shape[:3], half])
    return split.outputs[0], split.outputs[1]
