"""The windows of a convolution or a pool: strides, dilations, pads, as its attributes and its operands say them.

``auto_pad=SAME_*`` says pads by the sizes of X and of the kernel. Where those are known only at run time, the pads are
too: the rule then differentiates the same windows over X that is padded beforehand, and cuts the pads off again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from gradcut.dims import static_dims
from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint

Window = dict[str, list[int]]
#: Pads known only at run time, INT64 [2 * spatial axes], begins then ends; None where the attributes say them.
LatePads = ir.Value | None


def window_attributes(op: Adjoint, kernel: str | None = None) -> tuple[Window, LatePads]:
    """Strides, dilations and explicit pads, and kernel_shape where that is known; with late pads, the pads are 0.

    Negative pads, which cut X, are late ones too.

    Args:
        kernel: of a convolution: the operand that has the kernel's shape. Of a pool the attribute says it.
    """
    window = plain_window(op, kernel)
    if str(op.attr("auto_pad", "NOTSET")).startswith("SAME"):
        totals = _same_totals(op, window, pool=kernel is None)
        if totals is None:
            return window, _late_pads(op, window, kernel)
        window["pads"] = shared_out(op, totals, pool=kernel is None)
    if min(window["pads"], default=0) >= 0:
        return window, None
    late = op.b.ints(window["pads"])
    window["pads"] = [0] * len(window["pads"])
    return window, late


def plain_window(op: Adjoint, kernel: str | None) -> Window:
    """As the attributes say it; without pads where auto_pad is to say them."""
    spatial = op.rank("X") - 2
    explicit = op.attr("auto_pad", "NOTSET") == "NOTSET"
    window = {
        "strides": list(op.attr("strides") or [1] * spatial),
        "dilations": list(op.attr("dilations") or [1] * spatial),
        "pads": list((explicit and op.attr("pads")) or [0] * (2 * spatial)),
    }
    size = op.attr("kernel_shape")
    if size is None and kernel is not None:
        shape = static_dims(op[kernel].shape)
        size = None if shape is None else shape[2:]
    if size is not None:
        window["kernel_shape"] = list(size)
    return window


def _same_totals(op: Adjoint, window: Window, pool: bool) -> list[int] | None:
    """As the ONNX page of Conv: the output is ceil(input / stride). None where only run time can tell.

    They are negative where the stride is larger than the kernel. Of a pool ONNX Runtime takes the kernel without its
    dilation.
    """
    if "kernel_shape" not in window:
        return None
    totals = []
    for axis, (k, stride, dilation) in enumerate(windows(window), start=2):
        reach, dim = k if pool else (k - 1) * dilation + 1, (op["X"].shape or ())[axis]
        if stride == 1:
            totals.append(reach - 1)
        elif isinstance(dim, int):
            totals.append((-(-dim // stride) - 1) * stride + reach - dim)
        else:
            return None
    return totals


def windows(window: Window) -> Iterator[tuple[int, int, int]]:
    """Size, stride and dilation along each spatial axis."""
    return zip(window["kernel_shape"], window["strides"], window["dilations"], strict=True)


def shared_out(op: Adjoint, totals: list[int], pool: bool = False) -> list[int]:
    """An odd pad goes to the end for SAME_UPPER, to the beginning otherwise; halves are rounded to 0.

    A convolution of ONNX Runtime rounds half of one more than a negative pad: -2 is nothing before X and -2 behind it.
    """
    odd = op.attr("auto_pad", "NOTSET") != "SAME_UPPER"
    begins = [int((total + odd + (total < 0 and not pool)) / 2) for total in totals]
    return begins + [total - begin for total, begin in zip(totals, begins, strict=True)]


# --- at run time -----------------------------------------------------------------------------------------------


def late_reach(b: Builder, window: Window, kernel: ir.Value | None) -> ir.Value:
    """Places from the first to behind the last of a window, INT64 [spatial axes]; `kernel` has its sizes behind two."""
    if "kernel_shape" in window:
        return b.ints([(k - 1) * dilation + 1 for k, _, dilation in windows(window)])
    assert kernel is not None
    return b.Add((b.Shape(kernel, start=2) - 1) * b.ints(window["dilations"]), 1)


def _late_pads(op: Adjoint, window: Window, kernel: str | None) -> ir.Value:
    b, sizes, strides = op.b, spatial_sizes(op.b, op["X"]), op.b.ints(window["strides"])
    reach = b.ints(window["kernel_shape"]) if kernel is None else late_reach(b, window, op[kernel])
    count = (sizes + (strides - 1)) / strides
    return late_shared_out(op, (count - 1) * strides + reach - sizes, pool=kernel is None)


def late_shared_out(op: Adjoint, totals: ir.Value, pool: bool = False) -> ir.Value:
    """As `shared_out`, INT64 [spatial axes] to [2 * spatial axes]."""
    b, halved = op.b, totals
    if op.attr("auto_pad", "NOTSET") != "SAME_UPPER":
        halved = halved + 1
    if not pool:
        halved = halved + b.Cast(b.Less(totals, b.constant(0)), to=ir.DataType.INT64)
    begins = halved / 2
    return b.op("Concat", begins, totals - begins, axis=0)


def spatial_sizes(b: Builder, x: ir.Value) -> ir.Value:
    """[*D] of x [N, C, *D], INT64."""
    known = None if x.shape is None else static_dims(ir.Shape(list(x.shape)[2:]))
    return b.Shape(x, start=2) if known is None else b.ints(known)


def pad_spatial(b: Builder, x: ir.Value, begins: ir.Value, ends: ir.Value, known: ir.Shape | None = None) -> ir.Value:
    """x [N, C, *D] with zeros around D, or with less of it where a pad is negative; INT64 [spatial axes] each."""
    none = b.ints([0, 0])
    rank = None if x.shape is None else len(x.shape)
    shape: Any = known
    if shape is None and rank is not None:
        shape = ir.Shape([*list(x.shape or ())[:2], *[None] * (rank - 2)])
    return b.op("Pad", x, b.op("Concat", none, begins, none, ends, axis=0), shape=shape)


def padded(op: Adjoint, late: LatePads) -> ir.Value:
    """X as windows with late pads see it."""
    return op["X"] if late is None else pad_spatial(op.b, op["X"], *_halves(op, late))


def unpadded(op: Adjoint, cotangent: ir.Value, late: LatePads) -> ir.Value:
    """The cotangent of X from that of `padded`."""
    if late is None:
        return cotangent
    begins, ends = _halves(op, late)
    return pad_spatial(op.b, cotangent, -begins, -ends, op["X"].shape)


def _halves(op: Adjoint, late: ir.Value) -> tuple[ir.Value, ir.Value]:
    b, count = op.b, op.rank("X") - 2
    return b.Slice(late, b.ints([0]), b.ints([count])), b.Slice(late, b.ints([count]), b.ints([2 * count]))
