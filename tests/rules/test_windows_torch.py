"""Windows and regions against torch's autograd in float64: hundreds of random configurations, seeds in the names."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gradcut
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, build, sample

Config = dict[str, Any]


def gradients(op: str, operands: list[Array | None], attributes: Config, form: str) -> tuple[list[Array], list[Array]]:
    """The output and gradients of the emitted graph for a cotangent of 1, 2, 3, ...; then those, and the cotangent."""
    one = sample(op, "random", *operands, **attributes)
    built = build(one, form)
    proto = gradcut.vjp(built.model, list(one.wanted), list(built.of))
    (y,) = runtime(built.model)(built.feeds)
    dY = (np.arange(y.size).reshape(y.shape) % 7 - 3.0).astype(np.float32)
    return runtime(proto)({**built.feeds, proto.graph.input[-1].name: dY}), [y, dY]


def compare(mine: list[Array], y: torch.Tensor, tensors: list[torch.Tensor], dY: Array) -> None:
    expected = torch.autograd.grad(y, tensors, torch.tensor(dY, dtype=torch.float64))
    for ours, theirs in zip(mine, [y, *expected], strict=True):
        scale = max(1.0, float(theirs.detach().abs().max()) if theirs.numel() else 1.0)
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=2e-5 * scale)


def wide(*arrays: Array | None) -> list[torch.Tensor]:
    return [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays if a is not None]


def drawn(rng: random.Random, count: int, *choices: int) -> list[int]:
    return [rng.choice(choices) for _ in range(count)]


@pytest.mark.parametrize("seed", range(60))
def test_convolutions(seed: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    rank, group = rng.randint(1, 3), rng.choice([1, 1, 2, 3])
    kernel, pads = drawn(rng, rank, 1, 2, 3), drawn(rng, rank, 0, 1, 2)
    strides, dilations = drawn(rng, rank, 1, 2, 3), drawn(rng, rank, 1, 1, 2)
    sizes = [rng.randint((k - 1) * d + 1, 7) for k, d in zip(kernel, dilations, strict=True)]
    inner, outer = rng.choice([1, 2]), rng.choice([1, 2])
    operands = [numbers.standard_normal(shape).astype(np.float32) for shape in
                ((2, inner * group, *sizes), (outer * group, inner, *kernel), (outer * group,))]  # fmt: skip
    shared = {"strides": strides, "dilations": dilations}
    (mine, (_, dY)) = gradients(
        "Conv", operands, {**shared, "pads": pads * 2, "group": group}, rng.choice(["static", "dynamic"])
    )
    tensors = wide(*operands)
    y = getattr(F, f"conv{rank}d")(*tensors, padding=tuple(pads), groups=group, stride=strides, dilation=dilations)
    compare(mine, y, tensors, dY)


@pytest.mark.parametrize("seed", range(60))
def test_transposed_convolutions(seed: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    rank, group = rng.randint(1, 3), rng.choice([1, 1, 2, 3])
    kernel, strides = drawn(rng, rank, 2, 3), drawn(rng, rank, 1, 2, 3)
    dilations, pads = drawn(rng, rank, 1, 1, 2), drawn(rng, rank, 0, 1)
    sizes, inner, outer = drawn(rng, rank, 2, 3, 4), rng.choice([1, 2]), rng.choice([1, 2])
    extra = [rng.randrange(stride) for stride in strides]
    operands = [numbers.standard_normal(shape).astype(np.float32) for shape in
                ((2, inner * group, *sizes), (inner * group, outer, *kernel), (outer * group,))]  # fmt: skip
    attributes: Config = {"strides": strides, "dilations": dilations, "group": group, "output_padding": extra}
    out = [(d - 1) * s + (k - 1) * h + 1 + e - 2 * p
           for d, s, k, h, e, p in zip(sizes, strides, kernel, dilations, extra, pads, strict=True)]  # fmt: skip
    said = rng.random() < 0.4 and all(o >= d for o, d in zip(out, sizes, strict=True))  # onnx infers no other
    attributes |= {"output_shape": out} if said else {"pads": pads * 2}
    (mine, (_, dY)) = gradients("ConvTranspose", operands, attributes, rng.choice(["static", "dynamic"]))
    tensors = wide(*operands)
    function = getattr(F, f"conv_transpose{rank}d")
    y = function(*tensors, strides, tuple(pads), tuple(extra), group, tuple(dilations))
    compare(mine, y, tensors, dY)


@pytest.mark.parametrize("seed", range(40))
def test_pools(seed: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    rank, ceil = rng.randint(1, 3), rng.random() < 0.5
    kernel, strides = drawn(rng, rank, 2, 3), drawn(rng, rank, 1, 2, 3)
    pads, sizes = [rng.randint(0, k // 2) for k in kernel], drawn(rng, rank, 4, 5, 6, 7)
    X = numbers.permutation(2 * 3 * math.prod(sizes)).reshape(2, 3, *sizes).astype(np.float32) * 0.1
    attributes: Config = {"kernel_shape": kernel, "strides": strides, "pads": pads * 2, "ceil_mode": int(ceil)}
    op = rng.choice(["MaxPool", "AveragePool"])
    (x,) = tensors = wide(X)
    if op == "MaxPool":
        y = getattr(F, f"max_pool{rank}d")(x, kernel, strides, pads, ceil_mode=ceil)
    else:
        include = rng.random() < 0.5
        attributes["count_include_pad"] = int(include)
        y = getattr(F, f"avg_pool{rank}d")(x, kernel, strides, pads, ceil, include)
    (mine, (_, dY)) = gradients(op, [X], attributes, "dynamic")  # onnx infers a window too many for some ceil_mode
    compare(mine, y, tensors, dY)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(p: int) -> None:
    X = np.random.default_rng(p).uniform(0.2, 2.0, (2, 3, 6, 7)).astype(np.float32)
    (mine, (_, dY)) = gradients("LpPool", [X], {"kernel_shape": [2, 3], "strides": [2, 2], "p": p}, "dynamic")
    (x,) = tensors = wide(X)
    compare(mine, F.lp_pool2d(x, p, (2, 3), 2), tensors, dY)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_norm(size: int) -> None:
    X = np.random.default_rng(size).standard_normal((2, 6, 3, 4)).astype(np.float32)
    (mine, (_, dY)) = gradients("LRN", [X], {"size": size, "alpha": 0.7, "beta": 0.6, "bias": 1.2}, "dynamic")
    (x,) = tensors = wide(X)
    compare(mine, F.local_response_norm(x, size, 0.7, 0.6, 1.2), tensors, dY)


@pytest.mark.parametrize("seed", range(20))
def test_folding_of_columns(seed: int) -> None:
    rng = random.Random(seed)
    kernel, strides, dilations, pads = (drawn(rng, 2, *choices) for choices in ((1, 2, 3), (1, 2), (1, 2), (0, 1)))
    image = [rng.randint(5, 8) for _ in range(2)]
    count = math.prod(
        (d + 2 * p - (k - 1) * h - 1) // s + 1
        for d, p, k, h, s in zip(image, pads, kernel, dilations, strides, strict=True)
    )
    columns = np.random.default_rng(seed).standard_normal((2, 3 * math.prod(kernel), count)).astype(np.float32)
    attributes: Config = {"strides": strides, "dilations": dilations, "pads": pads * 2}
    operands = [columns, np.int64(image), np.int64(kernel)]
    (mine, (_, dY)) = gradients("Col2Im", operands, attributes, rng.choice(["static", "dynamic"]))
    (x,) = tensors = wide(columns)
    compare(mine, F.fold(x, image, kernel, dilations, tuple(pads), strides), tensors, dY)


def test_unpooling() -> None:
    X = np.random.default_rng(1).standard_normal((2, 3, 6, 4)).astype(np.float32)
    (x,) = tensors = wide(X)
    pooled, places = F.max_pool2d(torch.tensor(X), 2, return_indices=True)
    flat = places.numpy() + 24 * np.arange(6).reshape(2, 3, 1, 1)
    halves: Config = {"kernel_shape": [2, 2], "strides": [2, 2]}
    (mine, (_, dY)) = gradients("MaxUnpool", [pooled.numpy(), flat], halves, "dynamic")
    (x,) = tensors = wide(pooled.numpy())
    compare(mine, F.max_unpool2d(x, places, 2), tensors, dY)


# --- what torch has no function for, in its operators ----------------------------------------------------------


def deform_conv(X: torch.Tensor, W: torch.Tensor, offset: torch.Tensor, B: torch.Tensor, mask: torch.Tensor,
                c: Config) -> torch.Tensor:  # fmt: skip
    """A column of each tap by grid_sample, which reads zeros outside; then a product by groups."""
    (n, channels, height, width), (kh, kw), (oh, ow) = X.shape, W.shape[2:], offset.shape[2:]
    parts, group = c["offset_group"], c["group"]
    moved, masks = offset.view(n, parts, kh * kw, 2, oh, ow), mask.view(n, parts, kh * kw, oh, ow)
    columns = torch.zeros(n, channels, kh * kw, oh, ow, dtype=torch.float64)
    for part, each in enumerate(X.chunk(parts, 1)):
        for tap in range(kh * kw):
            first = (tap // kw) * c["dilations"][0] - c["pads"][0], (tap % kw) * c["dilations"][1] - c["pads"][1]
            y = torch.arange(oh)[:, None] * c["strides"][0] + first[0] + moved[:, part, tap, 0]
            x = torch.arange(ow) * c["strides"][1] + first[1] + moved[:, part, tap, 1]
            grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
            read = F.grid_sample(each, grid, align_corners=True) * masks[:, part, tap][:, None]
            columns[:, part * each.shape[1] : (part + 1) * each.shape[1], tap] = read
    inner = columns.reshape(n, group, channels // group * kh * kw, oh * ow)
    y = torch.einsum("gmk,ngkl->ngml", W.reshape(group, W.shape[0] // group, -1), inner)
    return y.reshape(n, -1, oh, ow) + B.view(-1, 1, 1)


@pytest.mark.parametrize("seed", range(24))
def test_deformable_convolutions(seed: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    group, parts = rng.choice([1, 2]), rng.choice([1, 2, 4])
    c: Config = {"strides": drawn(rng, 2, 1, 2), "dilations": drawn(rng, 2, 1, 2), "pads": drawn(rng, 4, 0, 1, 2)}
    c |= {"group": group, "offset_group": parts}
    kernel, sizes = drawn(rng, 2, 1, 2, 3), drawn(rng, 2, 5, 6, 7)
    out = [(sizes[i] + c["pads"][i] + c["pads"][i + 2] - (kernel[i] - 1) * c["dilations"][i] - 1) // c["strides"][i] + 1
           for i in range(2)]  # fmt: skip
    taps = parts * kernel[0] * kernel[1]
    shapes = (2, 4, *sizes), (2 * group, 4 // group, *kernel), (2, 2 * taps, *out), (2 * group,), (2, taps, *out)
    operands = [numbers.standard_normal(shape).astype(np.float32) for shape in shapes]
    (mine, (_, dY)) = gradients("DeformConv", operands, c, rng.choice(["static", "dynamic"]))
    tensors = wide(*operands)
    compare(mine, deform_conv(*tensors, c), tensors, dY)


def roi_align(X: torch.Tensor, rois: torch.Tensor, batch: Array, c: Config) -> torch.Tensor:
    """Sample by sample, as the paper's appendix and the ONNX page say."""
    height, width, half = X.shape[2], X.shape[3], c["coordinate_transformation_mode"] == "half_pixel"
    bins = c["output_height"], c["output_width"]
    results = []
    for roi, image in zip(rois * c["spatial_scale"] - (0.5 if half else 0.0), batch, strict=True):
        start, length = (roi[1], roi[0]), [roi[3] - roi[1], roi[2] - roi[0]]
        length = length if half else [v.clamp(min=1.0) for v in length]
        each = [v / n for v, n in zip(length, bins, strict=True)]
        counts = [c["sampling_ratio"] or max(0, math.ceil(float(v))) for v in each]
        for i in range(bins[0]):
            for j in range(bins[1]):
                values = [
                    corner
                    for sy in range(counts[0])
                    for sx in range(counts[1])
                    for corner in weighted(
                        X[image],
                        start[0] + each[0] * (i + (sy + 0.5) / counts[0]),
                        start[1] + each[1] * (j + (sx + 0.5) / counts[1]),
                        height,
                        width,
                    )
                ]
                zero = X[image][:, 0, 0] * 0
                if c["mode"] == "avg":
                    results.append(sum(values, zero) / max(counts[0] * counts[1], 1))
                else:
                    results.append(torch.stack(values).amax(0) if values else zero)
    unread = 0 * (rois.sum() + X.sum())  # where no sample is in the image
    return torch.stack(results).view(len(rois), *bins, -1).permute(0, 3, 1, 2) + unread


def weighted(image: torch.Tensor, y: torch.Tensor, x: torch.Tensor, height: int, width: int) -> list[torch.Tensor]:
    """The four weighted corners of one sample."""
    if not (-1 <= y <= height and -1 <= x <= width):
        return [image[:, 0, 0] * 0] * 4
    lines = []
    for at, size in ((y, height), (x, width)):
        low = min(int(max(float(at), 0.0)), size - 1)
        far = at.clamp(min=0.0) - low if low < size - 1 else at * 0
        lines.append([(low, 1 - far), (min(low + 1, size - 1), far)])
    return [image[:, i, j] * a * b for i, a in lines[0] for j, b in lines[1]]


@pytest.mark.parametrize("seed", range(24))
def test_aligned_regions(seed: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    c: Config = {"output_height": rng.randint(1, 3), "output_width": rng.randint(1, 3)}
    c |= {"mode": rng.choice(["avg", "max"]), "sampling_ratio": rng.choice([0, 1, 2])}
    c |= {"coordinate_transformation_mode": rng.choice(["half_pixel", "output_half_pixel"])}
    c |= {"spatial_scale": rng.choice([1.0, 0.5, 0.3])}
    X = numbers.standard_normal((2, 3, 5, 6)).astype(np.float32)
    rois = np.sort(numbers.uniform(-3, 14, (3, 2, 2)), 1).reshape(3, 4).astype(np.float32)
    batch = numbers.integers(0, 2, 3)
    (mine, (_, dY)) = gradients("RoiAlign", [X, rois, batch], c, rng.choice(["static", "dynamic"]))
    tensors = wide(X, rois)
    compare(mine, roi_align(*tensors, batch, c), tensors, dY)
