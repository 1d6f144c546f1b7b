"""dX of a convolution: what each lowering is good for, as x of torch's own kernel on one thread.

Kernels are 3x3 where none is said. The reference, ConvTranspose, Slice and Pad, takes 1.2 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, lowering
from gradcut.lowering.window import Window, compacted, flat_index, row_major
from gradcut.ops import Builder

#: Channels that the runtime's blocked layout takes at once; a Conv with fewer results stays in the plain layout.
_BLOCK = 16


@dataclass(frozen=True)
class _Input:
    """The sizes of a ConvInputGrad call. Its operands are dY [N, M, *O] and W [M, C/group, *K], its result [N, C, *H].

    Attributes:
        batch: N, a guess where it is symbolic; for costs only. constant: whether W does not change in a run.
        known: whether the spatial sizes in `window` are; where they are symbolic they too are guesses for costs.
    """

    batch: int
    rows: int  # M
    columns: int  # C / group
    group: int
    window: Window
    constant: bool
    known: bool

    @classmethod
    def of(cls, call: Call) -> _Input | None:
        weight, dY, dX = call.static(1), call.dims(0), call.output_dims()
        if weight is None or dY is None or dX is None:
            return None
        known = call.static(0, 2) is not None and call.static_output(2) is not None
        window = Window.of(call, weight[2:], dX[2:], dY[2:])
        return cls(dY[0], weight[0], weight[1], call.attr("group"), window, call.is_constant(1), known)

    @property
    def channels(self) -> int:
        return self.columns * self.group

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.window.taps

    @property
    def images(self) -> int:
        """Elements of dX."""
        return self.batch * self.channels * self.window.places

    @property
    def cotangents(self) -> int:
        """Elements of dY."""
        return self.batch * self.rows * self.window.count


def _costed(estimate: Callable[[_Input], float]) -> Callable[[Call], float]:
    def priced(call: Call) -> float:
        sizes = _Input.of(call)
        return cost.NEVER if sizes is None else estimate(sizes)

    return priced


def _sizes(call: Call) -> _Input:
    sizes = _Input.of(call)
    assert sizes is not None
    return sizes


# --- transposed convolution ------------------------------------------------------------------------------------


def _output_padding(i: _Input) -> list[int] | None:
    """For each axis what is left over at the end; at stride 1 nothing, whatever the sizes. None where it cannot be."""
    window = i.window
    if min(*window.begins, *window.ends, 0) < 0:
        return None
    if not i.known:
        return [0] * window.rank if set(window.strides) == {1} else None
    left = [window.leftover(axis) for axis in range(window.rank)]
    return left if all(0 <= rest < stride for rest, stride in zip(left, window.strides, strict=True)) else None


def _transposed_cost(i: _Input) -> float:
    if _output_padding(i) is None:
        return cost.NEVER
    columns = i.batch * i.channels * i.window.taps * i.window.count
    operations = 2 * columns * i.rows // i.group
    return cost.transposed_convolution(operations, columns, i.weights, i.batch, i.constant, i.group)


@lowering("ConvInputGrad", _costed(_transposed_cost))
def transposed(b: Builder, call: Call) -> ir.Value:
    """ConvTranspose with the forward's pads, and what is left over at the end as output_padding.

    Good for large images and for strides: 64 channels 56x56 1.2, 16x16 1.3, stride 2 1.05, the stem 0.3. It packs W
    for each image: 512 channels 2x2 4.6.
    """
    i = _sizes(call)
    window = i.window
    return b.ConvTranspose(
        *(call[0], call[1]),
        strides=window.strides,
        pads=[*window.begins, *window.ends],
        dilations=window.dilations,
        output_padding=_output_padding(i),
        group=i.group,
    )


# --- convolution with the reversed kernel ----------------------------------------------------------------------


def _reversed_pads(i: _Input) -> list[int] | None:
    """The pads of the convolution that undoes one of stride 1; None where there is none."""
    window = i.window
    if set(window.strides) != {1} or (i.known and any(window.leftover(axis) for axis in range(window.rank))):
        return None
    sides = [*window.begins, *window.ends]
    pads = [window.reach(axis % window.rank) - 1 - side for axis, side in enumerate(sides)]
    return pads if min(*sides, *pads) >= 0 else None


def _reversed_cost(i: _Input) -> float:
    if _reversed_pads(i) is None:
        return cost.NEVER
    columns = i.batch * i.rows * i.window.taps * i.window.places
    operations = 2 * columns * i.columns
    if i.window.taps == 1:
        columns = 0  # the image is its columns
    if i.columns == i.rows // i.group == 1:
        convolve = cost.depthwise_convolution(columns, i.batch * i.rows)
    elif i.constant and i.group == 1 and i.columns >= _BLOCK:
        convolve = cost.blocked_convolution(operations, i.weights, i.batch)
    else:
        convolve = cost.convolution(operations, columns, i.weights, i.batch)
    if i.constant:
        return convolve
    return convolve + (cost.reverse_weight(i.weights) if i.window.taps > 1 else cost.transpose(i.weights))


@lowering("ConvInputGrad", _costed(_reversed_cost))
def reversed_kernel(b: Builder, call: Call) -> ir.Value:
    """At stride 1: Conv of dY with W reversed in space and its channels swapped, within groups.

    Good for a frozen W: the runtime computes the kernel once, when it loads the graph, and lays it out in blocks: 0.9
    at 56x56 to 16x16, 1.0 at 14x14, depthwise 0.95. For one that trains where it is small: 1x1 0.8, depthwise 1.7.
    """
    i = _sizes(call)
    window = i.window
    space = range(2, 2 + window.rank)
    kernel = call[1]
    if window.taps > 1:
        ends, steps = b.ints([-(2**62)] * window.rank), b.ints([-1] * window.rank)
        kernel = b.Slice(kernel, steps, ends, b.ints(space), steps)
    if i.group == 1:
        kernel = b.Transpose(kernel, perm=[1, 0, *space])
    else:
        each = i.rows // i.group
        kernel = b.Reshape(kernel, b.ints([i.group, each, i.columns, *window.kernel]))
        kernel = b.Transpose(kernel, perm=[0, 2, 1, *(axis + 1 for axis in space)])
        kernel = b.Reshape(kernel, b.ints([i.channels, each, *window.kernel]))
    return b.Conv(call[0], kernel, pads=_reversed_pads(i), dilations=window.dilations, group=i.group)


# --- one product over all images -------------------------------------------------------------------------------


def _gathered_cost(i: _Input) -> float:
    window = i.window
    if i.group != 1 or not i.known:
        return cost.NEVER
    places, depth = i.batch * window.places, i.rows * window.taps
    kernel = 0.0 if i.constant else cost.permute_weight(i.weights)
    moved = cost.transpose(i.cotangents) + cost.copy(i.cotangents) + cost.transpose(i.images)
    return kernel + moved + cost.gather(places * depth, i.rows) + cost.product(places, depth, i.columns)


@lowering("ConvInputGrad", _costed(_gathered_cost))
def gathered(b: Builder, call: Call) -> ir.Value:
    """dX [N H, C] = the windows of dY that reach each place [N H, K M] times W [K M, C].

    Good at stride 1 (elsewhere most of what it gathers is zeros) for small images, since W is packed once: 128 channels
    8x8 1.25 (transposed 1.5), 256 channels 4x4 1.0 with W frozen, 512 channels 2x2 0.56 with W frozen (reversed 1.6).
    """
    i = _sizes(call)
    window = i.window
    rows = b.Transpose(b.Reshape(call[0], b.ints([0, i.rows, window.count])), perm=[0, 2, 1])
    tables = [window.written(axis) for axis in range(window.rank)]
    index = flat_index(b, tables, row_major(window.outputs), window.count, 0)
    read = b.Gather(b.Pad(rows, b.ints([0, 0, 0, 0, 1, 0])), index, axis=1)
    kernel = b.Transpose(call[1], perm=[*range(2, 2 + window.rank), 0, 1])
    depth = window.taps * i.rows
    product = b.Gemm(b.Reshape(read, b.ints([-1, depth])), b.Reshape(kernel, b.ints([depth, i.columns])))
    images = b.Transpose(b.Reshape(product, b.ints([-1, window.places, i.columns])), perm=[0, 2, 1])
    return b.Reshape(images, b.ints([-1, i.columns, *window.inputs]))


def _scattered_cost(i: _Input) -> float:
    window = i.window
    if i.group != 1 or not i.known:
        return cost.NEVER
    most = math.prod(max(1, int((window.written(a) >= 0).sum(axis=1).max())) for a in range(window.rank))
    columns = i.batch * i.columns * window.taps * window.count
    read = i.images * most
    moved = cost.transpose(i.cotangents) + cost.copy(columns) + cost.transpose(i.images)
    products = cost.product(i.columns * window.taps, i.rows, i.batch * window.count, transposed=True)
    return products + moved + cost.gather(read, i.batch) + cost.total(read)


@lowering("ConvInputGrad", _costed(_scattered_cost))
def scattered(b: Builder, call: Call) -> ir.Value:
    """W [M, C K] transposed times dY [M, O N] is what each tap sends; each place adds up what reaches it.

    Good where W is large and the images are small, since W is read once, as it lies: 512 channels 2x2 0.9 (transposed
    4.6), 256 -> 512 channels 4x4 stride 2 0.4 (transposed 1.8).
    """
    i = _sizes(call)
    window = i.window
    taps, outputs = row_major(window.kernel), row_major(window.outputs)
    dY = b.Transpose(b.Reshape(call[0], b.ints([0, i.rows, window.count])), perm=[1, 2, 0])
    columns = b.Gemm(
        b.Reshape(call[1], b.ints([i.rows, i.columns * window.taps])), b.Reshape(dY, b.ints([i.rows, -1])), transA=1
    )
    sent = b.Reshape(columns, b.ints([i.columns, window.taps * window.count, -1]))
    reach = [window.written(axis) for axis in range(window.rank)]
    tables = [compacted(table, tap * window.count, o) for table, tap, o in zip(reach, taps, outputs, strict=True)]
    index = flat_index(b, tables, [1] * window.rank, window.taps * window.count, 1)
    read = b.Gather(b.Pad(sent, b.ints([0, 0, 0, 0, 1, 0])), index, axis=1)
    summed = b.ReduceSum(read, b.ints(range(1, 1 + window.rank)), keepdims=0)
    return b.Transpose(summed, perm=[window.rank + 1, 0, *range(1, 1 + window.rank)])
