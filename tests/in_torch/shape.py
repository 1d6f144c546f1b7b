"""Operators that move elements and compute none."""

from __future__ import annotations

import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from tests.in_torch.call import Call


def reshape(a: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not a.get("allowzero", 0):
        sizes = [x.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(a: Call, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    rows = torch.Size(x.shape[:axis]).numel()
    return x.reshape(rows, -1 if x.numel() else torch.Size(x.shape[axis:]).numel())


def slice_(a: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None):
    """By picking what Python's own slices pick."""
    along = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), along, strides, strict=True):
        size = x.shape[axis]
        stop = None if step < 0 and end < -size else end
        x = x.index_select(axis, torch.tensor(range(size)[start:stop:step], dtype=torch.int64))
    return x


def squeeze(a: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze(tuple(a.axes(axes, x.ndim))) if axes is not None or "axes" in a else x.squeeze()


def unsqueeze(a: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = a["axes"] if axes is None else axes.tolist()
    for axis in sorted(axis % (x.ndim + len(given)) for axis in given):
        x = x.unsqueeze(axis)
    return x


def expand(a: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


def split(a: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Equal parts, of which the last may be smaller, where no sizes are given."""
    axis = a.get("axis", 0)
    given = a.get("split") if sizes is None else sizes.tolist()
    return torch.split(x, given or -(-x.shape[axis] // a.outputs), axis)


def pad(a: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None):
    """Axis by axis; all modes but `constant` by the places that they read."""
    given = a["pads"] if pads is None else pads.tolist()
    fill = a.get("value", 0.0) if value is None else value
    along = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    for axis, before, behind in zip(along, given[: len(given) // 2], given[len(given) // 2 :], strict=True):
        x = _pad_axis(x, axis, before, behind, a.text("mode", "constant"), fill)
    return x


def _pad_axis(x: Tensor, axis: int, before: int, behind: int, mode: str, fill: float | Tensor) -> Tensor:
    size = x.shape[axis]
    places = torch.arange(-before, size + behind)
    if mode == "constant":
        inside = (places >= 0) & (places < size)
        along = [-1 if other == axis else 1 for other in range(x.ndim)]
        read = x.index_select(axis, places.clamp(0, size - 1))
        return torch.where(inside.reshape(along), read, torch.as_tensor(fill, dtype=x.dtype))
    if mode == "edge":
        return x.index_select(axis, places.clamp(0, size - 1))
    if mode == "reflect":
        places = places.abs()
        return x.index_select(axis, torch.where(places >= size, 2 * (size - 1) - places, places))
    return x.index_select(axis, places % size)


def depth_to_space(a: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    if a.text("mode", "DCR") == "CRD":
        return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(a: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def center_crop_pad(a: Call, x: Tensor, shape: Tensor) -> Tensor:
    axes = a.axes(None, x.ndim) if "axes" in a else list(range(x.ndim))
    for axis, size in zip(axes, shape.tolist(), strict=True):
        have = x.shape[axis]
        if size < have:
            x = x.narrow(axis, (have - size) // 2, size)
        else:
            before = (size - have) // 2
            x = _pad_axis(x, axis, before, size - have - before, "constant", 0.0)
    return x


def trilu(a: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if a.get("upper", 1) else x.tril(diagonal)


def shape_of(a: Call, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def constant_of_shape(a: Call, shape: Tensor) -> Tensor:
    value = torch.from_numpy(numpy_helper.to_array(a["value"]).copy()) if "value" in a else torch.zeros(1)
    return torch.full(shape.tolist(), value.item(), dtype=a.dtype if value.is_floating_point() else value.dtype)


def col2im(a: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    assert len(image) == 2
    pads = a.get("pads", [0] * 4)
    size = [int(s) + pads[i] + pads[2 + i] for i, s in enumerate(image)]
    whole = F.fold(x, size, block.tolist(), a.get("dilations", [1, 1]), 0, a.get("strides", [1, 1]))
    return whole[..., pads[0] : size[0] - pads[2], pads[1] : size[1] - pads[3]]


OPERATORS = {
    "CenterCropPad": center_crop_pad,
    "Col2Im": col2im,
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Pad": pad,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": lambda a, x: torch.tensor(x.numel()),
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": lambda a, x, repeats: x.repeat(repeats.tolist()),
    "Transpose": lambda a, x: x.permute(a.get("perm", list(range(x.ndim))[::-1])),
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
