"""Samples of ONNX Runtime's own operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Array, Sample, ints, normal, positive, sample


def samples() -> Iterator[Sample]:
    yield from _products()
    yield from _activations()
    yield from _norms()
    yield from _embeddings()
    yield from _attention()
    yield from _heads()
    yield from _groups()
    yield from _rotary()
    yield from _bits()


def contrib(op: str, name: str, *operands: Array | None, **options: Any) -> Sample:
    return sample(op, f"contrib_{name}", *operands, **{"domain": "com.microsoft", "dtypes": "", **options})


def _products() -> Iterator[Sample]:
    op, given = "FusedMatMul", {"needs_rank": True, "dtypes": "float64"}
    yield contrib(op, "plain", normal(2, 3), normal(3, 4), **given)
    yield contrib(op, "alpha", normal(2, 3), normal(3, 4), alpha=0.4, **given)
    yield contrib(op, "left", normal(3, 2), normal(3, 4), transA=1, **given)
    yield contrib(op, "right", normal(2, 3), normal(4, 3), transB=1, alpha=2.0, **given)
    yield contrib(op, "both", normal(5, 3, 2), normal(5, 4, 3), transA=1, transB=1, **given)
    yield contrib(op, "broadcast", normal(2, 1, 3, 2), normal(4, 3, 5), transA=1, **given)
    yield contrib(op, "batches", normal(2, 5, 3), normal(3, 5, 4), transBatchA=1, transBatchB=1, transB=0, **given)
    yield contrib(op, "batches_turned", normal(3, 5, 2), normal(5, 4, 3), transBatchA=1, transA=1, transB=1, **given)
    for name, size in (("one", (1, 1)), ("plain", (3, 3)), ("batches", (2, 4, 2, 2))):
        X = normal(*size) + 3 * np.eye(size[-1], dtype=np.float32)
        yield contrib("Inverse", name, X, needs_rank=True)
    op = "FusedGemm"
    yield contrib(op, "relu", normal(2, 3), normal(3, 4), normal(4), activation="Relu")
    yield contrib(op, "leaky", normal(3, 2), normal(4, 3), normal(2, 4), transA=1, transB=1, alpha=0.5, beta=1.5,
                  activation="LeakyRelu", activation_alpha=0.2)  # fmt: skip
    op, given = "FusedConv", {"kernel_shape": [3, 3], "needs_rank": True}
    image, kernel = normal(1, 2, 5, 5), normal(3, 2, 3, 3)
    yield contrib(op, "relu", image, kernel, normal(3), activation="Relu", **given)
    yield contrib(op, "sum", image, kernel, normal(3), normal(1, 3, 3, 3), activation="Relu", **given)
    for name, settings in {"LeakyRelu": [0.2], "Clip": [-0.7, 0.8], "HardSigmoid": [0.2, 0.5]}.items():
        yield contrib(op, name, image, kernel, activation=name, activation_params=settings, strides=[2, 2], **given)
    for name in ("Tanh", "Sigmoid"):
        yield contrib(op, name, image, kernel, normal(3), activation=name, pads=[1] * 4, **given)


def _activations() -> Iterator[Sample]:
    yield contrib("Gelu", "matrix", normal(3, 4))
    yield contrib("BiasGelu", "vector", normal(2, 3, 4), normal(4))
    yield contrib("FastGelu", "plain", normal(3, 4))
    yield contrib("FastGelu", "bias", normal(2, 3, 4), normal(4))
    yield contrib("QuickGelu", "default", normal(3, 4))
    yield contrib("QuickGelu", "alpha", normal(3, 4), alpha=0.8)


def _norms() -> Iterator[Sample]:
    op, x = "SkipLayerNormalization", lambda: (normal(2, 3, 4), normal(2, 3, 4), positive(4))
    yield contrib(op, "plain", *x(), normal(4))
    yield contrib(op, "bias", *x(), normal(4), normal(4), epsilon=1e-3)
    yield contrib(op, "no_beta", *x())
    yield contrib(op, "sum", *x(), normal(4), normal(4), outputs=4, blank=(1, 2))
    yield contrib(op, "broadcast", normal(2, 3, 4), normal(1, 3, 4), positive(4), normal(4))
    yield contrib(op, "flat_skip", normal(2, 3, 4), normal(3, 4), positive(4), normal(4))
    op = "SkipSimplifiedLayerNormalization"
    yield contrib(op, "plain", *x(), epsilon=1e-5)
    yield contrib(op, "bias", *x(), normal(4), epsilon=1e-3)
    yield contrib(op, "sum", *x(), normal(4), outputs=4, blank=(1, 2), epsilon=1e-5)
    op = "SimplifiedLayerNormalization"
    yield contrib(op, "last", normal(2, 3, 4), positive(4), domain="")
    yield contrib(op, "axis", normal(2, 3, 4), positive(3, 4), axis=1, epsilon=1e-2, domain="", needs_rank=True)


def _embeddings() -> Iterator[Sample]:
    op, ids = "EmbedLayerNormalization", ints(1, 0, 4, 1, 2, 2).reshape(2, 3).astype(np.int32)
    kinds = ints(0, 1, 1, 0, 0, 1).reshape(2, 3).astype(np.int32)
    tables, affine = (normal(5, 4), normal(6, 4)), (positive(4), normal(4))
    shared = {"runtime": "input_ids segment_ids position_ids mask", "outputs": 2, "blank": (1,)}
    shared["known"] = "word_embedding position_embedding segment_embedding gamma beta"
    yield contrib(op, "segments", ids, kinds, *tables, normal(2, 4), *affine, **shared)
    yield contrib(op, "words", ids, None, *tables, None, *affine, epsilon=1e-3, **shared)
    places = ints(5, 0, 1, 2, 2, 3).reshape(2, 3).astype(np.int32)
    yield contrib(op, "places", ids, kinds, *tables, normal(2, 4), *affine, None, places, **shared)
    yield contrib(op, "sum", ids, kinds, *tables, normal(2, 4), *affine, **{**shared, "outputs": 3})


def _attention() -> Iterator[Sample]:
    op, heads = "Attention", {"num_heads": 2, "runtime": "mask_index"}
    x = lambda: (normal(2, 3, 4), normal(4, 12), normal(12))
    raw = ints(1, 1, 0, 1, 0, 0).reshape(2, 3).astype(np.int32)
    yield contrib(op, "plain", *x(), **heads)
    yield contrib(op, "causal", *x(), unidirectional=1, scale=0.4, **heads)
    yield contrib(op, "raw", *x(), raw, needs_rank=True, **heads)
    yield contrib(
        op, "raw_rows", *x(), np.stack([raw, 1 - raw, raw], 1), mask_filter_value=-50.0, needs_rank=True, **heads
    )
    yield contrib(op, "ends", *x(), np.int32([2, 3]), known="input mask_index", **heads)
    yield contrib(op, "ends_starts", *x(), np.int32([2, 3, 0, 1]), known="input mask_index", **heads)
    wide = normal(2, 3, 5), normal(5, 14), normal(14)
    yield contrib(op, "sizes", *wide, qkv_hidden_sizes=[4, 4, 6], **heads)
    yield contrib(op, "any_ends", *x(), np.int32([2, 3]), needs_rank=True, **heads)
    yield contrib(op, "any_ends_starts", *x(), np.int32([2, 3, 0, 1]), needs_rank=True, **heads)
    yield contrib(op, "lengths", *x(), np.int32([2, 3, 0, 3, 6, 0, 3, 6]), needs_rank=True, **heads)
    past = normal(2, 2, 2, 2, 2)
    yield contrib(op, "past", *x(), None, past, unidirectional=1, outputs=2, **heads)
    yield contrib(op, "bias", *x(), None, None, normal(2, 2, 3, 3), **heads)


def _heads() -> Iterator[Sample]:
    op, heads = "MultiHeadAttention", {"num_heads": 2, "runtime": "key_padding_mask"}
    x = lambda: (normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 6))
    yield contrib(op, "plain", *x(), **heads)
    yield contrib(op, "bias", *x(), normal(14), scale=0.3, **heads)
    padding = np.int32([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]])
    yield contrib(op, "mask", *x(), None, padding, needs_rank=True, **heads)
    yield contrib(op, "added", *x(), normal(14), None, normal(2, 2, 3, 5), **heads)
    yield contrib(op, "added_wide", *x(), None, None, normal(1, 2, 3, 5), **heads)
    past = normal(2, 2, 2, 2), normal(2, 2, 2, 2)
    new = normal(2, 3, 4), normal(2, 3, 4), normal(2, 3, 4)
    yield contrib(op, "past", *new, None, None, None, *past, outputs=3, unidirectional=1, **heads)
    yield contrib(op, "ahead", *x(), normal(14), unidirectional=1, **heads)
    yield contrib(op, "behind", normal(2, 4, 4), normal(2, 2, 4), normal(2, 2, 4), unidirectional=1, **heads)
    lengths = np.int32([4, 2, 0, 3, 6, 0, 5, 10])
    yield contrib(op, "ends", *x(), None, np.int32([4, 2]), needs_rank=True, mask_filter_value=-5.0, **heads)
    yield contrib(op, "lengths", *x(), None, lengths, needs_rank=True, mask_filter_value=-5.0, **heads)
    across = normal(2, 3, 4), normal(2, 2, 5, 2), normal(2, 2, 5, 2)
    yield contrib(op, "laid_out", *across, normal(12), known="query key value", **heads)
    yield contrib(op, "shown", *x(), normal(14), None, normal(2, 2, 3, 5), outputs=4, **heads)


def _groups() -> Iterator[Sample]:
    op, own = "GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 2, "outputs": 3}
    x = lambda: (normal(2, 3, 32), normal(2, 3, 16), normal(2, 3, 16), None, None)
    wide = lambda: (normal(2, 3, 64), normal(2, 3, 32), normal(2, 3, 32), None, None)
    ends = np.int32([2, 2]), np.int32(3)
    angles = normal(6, 8)
    caches = np.cos(angles), np.sin(angles)
    yield contrib(op, "plain", *x(), *ends, **own)
    yield contrib(op, "window", *x(), *ends, local_window_size=2, scale=0.4, **own)
    yield contrib(op, "capped", *x(), *ends, softcap=1.5, **own)
    yield contrib(op, "rotary", *wide(), *ends, *caches, do_rotary=1, **own)
    yield contrib(op, "interleaved", *wide(), *ends, *caches, do_rotary=1, rotary_interleaved=1, **own)
    yield contrib(op, "places", *wide(), *ends, *caches, ints(0, 1, 2, 0, 1, 2).reshape(2, 3), do_rotary=1, **own)
    yield contrib(op, "bias", *x(), *ends, None, None, None, normal(2, 4, 3, 3), **own)
    yield contrib(op, "packed", normal(2, 3, 64), None, None, None, None, *ends, **own)
    yield contrib(op, "padded", *x(), np.int32([2, 1]), np.int32(3), **own)
    yield contrib(op, "both_ways", *x(), np.int32([2, 1]), np.int32(3), causal=0, **own)

    yield from _cached_groups()


def _cached_groups() -> Iterator[Sample]:
    op, own = "GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 2, "outputs": 3}
    caches = np.cos(normal(9, 8)), np.sin(normal(9, 8))
    new = lambda count: (normal(2, count, 64), normal(2, count, 32), normal(2, count, 32))
    past = lambda count: (normal(2, 2, count, 16), normal(2, 2, count, 16))
    rotary = {"do_rotary": 1, **own}
    yield contrib(op, "one_more", *new(1), *past(3), np.int32([3, 3]), np.int32(4), *caches, **rotary)
    yield contrib(op, "rows_of_two_lengths", *new(1), *past(3), np.int32([3, 1]), np.int32(4), *caches, **rotary)
    alone = (x[:1] for x in (*new(3), *past(2)))
    yield contrib(op, "three_more", *alone, np.int32([4]), np.int32(5), *caches, softcap=0.9, **rotary)
    yield contrib(op, "long_cache", *new(1), *past(5), np.int32([3, 2]), np.int32(4), **own)
    yield contrib(op, "cache_of_a_prompt", *new(3), *past(4), np.int32([2, 1]), np.int32(3), *caches, **rotary)
    yield contrib(op, "no_past", *new(3), *past(0), np.int32([2, 2]), np.int32(3), *caches, **rotary)
    bias = (None, None, None, normal(2, 4, 1, 4))
    yield contrib(op, "past_bias", *new(1), *past(3), np.int32([3, 2]), np.int32(4), *bias, **own)
    sink = (None, None, None, None, normal(4))
    for window in (-1, 2):
        some = {"local_window_size": window, **own}
        yield contrib(op, f"sink_{window}", *new(3), None, None, np.int32([2, 0]), np.int32(3), *sink, **some)
        yield contrib(
            op, f"smooth_{window}", *new(1), *past(3), np.int32([3, 3]), np.int32(4), smooth_softmax=1, **some
        )
        yield contrib(op, f"cap_{window}", *new(3), None, None, np.int32([2, 0]), np.int32(3), softcap=0.7, **some)


def _bits() -> Iterator[Sample]:
    for bits, K in ((2, 32), (4, 32), (4, 20), (8, 24)):
        N, blocks = 5, -(-K // 16)
        rng = np.random.default_rng(bits * K)
        B = rng.integers(0, 256, (N, blocks, 2 * bits)).astype(np.uint8)
        zero = rng.integers(0, 256, (N, (blocks * bits + 7) // 8)).astype(np.uint8)
        own = {"bits": bits, "K": K, "N": N, "block_size": 16}
        scales = positive(N, blocks, low=0.02, high=0.05)
        op, name = "MatMulNBits", f"{bits}_{K}"
        yield contrib(op, name, normal(2, 3, K), B, scales.ravel(), **own)
        held = {"runtime": "B zero_points", "known": "bias"}  # ONNX Runtime wants to see that it is [N]
        yield contrib(op, f"{name}_zero", normal(3, K), B, scales, zero, None, normal(N), **held, **own)
        if bits < 8:
            yield contrib(op, f"{name}_float_zero", normal(3, K), B, scales, normal(N, blocks), **own)


def _rotary() -> Iterator[Sample]:
    op, ids = "RotaryEmbedding", ints(0, 2, 1, 4, 2, 0).reshape(2, 3)
    angles = normal(5, 2)
    caches = np.cos(angles), np.sin(angles)
    for interleaved in (0, 1):
        own = {"interleaved": interleaved, "runtime": "position_ids", "needs_rank": True}
        yield contrib(op, f"flat_{interleaved}", normal(2, 3, 8), ids, *caches, num_heads=2, **own)
        yield contrib(op, f"heads_{interleaved}", normal(2, 2, 3, 4), ids, *caches, **own)
        part = {**own, "num_heads": 2, "rotary_embedding_dim": 4}
        yield contrib(op, f"part_{interleaved}", normal(2, 3, 12), ids, *caches, **part)
        yield contrib(op, f"from_{interleaved}", normal(2, 3, 8), ints(1), *caches, num_heads=2, **own)
    own = {"runtime": "position_ids", "known": "input position_ids cos_cache sin_cache"}
    yield contrib(op, "by_width", normal(2, 3, 8), ids, *caches, **own)
