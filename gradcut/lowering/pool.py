"""Adjoints of pooling, as x of torch's own kernel on one thread.

MaxPoolGrad of windows that overlap keeps its reference, ScatterElements on the flat tensor: 2.6 to 3.5; sets of windows
that do not overlap, each by MaxUnpool, took 8.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, lowering
from gradcut.lowering.window import Window
from gradcut.ops import Builder

_UNPOOL = 0.45  # per element of MaxUnpool's result
_RESIZE = 0.26  # per element of a nearest Resize's result
_SPREAD = 0.6  # per element of the columns of a ConvTranspose by channel
_AVERAGE = 0.15  # per element that AveragePool reads
#: What the runtime's Resize takes; it casts the halves.
_RESIZED = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _window(call: Call, dY: int = 0) -> Window | None:
    """The windows of a call with pooling attributes over static spatial sizes."""
    if "kernel_shape" not in call.node.attributes:
        return None
    inputs, outputs = call.static_output(2), call.static(dY, 2)
    if inputs is None or outputs is None:
        return None
    return Window.of(call, call.ints("kernel_shape"), inputs, outputs)


def _elements(call: Call) -> int:
    return math.prod(call.output_dims() or [0])


# --- MaxPoolGrad -----------------------------------------------------------------------------------------------


def _unpooled_cost(call: Call) -> float:
    window = _window(call)
    if window is None or call[0].dtype != ir.DataType.FLOAT or set(window.dilations) != {1}:
        return cost.NEVER  # MaxUnpool knows of no dilation
    for axis in range(window.rank):
        if window.strides[axis] < window.reach(axis) or window.leftover(axis) != 0:
            return cost.NEVER
    return cost.NODE + _UNPOOL * _elements(call)


@lowering("MaxPoolGrad", _unpooled_cost)
def unpooled(b: Builder, call: Call) -> ir.Value:
    """MaxUnpool by the forward's flat indices, for windows that do not overlap, so that no place gets two.

    They cover X exactly: elsewhere the runtime and the ONNX page disagree on what an index means.
    2x2 stride 2: 1.0 (ScatterElements 3.4).
    """
    pads = call.ints("pads")
    kernel, strides = call.ints("kernel_shape"), call.ints("strides")
    return b.MaxUnpool(call[0], call[1], kernel_shape=kernel, strides=strides, pads=pads)


# --- AveragePoolGrad -------------------------------------------------------------------------------------------


def _resized_cost(call: Call) -> float:
    window = _window(call)
    if window is None or call[0].dtype not in _RESIZED:
        return cost.NEVER
    tiles = window.kernel == window.strides and not any((*window.begins, *window.ends))
    exact = tuple(o * k for o, k in zip(window.outputs, window.kernel, strict=True)) == window.inputs
    if not (tiles and exact and set(window.dilations) == {1}):
        return cost.NEVER
    return cost.NODE + _RESIZE * _elements(call)


@lowering("AveragePoolGrad", _resized_cost)
def resized(b: Builder, call: Call) -> ir.Value:
    """Nearest Resize, for windows that tile X exactly: 2x2 0.16 (Reshape, Expand, Reshape 3.1; two Gathers 1.1)."""
    scales = np.array([1, 1, *call.ints("kernel_shape")], np.float32)
    shared = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return b.Resize(call[0], None, b.constant(scales), **shared)


def _averaged_cost(call: Call) -> float:
    window = _window(call)
    if window is None or set(window.strides) != {1} or set(window.dilations) != {1}:
        return cost.NEVER
    if min(_full_pads(window)) < 0 or any(pad < 0 for pad in (*window.begins, *window.ends)):
        return cost.NEVER
    return 2 * cost.NODE + (_AVERAGE * window.taps + 0.2) * _elements(call)


def _full_pads(window: Window) -> list[int]:
    """With these a pool of dY has, at each place, the window of all the windows that reach it."""
    ends = [end - window.leftover(axis) for axis, end in enumerate(window.ends)]
    return [window.kernel[axis % window.rank] - 1 - pad for axis, pad in enumerate((*window.begins, *ends))]


@lowering("AveragePoolGrad", _averaged_cost)
def averaged(b: Builder, call: Call) -> ir.Value:
    """At stride 1 the sum over the windows that reach a place is itself a pool: 3x3 0.16 (by ConvTranspose 0.3)."""
    window = _window(call)
    assert window is not None
    shared = {"kernel_shape": window.kernel, "pads": _full_pads(window), "count_include_pad": 1}
    mean = b.op("AveragePool", call[0], shape=call.output.shape, **shared)
    return b.Mul(mean, float(window.taps))


def _spread_cost(call: Call) -> float:
    window, channels = _window(call), call.static_output(1)
    if window is None or channels is None or any(pad < 0 for pad in (*window.begins, *window.ends)):
        return cost.NEVER
    if not all(0 <= window.leftover(axis) < stride for axis, stride in enumerate(window.strides)):
        return cost.NEVER
    columns = math.prod(call.dims(0) or [0]) * window.taps
    return cost.NODE + _SPREAD * columns


@lowering("AveragePoolGrad", _spread_cost)
def spread(b: Builder, call: Call) -> ir.Value:
    """ConvTranspose by channel with a constant kernel of ones: 3x3 stride 2 0.65, the reference 1.1."""
    window, sizes = _window(call), call.static_output(1)
    assert window is not None and sizes is not None
    ones = np.ones((sizes[0], 1, *window.kernel), np.float32)
    return b.ConvTranspose(
        *(call[0], b.constant(ones, call[0].dtype)),
        strides=window.strides,
        pads=[*window.begins, *window.ends],
        dilations=window.dilations,
        output_padding=[window.leftover(axis) for axis in range(window.rank)],
        group=sizes[0],
    )
