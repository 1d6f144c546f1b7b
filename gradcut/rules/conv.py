"""Convolutions."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule
from gradcut.rules.window import (
    Window,
    late_reach,
    late_shared_out,
    pad_spatial,
    padded,
    plain_window,
    shared_out,
    spatial_sizes,
    unpadded,
    window_attributes,
    windows,
)


@rule("Conv", "X W B", weights="W B")
def conv(op: Adjoint) -> Cotangents:
    """dX, dW as adjoint ops (their lowering is chosen by shape), dB = sum of dY over all but channels."""
    W, dY = op["W"], op.dY
    if op.wants("B"):
        yield "B", _bias(op)
    if not op.wants("X", "W"):
        return
    window, late = window_attributes(op, "W")
    X = padded(op, late)
    if op.wants("X"):
        yield "X", unpadded(op, _adjoint(op, "ConvInputGrad", dY, W, X, window), late)
    if op.wants("W"):
        yield "W", _adjoint(op, "ConvWeightGrad", dY, X, W, window)


def _bias(op: Adjoint) -> ir.Value:
    axes = [0, *range(2, op.rank("X"))]
    return op.b.op("ReduceSum", op.dY, op.b.ints(axes), keepdims=0, shape=op["B"].shape)


def _adjoint(op: Adjoint, kind: str, dY: ir.Value, other: ir.Value, target: ir.Value, window: Window) -> ir.Value:
    return op.b.op(
        kind,
        *(dY, other, op.b.shape_of(target)),
        domain="gradcut",
        strides=window["strides"],
        pads=window["pads"],
        dilations=window["dilations"],
        group=op.attr("group", 1),
        dtype=target.dtype,
        shape=target.shape,
    )


@rule("ConvTranspose", "X W B", weights="W B")
def conv_transpose(op: Adjoint) -> Cotangents:
    """Its adjoint is the convolution: dX = Conv(dY, W), dW is Conv's with X for the cotangent.

    Where the pads are known only at run time, or negative because the output asked for is larger than the windows
    reach, dY is first brought into the frame of all windows.
    """
    b, X, W, dY = op.b, op["X"], op["W"], op.dY
    if op.wants("B"):
        yield "B", _bias(op)
    if not op.wants("X", "W"):
        return
    window, fits = _transposed_window(op)
    if not fits:
        dY = _framed(op, window, dY)
        window["pads"] = [0] * len(window["pads"])
    if op.wants("X"):
        shared = {name: window[name] for name in ("strides", "pads", "dilations")}
        full = b.op("Conv", dY, W, group=op.attr("group", 1), **shared)
        # Conv may reach one window further than X where output_padding made room for it
        count = len(window["strides"])
        begin = b.ints([0] * count)
        size = b.Slice(b.shape_of(X), b.ints([2]), b.ints([2 + count]))
        yield "X", b.op("Slice", full, begin, size, b.ints(range(2, 2 + count)), shape=X.shape)
    if op.wants("W"):
        yield "W", _adjoint(op, "ConvWeightGrad", X, dY, W, window)


def _transposed_window(op: Adjoint) -> tuple[Window, bool]:
    """The windows with their pads, and whether those are known and not negative."""
    window = plain_window(op, "W")
    if _pads_are_said(op):
        return window, min(window["pads"], default=0) >= 0
    totals = _transposed_totals(op, window)
    if totals is None or min(totals) < 0:
        return window, False
    window["pads"] = shared_out(op, totals)
    return window, True


def _pads_are_said(op: Adjoint) -> bool:
    return op.attr("output_shape") is None and not str(op.attr("auto_pad", "NOTSET")).startswith("SAME")


def _transposed_totals(op: Adjoint, window: Window) -> list[int] | None:
    """As the ONNX page of ConvTranspose: the output is input * stride, or the output_shape said."""
    if "kernel_shape" not in window:
        return None
    totals, said = [], op.attr("output_shape")
    extra = op.attr("output_padding") or [0] * len(window["strides"])
    for axis, (k, stride, dilation) in enumerate(windows(window)):
        full = (k - 1) * dilation + 1 + extra[axis]
        dim = (op["X"].shape or ())[axis + 2]
        if said is None:
            totals.append(full - stride)
        elif isinstance(dim, int):
            totals.append(stride * (dim - 1) + full - said[axis - len(window["strides"])])
        else:
            return None
    return totals


def _framed(op: Adjoint, window: Window, dY: ir.Value) -> ir.Value:
    """dY in the frame that all windows reach together: what is outside is cut, what is missing is zero."""
    b, strides = op.b, op.b.ints(window["strides"])
    reached = (spatial_sizes(b, op["X"]) - 1) * strides + late_reach(b, window, op["W"])
    size = spatial_sizes(b, dY)
    if _pads_are_said(op):
        begins = b.ints(window["pads"][: len(window["strides"])])
    else:
        extra = b.ints(op.attr("output_padding") or [0] * len(window["strides"]))
        shared = late_shared_out(op, b.Max(reached + extra - size, b.constant(0)))
        begins = b.Slice(shared, b.ints([0]), b.ints([len(window["strides"])]))
    return pad_spatial(b, dY, begins, reached - begins - size)
