"""Forward ops that the runtime computes slowly for some shapes, as x of torch's own kernel on one thread."""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, rewriting
from gradcut.lowering.window import Window, flat_index, row_major
from gradcut.ops import Builder

#: A frozen W is laid out beforehand, and its Conv takes what follows with it: left so unless it is this much worse.
_FUSED = 2.0
_BODY = 21  # nodes that SoftmaxCrossEntropyLoss becomes in the runtime
_ACROSS = 1.3  # per element of LogSoftmax along an axis that is not the last one
_ALONG = 0.35  # along the last one


# --- Conv ------------------------------------------------------------------------------------------------------


def _window(call: Call) -> Window | None:
    """The windows of a Conv without groups, of static sizes and explicit pads."""
    weight, inputs, outputs = call.static(1), call.static(0, 2), call.static_output(2)
    if weight is None or inputs is None or outputs is None:
        return None
    if call.get("group", 1) != 1 or call.get("auto_pad", "NOTSET") not in ("", "NOTSET"):
        return None
    return Window.of(call, weight[2:], inputs, outputs)


def _sizes(call: Call) -> tuple[int, int, int]:
    """N, C and M."""
    batch, channels = (call.dims(0) or [1, 1])[:2]
    return batch, channels, (call.dims(1) or [1])[0]


def _gathered_cost(call: Call) -> float:
    window = _window(call)
    if window is None:
        return cost.NEVER
    batch, channels, rows = _sizes(call)
    images, results = batch * channels * window.places, batch * rows * window.count
    read = channels * window.taps * window.count * batch
    moved = cost.transpose(images) + cost.copy(images) + cost.gather(read, batch) + cost.transpose(results)
    whole = moved + cost.product(rows, channels * window.taps, window.count * batch)
    return _FUSED * whole if call.is_constant(1) else whole


def _conv_cost(call: Call) -> float:
    window = _window(call)
    if window is None:
        return 0.0
    batch, channels, rows = _sizes(call)
    columns = batch * channels * window.taps * window.count
    weights = rows * channels * window.taps
    if call.is_constant(1):
        return cost.blocked_convolution(2 * columns * rows, weights, batch)
    return cost.convolution(2 * columns * rows, columns, weights, batch)


@rewriting("Conv", _gathered_cost, _conv_cost)
def gathered(b: Builder, call: Call) -> tuple[ir.Value]:
    """[M, O N] = W [M, C K], as it lies, times the windows of X [C K, O N], gathered.

    Good where W is large and the images are small, since W is packed once and not for each image: 512 channels 2x2
    0.54 (Conv 2.25), 256 -> 512 channels 4x4 stride 2 0.47 (1.8), 256 channels 4x4 1.05 (1.24). A frozen W too is
    read once for each image: 512 channels 2x2, 16 images, 2.2 ms where the runtime's blocked Conv takes 6.
    """
    window = _window(call)
    assert window is not None
    _, channels, rows = _sizes(call)
    last = b.Transpose(call[0], perm=[1, *range(2, 2 + window.rank), 0])
    last = b.Pad(b.Reshape(last, b.ints([channels, window.places, -1])), b.ints([0, 0, 0, 0, 1, 0]))
    index = flat_index(b, [window.read(i) for i in range(window.rank)], row_major(window.inputs), window.places, 1)
    columns = b.Reshape(b.Gather(last, index, axis=1), b.ints([channels * window.taps, -1]))
    bias = [b.Reshape(call[2], b.ints([rows, 1]))] if call.has(2) else []
    product = b.Gemm(b.Reshape(call[1], b.ints([rows, channels * window.taps])), columns, *bias)
    image = b.Reshape(product, b.ints([rows, *window.outputs, -1]))
    return (b.Transpose(image, perm=[window.rank + 1, *range(window.rank + 1)]),)


# --- SoftmaxCrossEntropyLoss -----------------------------------------------------------------------------------


def _rank_two(call: Call) -> bool:
    shape = call[0].shape
    return shape is not None and len(shape) == 2


def _along_cost(call: Call) -> float:
    return 12 * cost.NODE + _ALONG * math.prod(call.dims(0) or [0]) if _rank_two(call) else cost.NEVER


def _body_cost(call: Call) -> float:
    return _BODY * cost.NODE + _ACROSS * math.prod(call.dims(0) or [0])


@rewriting("SoftmaxCrossEntropyLoss", _along_cost, _body_cost)
def log_softmax(b: Builder, call: Call) -> tuple[ir.Value, ir.Value]:
    """Scores [N, C]: LogSoftmax along the last axis, and the labels' entries by GatherElements.

    The runtime has no kernel and expands the body, which takes the softmax across [N, C, 1]: 256 x 1,000 2.4, this
    1.0; 64 x 30,522 2.2, this 0.85.
    """
    log_prob = b.op("LogSoftmax", call[0], axis=1, shape=call[0].shape)
    labels, one = b.Cast(call[1], to=ir.DataType.INT64), b.ints([1])
    ignored = call.get("ignore_index")
    kept = None if ignored is None else b.Not(b.Equal(labels, b.constant(ignored, ir.DataType.INT64)))
    if kept is not None:
        labels = b.Where(kept, labels, b.constant(0, ir.DataType.INT64))
    losses = -b.Squeeze(b.GatherElements(log_prob, b.Unsqueeze(labels, one), axis=1), one)
    weight = b.Gather(call[2], labels, axis=0) if call.has(2) else None
    if kept is not None:
        losses = b.Where(kept, losses, b.scalar_like(0.0, losses))  # its class may have no probability at all
        counted = b.Cast(kept, to=log_prob.dtype)
        weight = counted if weight is None else weight * counted
    return _reduced(b, losses, weight, call.get("reduction", "mean")), log_prob


def _reduced(b: Builder, losses: ir.Value, weight: ir.Value | None, reduction: str) -> ir.Value:
    """The losses [N], each times its weight; their mean is over the sum of the weights."""
    weighted = losses if weight is None else losses * weight
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return b.ReduceSum(weighted, keepdims=0)
    if weight is None:
        return b.op("ReduceMean", weighted, keepdims=0)
    return b.Div(b.ReduceSum(weighted, keepdims=0), b.ReduceSum(weight, keepdims=0))
