"""What pieces of a lowering cost on ONNX Runtime CPU, in nanoseconds of one thread.

The constants were fitted to medians of ``python -m tests.benchmarks.lowerings --fit`` (onnxruntime 1.31.1, one thread of a
Xeon with AVX512, 2 MB of L2). Only their ratios matter: `choose` compares sums of them, it never measures.
"""

from __future__ import annotations

import math

#: Does not apply.
NEVER = math.inf
#: One more node to dispatch.
NODE = 2_500.0

_FLOP = 1 / 200  # of a large product; the forms of MLAS differ little
_PACK = 0.11  # per element of an operand that is packed for the product
_TRANSPOSED = 0.3  # the same where the left operand is stored transposed
_STORE = 0.3  # per element of a product's result
_COPY = 0.2  # per element moved in long runs: Pad, Slice, Concat, Gather of rows
_BLOCK = 5.0  # per run that Gather moves
_TRANSPOSE = 0.35  # per element of a transpose whose runs are short
_PERMUTE_WEIGHT = 0.9  # per element of W moved to kernel places first, a transpose with strides everywhere
_REVERSE = 3.2  # per element of W: Slice with negative steps, then Transpose
_SUM = 0.4  # per element read by ReduceSum over a leading axis
_COLUMN = 0.35  # per element of the column buffer of Conv and ConvTranspose
_COLUMN_3D = 1.55  # the same in three dimensions
_DENSE_CONV = 1 / 190  # per operation of a Conv with constant W in blocked layout
_WEIGHT_PER_IMAGE = 0.35  # Conv and ConvTranspose pack W again for each image
_BLOCKED_WEIGHT = 0.1  # the same where W is constant


def product(m: int, k: int, n: int, count: int = 1, transposed: bool = False) -> float:
    """`count` products [m, k] [k, n]."""
    left = _TRANSPOSED if transposed else _PACK
    return NODE + count * (2 * m * k * n * _FLOP + left * m * k + _PACK * k * n + _STORE * m * n)


def copy(elements: int) -> float:
    """Pad, Slice or Concat along a leading axis."""
    return NODE + _COPY * elements


def gather(elements: int, run: int) -> float:
    """Gather of `elements` in runs of `run`."""
    return NODE + _COPY * elements + _BLOCK * elements / max(run, 1)


def transpose(elements: int) -> float:
    return NODE + _TRANSPOSE * elements


def permute_weight(elements: int) -> float:
    return NODE + _PERMUTE_WEIGHT * elements


def reverse_weight(elements: int) -> float:
    return 2 * NODE + _REVERSE * elements


def total(elements: int) -> float:
    """ReduceSum."""
    return NODE + _SUM * elements


def transposed_convolution(operations: int, columns: int, weights: int, images: int, constant: bool) -> float:
    """ConvTranspose: per image one product into columns, which are added into the image."""
    per_image = _BLOCKED_WEIGHT if constant else _WEIGHT_PER_IMAGE
    return NODE + operations * _FLOP + _COLUMN * columns + per_image * weights * images


def convolution(operations: int, columns: int, weights: int, images: int, constant: bool) -> float:
    """Conv in two dimensions: a blocked direct kernel where W is constant, else columns and a product per image."""
    if constant:
        return NODE + operations * _DENSE_CONV + _BLOCKED_WEIGHT * weights * images
    return NODE + operations * _FLOP + _COLUMN * columns + _WEIGHT_PER_IMAGE * weights * images


def volume_convolution(operations: int, columns: int) -> float:
    """Conv in three dimensions, over one image."""
    return NODE + operations * _FLOP + _COLUMN_3D * columns
