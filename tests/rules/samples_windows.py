"""Samples of what moves, adds up and weighs windows of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Array, Sample, away, distinct, ints, normal, positive, sample, within

HALF = {"dtypes": "float16"}
RNG = np.random.default_rng(20261121)


def samples() -> Iterator[Sample]:
    yield from _lp_pool()
    yield from _lrn()
    yield from _col2im()
    yield from _max_unpool()
    yield from _deform_conv()
    yield from _roi_align()
    yield from _max_roi_pool()


def _lp_pool() -> Iterator[Sample]:
    for p in (1, 2, 3, 4):
        yield _lp(f"halves_p{p}", (2, 2, 4, 6), kernel_shape=[2, 2], strides=[2, 2], p=p)
        yield _lp(f"pads_p{p}", (1, 2, 5, 6), kernel_shape=[3, 2], pads=[1, 0, 2, 1], p=p)
        yield sample("GlobalLpPool", f"image_p{p}", away(2, 3, 3, 4), p=p, **HALF)
    yield _lp("default", (1, 2, 5, 6), kernel_shape=[3, 2])
    yield _lp("ceil", (1, 2, 6, 7), kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, p=3)
    yield _lp("dilated", (1, 2, 7, 8), kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 1, 1, 1])
    yield _lp("line", (2, 3, 7), kernel_shape=[3], strides=[2], pads=[1, 0])
    yield _lp("volume", (1, 2, 4, 3, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2])
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield _lp(mode, (1, 2, 5, 5), kernel_shape=[2, 3], strides=[2, 2], auto_pad=mode, p=3)
    yield sample("GlobalLpPool", "line", away(2, 3, 5), **HALF)
    yield sample("GlobalLpPool", "single", away(1, 1, 1, 1), p=3, **HALF)


def _lp(name: str, shape: tuple[int, ...], **attributes: Any) -> Sample:
    return sample("LpPool", name, away(*shape), opset=22, **attributes, **HALF)


def _lrn() -> Iterator[Sample]:
    strong: dict[str, Any] = {"alpha": 0.7, "beta": 0.6, "bias": 1.3, **HALF}
    yield sample("LRN", "default", normal(2, 5, 3, 2), size=3, **HALF)
    yield sample("LRN", "strong", normal(2, 7, 3, 2), size=5, **strong)
    yield sample("LRN", "wider_than_channels", normal(1, 2, 2, 3), size=7, **strong)
    yield sample("LRN", "single", normal(1, 1, 1, 1), size=1, **strong)


def _col2im() -> Iterator[Sample]:
    yield _columns("image", (5, 6), (2, 3))
    yield _columns("overlapping", (4, 4), (3, 3), strides=[1, 1], pads=[1, 1, 1, 1])
    yield _columns("strided", (5, 6), (2, 2), strides=[3, 2], pads=[0, 1, 1, 0])
    yield _columns("dilated", (7, 6), (2, 3), dilations=[3, 2], strides=[2, 1])
    yield _columns("line", (6,), (2,), strides=[2])
    yield _columns("volume", (3, 4, 3), (2, 2, 1), strides=[1, 2, 1])
    yield _columns("at_run_time", (5, 6), (2, 3), pads=[1, 0, 2, 1], strides=[2, 1], runtime="image_shape block_shape")
    yield _columns("block_at_run_time", (5,), (2,), runtime="block_shape")


def _columns(name: str, image: tuple[int, ...], block: tuple[int, ...], **options: Any) -> Sample:
    n = len(image)
    pads, strides = options.get("pads", [0] * 2 * n), options.get("strides", [1] * n)
    spans = [(k - 1) * d + 1 for k, d in zip(block, options.get("dilations", [1] * n), strict=True)]
    count = [(image[i] + pads[i] + pads[i + n] - spans[i]) // strides[i] + 1 for i in range(n)]
    columns = normal(2, 3 * int(np.prod(block)), int(np.prod(count)))
    return sample("Col2Im", name, columns, ints(*image), ints(*block), **HALF, **options)


def _max_unpool() -> Iterator[Sample]:
    halves: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2], **HALF}
    yield sample("MaxUnpool", "output_shape", normal(1, 2, 2, 2), _places((8, 50)), ints(1, 2, 5, 5), **halves)
    yield sample("MaxUnpool", "at_run_time", normal(1, 2, 2, 2), _places((8, 32)), runtime="I", **halves)
    twice = np.array([0, 5, 5, 11, 5, 0, 15, 9]).reshape(1, 2, 2, 2)
    yield sample("MaxUnpool", "one_place_twice", distinct(1, 2, 2, 2), twice, **halves)
    yield sample(
        "MaxUnpool", "line", normal(1, 1, 3), ints(1, 2, 5).reshape(1, 1, 3), kernel_shape=[2], strides=[2], **HALF
    )


def _places(size: tuple[int, int]) -> Array:
    """Of 8 elements, increasing."""
    count, room = size
    return np.sort(np.random.default_rng(3).permutation(room)[:count]).reshape(1, 2, 2, 2)


def _deform_conv() -> Iterator[Sample]:
    yield _deformed("plain", 1, 1)
    yield _deformed("groups", 2, 1, bias=True)
    yield _deformed("offset_groups", 1, 2, mask=True)
    yield _deformed("everything", 2, 4, bias=True, mask=True)
    yield _deformed("dense", 1, 1, mask=True, strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0))
    yield _deformed("depthwise", 4, 1, strides=(1, 2), dilations=(2, 1), pads=(0, 1, 1, 0))


def _deformed(
    name: str,
    group: int,
    parts: int,
    bias: bool = False,
    mask: bool = False,
    strides: tuple[int, int] = (2, 1),
    dilations: tuple[int, int] = (1, 2),
    pads: tuple[int, int, int, int] = (1, 0, 1, 2),
) -> Sample:
    """2x3 kernels over 5x4 images of 4 channels."""
    reach = dilations[0] + 1, 2 * dilations[1] + 1
    out = [(size + pads[i] + pads[i + 2] - reach[i]) // strides[i] + 1 for i, size in enumerate((5, 4))]
    offset = within(2, parts * 12, *out, bound=0.4) + RNG.integers(-1, 2, (2, parts * 12, *out)) + 0.5
    operands = [normal(2, 4, 5, 4), normal(4, 4 // group, 2, 3), offset.astype(np.float32)]
    operands += [normal(4) if bias else None, *([positive(2, parts * 6, *out)] if mask else [])]
    attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": group, "offset_group": parts}
    given = operands if operands[-1] is not None else operands[:-1]
    return sample("DeformConv", name, *given, **attributes, **HALF)


def _roi_align() -> Iterator[Sample]:
    """Regions whose samples keep away from the places where the weights have kinks."""
    rois = np.float32(
        [[0.31, 0.42, 3.87, 2.63], [1.13, 1.78, 4.37, 3.19], [-2.2, -1.9, 1.7, 5.3], [2.7, 2.2, 2.9, 2.6]]
    )
    batch, image = ints(0, 1, 0, 1), normal(2, 3, 4, 5)
    for mode in ("avg", "max"):
        for transformation in ("half_pixel", "output_half_pixel"):
            for ratio in (0, 2):
                shared: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": transformation}
                shared |= {"sampling_ratio": ratio, "output_height": 2, "output_width": 3, "spatial_scale": 0.83}
                yield _aligned(f"{mode}_{transformation}_{ratio}", image, rois, batch, **shared)
    yield _aligned("default", image, rois, batch)
    yield _aligned("runtime_batch", image, rois, batch, runtime="batch_indices", output_height=3, sampling_ratio=1)
    yield _aligned("single", normal(1, 1, 1, 1), rois[:1], batch[:1], sampling_ratio=2)


def _aligned(name: str, *operands: Array, **options: Any) -> Sample:
    return sample("RoiAlign", name, *operands, **options)


def _max_roi_pool() -> Iterator[Sample]:
    rois = np.float32([[0, 0.2, 0.4, 3.8, 2.6], [1, 1.1, 2.2, 4.4, 3.9], [0, -2.2, -1.9, 7.7, 5.3], [1, 3, 3, 2, 1]])
    for name, scale in (("plain", 1.0), ("scaled", 0.6)):
        options: dict[str, Any] = {"pooled_shape": [2, 3], "spatial_scale": scale, **HALF}
        yield sample("MaxRoiPool", name, distinct(2, 3, 5, 6), rois, constant="rois", **options)
        yield sample("MaxRoiPool", f"{name}_at_run_time", distinct(2, 3, 5, 6), rois, **options)
