"""Convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from gradcut.ops import static_dims
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Conv", "X W B", weights="W B")
def conv(op: Adjoint) -> Cotangents:
    """dX, dW as adjoint ops (their lowering is chosen by shape), dB = sum of dY over all but channels.

    Not covered: auto_pad SAME with a stride over a dimension known only at run time, or with a kernel of unknown shape.
    """
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

    Not covered: output_shape over a dimension known only at run time, or beyond the windows' reach; auto_pad SAME with
    a kernel of unknown shape.
    """
    b, X, W, dY = op.b, op["X"], op["W"], op.dY
    if op.wants("B"):
        axes = [0, *range(2, op.rank("X"))]
        yield "B", b.op("ReduceSum", dY, b.ints(axes), keepdims=0, shape=op["B"].shape)
    if not op.wants("X", "W"):
        return
    window = window_attributes(op, "W", _transposed_pads)
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


Window = dict[str, list[int]]


def window_attributes(
    op: Adjoint, kernel: str | None = None, auto_pads: Callable[[Adjoint, Window], list[int]] | None = None
) -> Window:
    """Strides, dilations and explicit pads of a convolution or a pool, and its kernel_shape where that is known.

    Args:
        kernel: the operand that has the kernel's shape, where no attribute says it.
        auto_pads: the pads of auto_pad=SAME_* and of output_shape; by default those of a convolution.
    """
    spatial = op.rank("X") - 2
    window = {
        "strides": list(op.attr("strides") or [1] * spatial),
        "dilations": list(op.attr("dilations") or [1] * spatial),
        "pads": list(op.attr("pads") or [0] * (2 * spatial)),
    }
    size = op.attr("kernel_shape")
    if size is None and kernel is not None:
        shape = static_dims(op[kernel].shape)
        size = None if shape is None else shape[2:]
    if size is not None:
        window["kernel_shape"] = list(size)
    if op.attr("auto_pad", "NOTSET") == "VALID":
        window["pads"] = [0] * (2 * spatial)
    elif op.attr("auto_pad", "NOTSET") != "NOTSET" or op.attr("output_shape") is not None:
        if "kernel_shape" not in window:
            op.refuse("its pads depend on the shape of its kernel, which is known only at run time")
        window["pads"] = (auto_pads or _same_pads)(op, window)
    return window


def _same_pads(op: Adjoint, window: Window) -> list[int]:
    """As the ONNX page of Conv: the output is ceil(input / stride)."""
    totals = []
    for axis, (k, stride, dilation) in enumerate(_windows(window), start=2):
        reach, dim = (k - 1) * dilation + 1, (op["X"].shape or ())[axis]
        if stride == 1:
            totals.append(reach - 1)
        elif isinstance(dim, int):
            totals.append(max(0, (-(-dim // stride) - 1) * stride + reach - dim))
        else:
            op.refuse(f"auto_pad with stride {stride} over a dimension that is known only at run time")
    return _shared_out(op, totals)


def _transposed_pads(op: Adjoint, window: Window) -> list[int]:
    """As the ONNX page of ConvTranspose: the output is input * stride, or the output_shape said."""
    totals = []
    extra = op.attr("output_padding") or [0] * len(window["strides"])
    said = op.attr("output_shape")
    for axis, (k, stride, dilation) in enumerate(_windows(window)):
        full = (k - 1) * dilation + 1 + extra[axis]
        if said is None:
            totals.append(full - stride)
            continue
        dim = (op["X"].shape or ())[axis + 2]
        if not isinstance(dim, int):
            op.refuse("output_shape over a dimension that is known only at run time")
        totals.append(stride * (dim - 1) + full - list(said)[axis - len(window["strides"])])
    if min(totals) < 0:
        op.refuse(f"its pads would be negative ({totals}): the output asked for is larger than the windows reach")
    return _shared_out(op, totals)


def _windows(window: Window) -> Iterator[tuple[int, int, int]]:
    return zip(window["kernel_shape"], window["strides"], window["dilations"], strict=True)


def _shared_out(op: Adjoint, totals: list[int]) -> list[int]:
    """An odd pad goes to the end for SAME_UPPER, to the beginning otherwise."""
    smaller = [total // 2 for total in totals]
    larger = [total - total // 2 for total in totals]
    return smaller + larger if op.attr("auto_pad", "NOTSET") == "SAME_UPPER" else larger + smaller
