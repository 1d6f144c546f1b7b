"""What pieces of a lowering cost on ONNX Runtime CPU, in nanoseconds of one thread.

The constants were fitted by hand to medians of ``python -m tests.benchmarks.lowerings`` (onnxruntime 1.31.1, one
thread of a Xeon with AVX512, 2 MB of L2). Only their ratios matter: `choose` compares sums of them, it never measures.
"""

from __future__ import annotations

import math

#: Does not apply.
NEVER = math.inf
#: One more node to dispatch.
NODE = 2_500.0

_FLOP = 1 / 200  # of a large product; the forms of MLAS differ little
_PACK = 0.12  # per element of an operand that is packed for the product
_TRANSPOSED = 0.3  # the same where the left operand is stored transposed
_STORE = 0.2  # per element of a product's result
_COPY = 0.2  # per element moved in long runs: Pad, Slice, Concat, Gather of rows
_BLOCK = 4.0  # per run that Gather moves
_CACHE = 2_500_000  # elements that stay in the caches between Gather and the product
_SPILL = 0.75  # per element beyond
_TRANSPOSE = 0.35  # per element of a transpose whose runs are short
_PERMUTE_WEIGHT = 0.9  # per element of W moved to kernel places first, a transpose with strides everywhere
_REVERSE = 3.2  # per element of W: Slice with negative steps, then Transpose
_SUM = 0.35  # per element read by ReduceSum over a leading axis
_COLUMN = 0.35  # per element of the column buffer of Conv and ConvTranspose
_DEPTHWISE = 0.3  # the same of a Conv of one channel a group
_DEPTHWISE_CALL = 110.0  # per channel of an image
_TRANSPOSED_CALL = 180.0  # per group of an image, of ConvTranspose
_CALL = 120.0  # per small product of a batched one
_COLUMN_3D = 1.55  # the same in three dimensions
_BLOCKED_WEIGHT = 0.1  # per element of a constant W and image, Conv in blocked layout
_WEIGHT_PER_IMAGE = 0.35  # Conv and ConvTranspose pack W again for each image
_PACKED_WEIGHT = 0.15  # the same where W is constant


def product(m: int, k: int, n: int, count: int = 1, transposed: bool = False) -> float:
    """`count` products [m, k] [k, n]."""
    left = _TRANSPOSED if transposed else _PACK
    return NODE + count * (2 * m * k * n * _FLOP + left * m * k + _PACK * k * n + _STORE * m * n)


def copy(elements: int) -> float:
    """Pad, Slice or Concat along a leading axis."""
    return NODE + _COPY * elements


def gather(elements: int, run: int) -> float:
    """Gather of `elements` in runs of `run`."""
    return NODE + _COPY * elements + _BLOCK * elements / max(run, 1) + _SPILL * max(0, elements - _CACHE)


def transpose(elements: int) -> float:
    return NODE + _TRANSPOSE * elements


def permute_weight(elements: int) -> float:
    return NODE + _PERMUTE_WEIGHT * elements


def reverse_weight(elements: int) -> float:
    return 2 * NODE + _REVERSE * elements


def total(elements: int) -> float:
    """ReduceSum."""
    return NODE + _SUM * elements


def transposed_convolution(
    operations: int, columns: int, weights: int, images: int, constant: bool, groups: int
) -> float:
    """ConvTranspose: per image and group one product into columns, which are added into the image."""
    per_image = (_PACKED_WEIGHT if constant else _WEIGHT_PER_IMAGE) * weights + _TRANSPOSED_CALL * groups
    return NODE + operations * _FLOP + _COLUMN * columns + per_image * images


def convolution(operations: int, columns: int, weights: int, images: int) -> float:
    """Conv in two dimensions: per image columns and a product."""
    return NODE + operations * _FLOP + _COLUMN * columns + _WEIGHT_PER_IMAGE * weights * images


def blocked_convolution(operations: int, weights: int, images: int) -> float:
    """Conv by the direct kernel in blocked layout, for a constant W."""
    return NODE + operations * _FLOP + _BLOCKED_WEIGHT * weights * images


def depthwise_convolution(columns: int, channels: int) -> float:
    """Conv of one channel a group, in `channels` of all images together."""
    return NODE + _DEPTHWISE * columns + _DEPTHWISE_CALL * channels


def small_products(m: int, k: int, n: int, count: int) -> float:
    """`count` products that are so small that calling each costs something."""
    return product(m, k, n, count) + _CALL * count


def volume_convolution(operations: int, columns: int) -> float:
    """Conv in three dimensions, over one image."""
    return 4 * NODE + operations * _FLOP + _COLUMN_3D * columns
