"""Convolutions of one channel a group over small images, as one product a channel.

The runtime makes a product of one row for each channel of each image, whose call alone costs more than a small image
does. Here all images of a channel are the rows of one product with a matrix [places, outputs] that holds the kernel
along its diagonals (a Toeplitz matrix): the kernel times a constant of zeros and ones, [taps, places x outputs].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, lowering, rewriting
from gradcut.lowering.window import Window
from gradcut.ops import Builder


@dataclass(frozen=True)
class _Depthwise:
    """Sizes of a convolution with W [C, 1, *K]: X [N, C, *H] -> Y [N, C, *O]; N is a guess where it is symbolic."""

    batch: int
    channels: int
    window: Window

    @classmethod
    def of(cls, call: Call, X: list[int] | None, W: list[int] | None, Y: list[int] | None) -> _Depthwise | None:
        """From static [C, *H], [C, 1, *K] and [C, *O]; None where it is another convolution, or one is unknown."""
        if X is None or W is None or Y is None or not call.get("group", 1) == W[0] == X[0] == Y[0] or W[1] != 1:
            return None
        if W[0] == 1 or call.get("auto_pad", "NOTSET") not in ("", "NOTSET"):
            return None
        return cls((call.dims(0) or [1])[0], W[0], Window.of(call, W[2:], X[1:], Y[1:]))

    @property
    def matrix(self) -> int:
        """Elements of the matrix of one channel."""
        return self.window.places * self.window.count


def _forward(call: Call) -> _Depthwise | None:
    return _Depthwise.of(call, call.static(0, 1), call.static(1), call.static_output(1))


def _input(call: Call) -> _Depthwise | None:
    return _Depthwise.of(call, call.static_output(1), call.static(1), call.static(0, 1))


def _weight(call: Call) -> _Depthwise | None:
    return _Depthwise.of(call, call.static(1, 1), call.static_output(), call.static(0, 1))


def _selection(b: Builder, d: _Depthwise, order: str, kind: ir.DataType | None) -> ir.Value:
    """1 where an output reads a place by a tap, else 0: [taps, rest] or [rest, taps], by nodes that the runtime folds.

    Args:
        order: of the axes, such as ``tpo``: taps, places, outputs.
    """
    parts, rank = [], d.window.rank
    for axis in range(rank):
        reads = d.window.read(axis)  # [output, tap] -> place
        ones = np.asarray(
            reads.T[:, None, :] == np.arange(d.window.inputs[axis])[None, :, None]
        )  # [tap, place, output]
        sizes = [1] * (3 * rank)
        for place, letter in enumerate(order):
            sizes[place * rank + axis] = ones.shape["tpo".index(letter)]
        permuted = ones.transpose(["tpo".index(letter) for letter in order])
        parts.append(b.constant(permuted.reshape(sizes).astype(np.float32), kind))
    taps = d.window.taps
    shape = [taps, -1] if order[0] == "t" else [-1, taps]
    return b.Reshape(functools.reduce(b.Mul, parts), b.ints(shape))


def _by_channel(b: Builder, x: ir.Value, channels: int, size: int, perm: tuple[int, int, int]) -> ir.Value:
    """[N, C, *D] as [N, C, D], transposed."""
    return b.Transpose(b.Reshape(x, b.ints([0, channels, size])), perm=perm)


def _matrix_product(b: Builder, d: _Depthwise, x: ir.Value, W: ir.Value, order: str) -> ir.Value:
    """x [N, C, *D] times the matrix [D, D'] of each channel: [N, C, D'] in flat places."""
    window = d.window
    sizes = {"p": window.places, "o": window.count}
    before, after = sizes[order[1]], sizes[order[2]]
    matrix = b.MatMul(b.Reshape(W, b.ints([d.channels, window.taps])), _selection(b, d, order, x.dtype))
    matrices = b.Reshape(matrix, b.ints([d.channels, before, after]))
    product = b.MatMul(_by_channel(b, x, d.channels, before, (1, 0, 2)), matrices)
    return b.Transpose(product, perm=[1, 0, 2])


def _product_cost(d: _Depthwise) -> float:
    window = d.window
    built = cost.product(d.channels, window.taps, d.matrix)
    products = cost.small_products(d.batch, window.places, window.count, d.channels)
    images = d.batch * d.channels * (window.places + window.count)
    return built + products + cost.transpose(images)


def _weight_cost(d: _Depthwise) -> float:
    window = d.window
    products = cost.small_products(window.places, d.batch, window.count, d.channels)
    images = d.batch * d.channels * (window.places + window.count)
    return products + cost.transpose(images) + cost.product(d.channels, d.matrix, window.taps)


def _costed(
    sizes: Callable[[Call], _Depthwise | None], estimate: Callable[[_Depthwise], float]
) -> Callable[[Call], float]:
    def priced(call: Call) -> float:
        found = sizes(call)
        return cost.NEVER if found is None else estimate(found)

    return priced


def _kernel_cost(d: _Depthwise) -> float:
    return cost.depthwise_convolution(d.batch * d.channels * d.window.taps * d.window.count, d.batch * d.channels)


def _trainable(call: Call) -> _Depthwise | None:
    """A frozen W is laid out beforehand, and its kernel takes what follows with it."""
    return None if call.is_constant(1) else _forward(call)


@rewriting("Conv", _costed(_trainable, _product_cost), _costed(_forward, _kernel_cost))
def banded(b: Builder, call: Call) -> tuple[ir.Value]:
    """Batch 16: 960 channels 2x2 0.18 of the runtime's time, 384 channels 4x4 0.18, 192 channels 8x8 0.54."""
    d = _forward(call)
    assert d is not None
    product = b.Reshape(_matrix_product(b, d, call[0], call[1], "tpo"), b.ints([0, d.channels, *d.window.outputs]))
    if not call.has(2):
        return (product,)
    return (product + b.Reshape(call[2], b.ints([d.channels, *[1] * d.window.rank])),)


@lowering("ConvInputGrad", _costed(_input, _product_cost))
def banded_input(b: Builder, call: Call) -> ir.Value:
    """dX = dY times the matrix [outputs, places]; as `banded`, with strides too."""
    d = _input(call)
    assert d is not None
    product = _matrix_product(b, d, call[0], call[1], "top")
    return b.Reshape(product, b.ints([0, d.channels, *d.window.inputs]))


@lowering("ConvWeightGrad", _costed(_weight, _weight_cost))
def banded_weight(b: Builder, call: Call) -> ir.Value:
    """Of the product of places and outputs over the images of each channel, the diagonals are summed up by taps."""
    d = _weight(call)
    assert d is not None
    X = _by_channel(b, call[1], d.channels, d.window.places, (1, 2, 0))
    dY = _by_channel(b, call[0], d.channels, d.window.count, (1, 0, 2))
    products = b.Reshape(b.MatMul(X, dY), b.ints([d.channels, d.matrix]))
    summed = b.MatMul(products, _selection(b, d, "pot", call[0].dtype))
    return b.Reshape(summed, b.ints([d.channels, 1, *d.window.kernel]))
