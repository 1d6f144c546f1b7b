"""Convolutions, and the windows that pools look through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.in_torch.call import Call

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def pads_of(a: Call, sizes: list[int], reach: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """What is added before and behind each axis; of auto_pad SAME, the odd one by its name.

    Args:
        reach: how far a window stretches along each axis, dilation included.
    """
    auto = a.text("auto_pad", "NOTSET")
    if auto == "VALID":
        return [(0, 0)] * len(sizes)
    if auto == "NOTSET":
        pads = list(a.get("pads", [0] * 2 * len(sizes)))
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    found = []
    for size, window, stride in zip(sizes, reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return found


def padded(x: Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pads of the last axes; negative ones crop."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, value=value)


def conv(a: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    n, kernel = x.ndim - 2, list(w.shape[2:])
    strides, dilations = list(a.get("strides", [1] * n)), list(a.get("dilations", [1] * n))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    seen = padded(x, pads_of(a, list(x.shape[2:]), reach, strides))
    return _CONV[n](seen, w, b, strides, 0, dilations, a.get("group", 1))


def conv_transpose(a: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """The whole of what the windows reach, then `output_padding` zeros behind it, then the pads taken off."""
    n = x.ndim - 2
    strides, dilations = list(a.get("strides", [1] * n)), list(a.get("dilations", [1] * n))
    behind = list(a.get("output_padding", [0] * n))
    whole = _TRANSPOSED[n](x, w, None, strides, groups=a.get("group", 1), dilation=dilations)
    whole = padded(whole, [(0, extra) for extra in behind])
    assert "output_shape" not in a and a.text("auto_pad", "NOTSET") == "NOTSET"
    pads = list(a.get("pads", [0] * 2 * n))
    cropped = padded(whole, [(-pads[i], -pads[n + i]) for i in range(n)])
    return cropped if b is None else cropped + b.reshape(-1, *[1] * n)


def windows(a: Call, x: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """What each window of a pool sees [N, C, out..., k...], and which of it lies in the input or its pads.

    A window that `ceil_mode` adds must begin in the input or the pads before it.
    """
    n, kernel = x.ndim - 2, list(a["kernel_shape"])
    strides, dilations = list(a.get("strides", [1] * n)), list(a.get("dilations", [1] * n))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = pads_of(a, list(x.shape[2:]), reach, strides)
    seen, inside = padded(x, pads, value), padded(torch.ones_like(x), pads, 1.0)
    for i in range(n):
        size, axis = seen.shape[2 + 2 * i], 2 + 2 * i
        count = (size - reach[i]) // strides[i] + 1
        if a.get("ceil_mode", 0):
            count = -(-(size - reach[i]) // strides[i]) + 1
            count -= (count - 1) * strides[i] >= x.shape[2 + i] + pads[i][0]
        places = torch.arange(count)[:, None] * strides[i] + torch.arange(kernel[i]) * dilations[i]
        over = max(int(places.max()) + 1 - size, 0)
        tail = [(0, over)] + [(0, 0)] * (seen.ndim - axis - 1)
        seen, inside = padded(seen, tail, value), padded(inside, tail, 0.0)
        seen, inside = (t.index_select(axis, places.flatten()).unflatten(axis, places.shape) for t in (seen, inside))
    order = [0, 1, *range(2, 2 + 2 * n, 2), *range(3, 2 + 2 * n, 2)]
    return seen.permute(order), inside.permute(order)


OPERATORS = {"Conv": conv, "ConvTranspose": conv_transpose}
