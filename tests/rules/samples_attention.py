"""Samples of ONNX's attention and of the rotary embedding of positions.

In float64 ONNX Runtime gives NaN where a query sees no key, and the operator's page zeros: no samples of that there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Array, Sample, ints, normal, sample


def samples() -> Iterator[Sample]:
    yield from _plain()
    yield from _masked()
    yield from _cached()
    yield from _shown()
    yield from _rotary()


def qkv(heads: int = 2, groups: int = 2, queries: int = 3, keys: int = 4) -> tuple[Array, Array, Array]:
    """[batch 2, heads, sequence, size]: queries and keys of size 4, values of size 3."""
    return normal(2, heads, queries, 4), normal(2, groups, keys, 4), normal(2, groups, keys, 3)


def flat(heads: int = 2, groups: int = 2) -> tuple[Array, Array, Array]:
    return normal(2, 3, heads * 4), normal(2, 4, groups * 4), normal(2, 4, groups * 3)


def _attention(name: str, *operands: Array | None, **options: Any) -> Sample:
    return sample("Attention", name, *operands, **{"opset": 23, **options})


def _plain() -> Iterator[Sample]:
    yield _attention("plain", *qkv())
    yield _attention("scale", *qkv(), scale=0.3)
    yield _attention("softcap", *qkv(), softcap=0.8)
    yield _attention("grouped", *qkv(4, 2))
    yield _attention("one_key_head", *qkv(3, 1))
    yield _attention("flat", *flat(), q_num_heads=2, kv_num_heads=2)
    yield _attention("flat_grouped", *flat(4, 2), q_num_heads=4, kv_num_heads=2, scale=0.4)
    yield _attention("causal", *qkv(), is_causal=1)
    yield _attention("causal_more_queries", *qkv(queries=4, keys=2), is_causal=1)
    yield _attention("precision", *qkv(), softmax_precision=1, dtypes="float16")
    yield _attention("one_of_each", normal(1, 1, 1, 4), normal(1, 1, 1, 4), normal(1, 1, 1, 3))


def _masked() -> Iterator[Sample]:
    for name, shape in {
        "2": (3, 4),
        "3": (1, 3, 4),
        "3_heads": (2, 3, 4),
        "4": (2, 2, 3, 4),
        "4_one": (2, 1, 3, 4),
    }.items():
        yield _attention(f"mask_{name}", *qkv(), normal(*shape))
    yield _attention("mask_causal", *qkv(), normal(3, 4), is_causal=1)
    yield _attention("mask_grouped", *qkv(4, 2), normal(4, 3, 4), softcap=1.5)
    yield _attention("mask_flat", *flat(), normal(2, 1, 3, 4), q_num_heads=2, kv_num_heads=2)
    yield _attention("mask_infinite", *qkv(), with_infinities(), dtypes="float16")
    chosen = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], bool)
    yield _attention("mask_bool", *qkv(), chosen, runtime="attn_mask", dtypes="float16")
    yield _attention("mask_bool_causal", *qkv(), chosen, runtime="attn_mask", is_causal=1, dtypes="float16")


def with_infinities() -> Array:
    """A mask with a query that sees no key."""
    mask = normal(3, 4)
    mask[0, 2:] = -np.inf
    mask[1] = -np.inf
    return mask


def _cached() -> Iterator[Sample]:
    past = normal(2, 2, 2, 4), normal(2, 2, 2, 3)
    both = {"outputs": 3}
    yield _attention("past", *qkv(), None, *past, **both)
    yield _attention("past_causal", *qkv(), None, *past, is_causal=1, **both)
    yield _attention("past_mask", *qkv(), normal(3, 6), *past, **both)
    yield _attention("past_grouped", *qkv(4, 2), normal(2, 1, 3, 6), *past, is_causal=1, softcap=2.0, **both)
    yield _attention("past_flat", *flat(4, 2), None, *past, q_num_heads=4, kv_num_heads=2, is_causal=1, **both)
    filled = {"opset": 24, "runtime": "nonpad_kv_seqlen", "dtypes": "float16"}
    none = (None, None, None)
    yield _attention("filled", *qkv(), *none, ints(3, 4), **filled)
    yield _attention("filled_causal", *qkv(), *none, ints(3, 4), is_causal=1, **filled)
    yield _attention("filled_too_little", *qkv(), *none, ints(1, 4), is_causal=1, **filled)
    yield _attention("filled_mask", *qkv(), normal(3, 4), None, None, ints(2, 4), is_causal=1, **filled)


def _shown() -> Iterator[Sample]:
    past = normal(2, 2, 2, 4), normal(2, 2, 2, 3)
    for mode in range(4):
        own = {"qk_matmul_output_mode": mode, "outputs": 4}
        yield _attention(f"shown_{mode}", *qkv(), normal(3, 6), *past, softcap=0.9, **own)
        yield _attention(f"shown_{mode}_grouped", *qkv(4, 2), None, *past, **own)
    yield _attention("shown_empty", *qkv(), with_infinities(), qk_matmul_output_mode=3, outputs=4, dtypes="float16")


def _rotary() -> Iterator[Sample]:
    op, angle = "RotaryEmbedding", lambda *shape: (np.cos(normal(*shape)), np.sin(normal(*shape)))
    ids = ints(0, 2, 1, 4, 2, 0).reshape(2, 3)
    yield sample(op, "plain", normal(2, 2, 3, 4), *angle(2, 3, 2), opset=23)
    yield sample(op, "pairs", normal(2, 2, 3, 4), *angle(2, 3, 2), opset=23, interleaved=1)
    yield sample(op, "flat", normal(2, 3, 8), *angle(2, 3, 2), opset=23, num_heads=2)
    yield sample(op, "flat_pairs", normal(2, 3, 8), *angle(2, 3, 2), opset=23, num_heads=2, interleaved=1)
    for interleaved in (0, 1):
        own = {"opset": 23, "interleaved": interleaved, "runtime": "position_ids"}
        yield sample(op, f"ids_{interleaved}", normal(2, 2, 3, 4), *angle(5, 2), ids, **own)
        part = {**own, "rotary_embedding_dim": 4}
        yield sample(op, f"part_{interleaved}", normal(2, 2, 3, 6), *angle(5, 2), ids, **part)
        yield sample(op, f"part_flat_{interleaved}", normal(2, 3, 12), *angle(5, 2), ids, num_heads=2, **part)
