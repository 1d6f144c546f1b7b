"""dW of a convolution: what each lowering is good for, as x of torch's own kernel on one thread.

Shapes are N, C -> M, spatial: 8, 64 -> 64, 56x56 and the like, kernels 3x3 where none is said. The reference, a
convolution with batch and channels swapped, takes 3 to 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, lowering
from gradcut.lowering.window import Window, flat_index, row_major
from gradcut.ops import Builder

#: Channels of a group are packed to products at least this wide: 8 measured best of 1, 4, 8, 16.
_BLOCK = 8


@dataclass(frozen=True)
class _Weight:
    """The sizes of a ConvWeightGrad call. Its operands are dY [N, M, *O] and X [N, C, *H], its result [M, C/group, *K].

    Attributes:
        batch: N, a guess where it is symbolic; for costs only.
    """

    batch: int
    rows: int  # M
    columns: int  # C / group
    group: int
    window: Window

    @classmethod
    def of(cls, call: Call) -> _Weight | None:
        weight, dY, X = call.static_output(), call.static(0, 1), call.static(1, 1)
        if weight is None or dY is None or X is None:
            return None
        batch = (call.dims(1) or [1])[0]
        window = Window.of(call, weight[2:], X[1:], dY[1:])
        return cls(batch, weight[0], weight[1], call.attr("group"), window)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns, *self.window.kernel)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def images(self) -> int:
        """Elements of X."""
        return self.batch * self.group * self.columns * self.window.places

    @property
    def cotangents(self) -> int:
        """Elements of dY."""
        return self.batch * self.rows * self.window.count

    @property
    def packed(self) -> int:
        """How many groups share a product: the smallest divisor of their number that makes it wide enough."""
        narrow = max(1, min(self.columns, self.rows // self.group))
        divisors = (p for p in range(1, self.group) if self.group % p == 0)
        return next((p for p in divisors if p * narrow >= _BLOCK), self.group)


def _costed(estimate: Callable[[_Weight], float]) -> Callable[[Call], float]:
    def priced(call: Call) -> float:
        sizes = _Weight.of(call)
        return cost.NEVER if sizes is None else estimate(sizes)

    return priced


def _sizes(call: Call) -> _Weight:
    sizes = _Weight.of(call)
    assert sizes is not None
    return sizes


# --- one product per tap ---------------------------------------------------------------------------------------


def _taps_cost(w: _Weight) -> float:
    if w.group != 1:
        return cost.NEVER
    k = w.batch * w.window.count
    gathered = k * w.columns * w.window.taps
    moved = cost.transpose(w.images) + cost.transpose(w.cotangents) + cost.copy(w.images) + cost.transpose(w.size)
    return moved + cost.gather(gathered, w.batch * w.columns) + cost.product(w.rows, k, w.columns, w.window.taps)


@lowering("ConvWeightGrad", _costed(_taps_cost))
def taps(b: Builder, call: Call) -> ir.Value:
    """[K, M, C] = dY [M, O N] times X [K, O N, C], gathered in rows of N C.

    Good for small images and for strides: 256 channels 4x4 0.5, 512 channels 2x2 0.2, 7x7 0.7, 128 channels 8x8 1.2,
    stride 2 1.05. 64 channels 56x56 2.1.
    """
    w = _sizes(call)
    window = w.window
    last = b.Transpose(_flat(b, call[1], w.columns), perm=[2, 0, 1])
    index = flat_index(b, [window.read(i) for i in range(window.rank)], row_major(window.inputs), window.places, 1)
    read = b.Gather(b.Pad(last, b.ints([0, 0, 0, 1, 0, 0])), index, axis=0)
    X = b.Reshape(read, b.ints([window.taps, -1, w.columns]))
    dY = b.Reshape(b.Transpose(_flat(b, call[0], w.rows), perm=[1, 2, 0]), b.ints([w.rows, -1]))
    by_tap = b.Reshape(b.MatMul(dY, X), b.ints([*window.kernel, w.rows, w.columns]))
    return b.Transpose(by_tap, perm=[window.rank, window.rank + 1, *range(window.rank)])


# --- one product per image and group ---------------------------------------------------------------------------


def _product_per_image(w: _Weight, rows: int, inner: int, columns: int) -> float:
    """The products of `_sum_images`, what sums them up and what brings the result into order."""
    count = w.group // w.packed
    result = count * rows * columns
    spread = 0.0 if w.packed == 1 else cost.total(result) + cost.copy(result)
    products = cost.product(rows, inner, columns, w.batch * count)
    return products + cost.total(w.batch * result) + spread + cost.transpose(w.size)


def _windows_cost(w: _Weight) -> float:
    window = w.window
    wide = w.packed * w.columns
    products = _product_per_image(w, w.packed * w.rows // w.group, window.count, wide * window.taps)
    if window.is_pointwise():
        return products
    gathered = w.batch * w.group * w.columns * window.count * window.taps
    return products + cost.transpose(w.images) + cost.copy(w.images) + cost.gather(gathered, wide)


@lowering("ConvWeightGrad", _costed(_windows_cost))
def windows(b: Builder, call: Call) -> ir.Value:
    """Per image and block of groups, dY [M, O] times the windows of X [O, K C]; groups of a block share one product.

    Good for 1x1 without strides (no window to gather): 256 -> 128 channels 28x28 1.1; and for groups with strides:
    depthwise 64 channels 56x56 stride 2 3.8, where the swapped convolution takes 5.4 and Mul with ReduceSum 9.3.
    """
    w = _sizes(call)
    window, count = w.window, w.group // w.packed
    dY = b.Reshape(call[0], b.ints([0, count, w.rows // count, window.count]))
    if window.is_pointwise():
        X = b.Reshape(call[1], b.ints([0, count, w.packed * w.columns, window.count]))
        X = b.Transpose(X, perm=[0, 1, 3, 2])
    else:
        index = flat_index(b, [window.read(i) for i in range(window.rank)], row_major(window.inputs), window.places, 0)
        X = _gathered_columns(b, call[1], w, index, window.count)
    return _sum_images(b, dY, X, w, rows=(), columns=window.kernel)


def _rows_cost(w: _Weight) -> float:
    window = w.window
    if window.rank == 1 or window.strides[0] != 1:
        return cost.NEVER
    inner, side = window.inputs[0] * math.prod(window.outputs[1:]), window.taps // window.kernel[0]
    wide = w.packed * w.columns
    moved = cost.transpose(w.images) + cost.copy(w.images) + cost.copy(w.cotangents)
    X = cost.gather(w.batch * w.group * w.columns * inner * side, wide)
    dY = cost.gather(w.batch * w.rows * inner * window.kernel[0], math.prod(window.outputs[1:]))
    products = _product_per_image(w, w.packed * w.rows // w.group * window.kernel[0], inner, wide * side)
    return moved + X + dY + products


@lowering("ConvWeightGrad", _costed(_rows_cost))
def rows(b: Builder, call: Call) -> ir.Value:
    """Rows of the kernel as shifts of dY, its columns as shifts of X: [M Kh, H W] times [H W, Kw C].

    One product per image and block of groups; three copies of each operand where windows make nine of X, and products
    three times as wide. Good for large images and stride 1: 64 channels 56x56 1.3 (taps 2.1), 128 channels 28x28 1.25,
    batch 32 of 16x16 1.45; depthwise 2.4 to 4.9 (the swapped convolution 4.6 to 10, Mul with ReduceSum 3.6 to 8).
    """
    w = _sizes(call)
    window, count = w.window, w.group // w.packed
    inner = window.inputs[0] * math.prod(window.outputs[1:])
    below = b.Pad(call[0], b.ints([0] * (window.rank + 4) + [1] + [0] * (window.rank - 1)))
    shifted = b.Gather(below, flat_index(b, [window.written(0)], [1], window.outputs[0], 1), axis=2)
    dY = b.Reshape(shifted, b.ints([0, count, w.rows // count * window.kernel[0], inner]))
    whole = np.arange(window.inputs[0])[:, None]
    tables = [whole, *(window.read(axis) for axis in range(1, window.rank))]
    index = flat_index(b, tables, row_major(window.inputs), window.places, 0)
    X = _gathered_columns(b, call[1], w, index, inner)
    return _sum_images(b, dY, X, w, rows=window.kernel[:1], columns=window.kernel[1:])


def _gathered_columns(b: Builder, X: ir.Value, w: _Weight, index: ir.Value, inner: int) -> ir.Value:
    """X [N, C, *H] as [N, blocks, inner, taps of the index * channels of a block]."""
    count, wide = w.group // w.packed, w.packed * w.columns
    last = b.Transpose(b.Reshape(X, b.ints([0, count, wide, w.window.places])), perm=[0, 1, 3, 2])
    read = b.Gather(b.Pad(last, b.ints([0, 0, 0, 0, 0, 0, 1, 0])), index, axis=2)
    return b.Reshape(read, b.ints([0, count, inner, -1]))


def _sum_images(
    b: Builder, dY: ir.Value, X: ir.Value, w: _Weight, rows: tuple[int, ...], columns: tuple[int, ...]
) -> ir.Value:
    """dY [N, blocks, M' * rows, P] times X [N, blocks, P, columns * C'], summed over N, as W.

    In a block of several groups only the products of a group with itself count: a mask picks them.
    """
    count, packed = w.group // w.packed, w.packed
    each = w.rows // w.group
    product = b.ReduceSum(b.MatMul(dY, X), b.ints([0]), keepdims=0)
    split = b.Reshape(product, b.ints([count, packed, each, *rows, *columns, packed, w.columns]))
    taps = len(rows) + len(columns)
    if packed > 1:
        mask = np.eye(packed, dtype=np.float32).reshape(1, packed, 1, *[1] * taps, packed, 1)
        split = b.ReduceSum(split * b.constant(mask, X.dtype), b.ints([3 + taps]), keepdims=1)
    order = [0, 1, 2, 3 + taps, 4 + taps, *range(3, 3 + taps)]
    return b.Reshape(b.Transpose(split, perm=order), b.ints(w.shape))


# --- a convolution of one dimension more -----------------------------------------------------------------------


def _volume_cost(w: _Weight) -> float:
    window = w.window
    if w.group != 1 or window.rank > 2 or _volume_pads(window) is None:
        return cost.NEVER
    columns = w.batch * window.count * w.columns * window.taps
    operations = 2 * w.rows * columns
    convolve = cost.volume_convolution if window.rank == 2 else _flat_convolution
    return cost.transpose(w.cotangents) + convolve(operations, columns) + cost.copy(w.size)


def _flat_convolution(operations: int, columns: int) -> float:
    return cost.convolution(operations, columns, 0, 0)


def _volume_pads(window: Window) -> list[int] | None:
    """Pads at the end that make the result exactly the kernel; None where that would take a cut."""
    ends = [end - window.leftover(axis) for axis, end in enumerate(window.ends)]
    return None if min(*ends, *window.begins) < 0 else ends


@lowering("ConvWeightGrad", _costed(_volume_cost))
def volume(b: Builder, call: Call) -> ir.Value:
    """X as one image [1, N, C, *H] convolved over (C, *H) with dY as the kernel [M, N, 1, *O].

    Good for few channels: the 7x7 stride 2 stem 1.8 (taps 5 to 6). 64 channels 56x56 2.7.
    """
    w = _sizes(call)
    window = w.window
    ends = _volume_pads(window)
    assert ends is not None
    kernel = b.Transpose(call[0], perm=[1, 0, *range(2, 2 + window.rank)])
    full = b.Conv(
        b.Unsqueeze(call[1], b.ints([0])),
        b.Unsqueeze(kernel, b.ints([2])),
        strides=[1, *window.dilations],
        dilations=[1, *window.strides],
        pads=[0, *window.begins, 0, *ends],
    )
    return b.Reshape(full, b.ints(w.shape))


def _flat(b: Builder, x: ir.Value, channels: int) -> ir.Value:
    """[N, channels, *D] -> [N, channels, D]."""
    return b.Reshape(x, b.ints([0, channels, -1]))
