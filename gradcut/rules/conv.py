"""Convolutions."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Dim, static_dims
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Conv", "X W B", weights="W B")
def conv(op: Adjoint) -> Cotangents:
    """dX, dW as adjoint ops (their lowering is chosen by shape), dB = sum of dY over all but channels."""
    b, X, W, dY = op.b, op["X"], op["W"], op.dY
    if op.wants("B"):
        axes = [0, *range(2, op.rank("X"))]
        yield "B", b.op("ReduceSum", dY, b.ints(axes), keepdims=0, shape=op["B"].shape)
    if not op.wants("X", "W"):
        return
    window = window_attributes(op, "W")
    if op.wants("X"):
        yield "X", _adjoint(op, "ConvInputGrad", dY, W, X, window)
    if op.wants("W"):
        yield "W", _adjoint(op, "ConvWeightGrad", dY, X, W, window)


def _adjoint(
    op: Adjoint, kind: str, dY: ir.Value, other: ir.Value, target: ir.Value, window: dict[str, list[int]]
) -> ir.Value:
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
    """The adjoint of a transposed convolution is the convolution: dX = Conv(dY, W), dW as Conv's with X as cotangent."""
    b, X, W, dY = op.b, op["X"], op["W"], op.dY
    if op.wants("B"):
        axes = [0, *range(2, op.rank("X"))]
        yield "B", b.op("ReduceSum", dY, b.ints(axes), keepdims=0, shape=op["B"].shape)
    if not op.wants("X", "W"):
        return
    if op.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or op.attr("output_shape") is not None:
        op.refuse("auto_pad and output_shape have no rule")
    window = window_attributes(op, "W")
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


def window_attributes(op: Adjoint, kernel: str | None = None) -> dict[str, list[int]]:
    """kernel_shape, strides, dilations and explicit pads of a convolution or a pool, auto_pad resolved."""
    spatial = op.rank("X") - 2
    size = op.attr("kernel_shape")
    if size is None and kernel is not None:
        weights = static_dims(op[kernel].shape)
        size = None if weights is None else weights[2:]
    if size is None:
        op.refuse("its kernel's shape is unknown")
    strides = list(op.attr("strides") or [1] * spatial)
    dilations = list(op.attr("dilations") or [1] * spatial)
    pads = list(op.attr("pads") or [0] * (2 * spatial))
    mode = op.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        pads = [0] * (2 * spatial)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(op, mode, list(size), strides, dilations)
    return {"kernel_shape": list(size), "strides": strides, "dilations": dilations, "pads": pads}


def _same_pads(op: Adjoint, mode: str, size: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """As the ONNX page of Conv: the output is ceil(input / stride); an odd pad goes to the end for SAME_UPPER."""
    begins, ends = [], []
    dims: list[Dim] = list(op["X"].shape or ())[2:]
    for dim, k, stride, dilation in zip(dims, size, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1
        if stride == 1:
            total = reach - 1
        elif isinstance(dim, int):
            total = max(0, (-(-dim // stride) - 1) * stride + reach - dim)
        else:
            op.refuse(f"auto_pad={mode} with stride {stride} over a dimension known only at run time")
        small = total // 2
        begins.append(total - small if mode == "SAME_LOWER" else small)
        ends.append(small if mode == "SAME_LOWER" else total - small)
    return begins + ends
