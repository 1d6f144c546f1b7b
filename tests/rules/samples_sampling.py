"""Samples of what reads an image between its elements, of Fourier transforms, and of products that may be zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Array, Sample, away, ints, normal, sample

_RNG = np.random.default_rng(20240611)


def samples() -> Iterator[Sample]:
    yield from _grids()
    yield from _affine_grids()
    yield from _resizes()
    yield from _transforms()
    yield from _frames()
    yield from _determinants()
    yield from _products()


def places(sizes: tuple[int, ...], shape: tuple[int, ...], aligned: bool, reach: int = 1) -> Array:
    """A grid of places in an image and up to `reach` elements beyond it, none near an element or half way between."""
    axes = []
    for n in reversed(sizes):
        whole = _RNG.integers(-reach, n - 1 + reach, shape)
        at = whole + _RNG.uniform(0.12, 0.38, shape) + _RNG.choice([0.0, 0.5], shape)
        axes.append(2 * at / max(n - 1, 1) - 1 if aligned else (2 * at + 1) / n - 1)
    return np.stack(axes, -1).astype(np.float32)


def _grids() -> Iterator[Sample]:
    def one(name: str, sizes: tuple[int, ...], reach: int = 2, images: int = 2, **options: Any) -> Sample:
        grid = places(sizes, (images, *(2, 3, 2)[: len(sizes)]), bool(options.get("align_corners")), reach)
        open_rank = options.get("mode") != "cubic"
        return sample("GridSample", name, normal(images, 2, *sizes), grid, needs_rank=open_rank, **options)

    for mode in ("linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            for aligned in (0, 1):
                name = f"{mode}_{padding}_{aligned}"
                yield one(name, (3, 4), mode=mode, padding_mode=padding, align_corners=aligned)
    yield one("default", (3, 4))
    yield one("far", (3, 4), 9, padding_mode="reflection")
    yield one("one_element", (1, 4), padding_mode="reflection", align_corners=1)
    yield one("one_row", (1, 3), mode="cubic", padding_mode="border")
    yield one("volume", (2, 3, 2), mode="linear")
    yield one("volume_held", (2, 3, 2), padding_mode="border", align_corners=1, images=1)
    for name, padding, sizes in (("nearest", "zeros", (3, 4)), ("nearest_volume", "reflection", (2, 3, 2))):
        yield one(name, sizes, mode="nearest", padding_mode=padding, unwanted="grid")


def _affine_grids() -> Iterator[Sample]:
    for name, rank, size in (("image", 2, (2, 1, 3, 4)), ("volume", 3, (2, 1, 3, 2, 2)), ("point", 2, (1, 1, 1, 1))):
        theta = normal(size[0], rank, rank + 1)
        yield sample("AffineGrid", name, theta, ints(*size))
        yield sample("AffineGrid", f"{name}_corners", theta, ints(*size), align_corners=1, runtime="size")


def _resizes() -> Iterator[Sample]:
    def one(name: str, X: Array, *numbers: Any, **options: Any) -> Sample:
        kinds = (np.float32, np.float32, np.int64)
        operands = [None if n is None else np.array(n, k) for n, k in zip(numbers, kinds, strict=False)]
        open_rank = bool({"axes", "runtime"} & options.keys())
        options = {"constant": "roi scales", "needs_rank": open_rank, "dtypes": "", **options}
        return sample("Resize", name, X, *operands, **options)

    crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.0}
    asymmetric = {"coordinate_transformation_mode": "asymmetric"}
    image, box = normal(1, 2, 4, 5), [0, 0, 0.1, -0.2, 1, 1, 0.8, 1.3]
    for mode in ("nearest", "linear", "cubic"):
        yield one(f"crop_{mode}", image, box, [1, 1, 1.5, 2], mode=mode, **crop)
    yield one("crop_axes", image, [0.1, -0.2, 0.8, 1.3], None, [7, 3], mode="linear", axes=[2, 3], **crop)
    yield one("crop_turned", image, [0.9, 0.1, 0.2, 0.6], None, [7, 3], axes=[2, 3], **crop)
    for policy in ("not_larger", "not_smaller"):
        for mode in ("nearest", "linear", "cubic"):
            yield one(f"{policy}_{mode}", image, None, None, [7, 8], mode=mode, axes=[2, 3],
                      keep_aspect_ratio_policy=policy)  # fmt: skip
    for mode in ("nearest", "linear", "cubic"):  # the axis of three keeps its size, and is resized with the other
        yield one(f"short_{mode}", normal(1, 2, 3, 4), None, [1, 1, 1.3, 2], mode=mode, **asymmetric)
    yield one("short_crop", normal(1, 2, 3, 4), box, [1, 1, 1.3, 2], mode="linear", **crop)
    yield one("all_keep_their_size", normal(1, 2, 3, 4), None, [1, 1, 1.3, 1.2], mode="linear", **asymmetric)
    yield one("proportion_of_negative_axes", normal(1, 2, 3, 4), None, None, [3, 4], axes=[-2, -1],
              keep_aspect_ratio_policy="not_larger", needs_rank=False)  # fmt: skip
    yield one("proportion_of_one_axis", image, None, None, [3], axes=[3], keep_aspect_ratio_policy="not_larger")
    yield one("sizes_at_run_time", image, None, None, [1, 2, 3, 9], mode="linear", runtime="sizes")
    yield one("symmetric", normal(1, 1, 3, 5), None, [1, 1, 1.7, 0.7], mode="linear", antialias=1,
              coordinate_transformation_mode="half_pixel_symmetric")  # fmt: skip
    yield one("outside", normal(1, 1, 4, 5), None, [1, 1, 2.3, 0.6], mode="cubic", exclude_outside=1)
    yield one("antialias_cubic", normal(1, 1, 9, 8), None, None, [1, 1, 4, 3], mode="cubic", antialias=1)
    yield one("one_number", normal(3), None, [2.5])
    yield one("to_one", normal(2, 3), None, None, [1, 1], mode="linear",
              coordinate_transformation_mode="pytorch_half_pixel")  # fmt: skip
    yield one("no_images", normal(0, 2, 3, 4), None, [1, 1, 2, 2])
    for rounding in ("round_prefer_ceil", "ceil"):
        yield one(rounding, normal(5, 4), None, [1.5, 0.5], nearest_mode=rounding)


def _transforms() -> Iterator[Sample]:
    def one(
        name: str, shape: tuple[int, ...], length: int | None = None, axis: int | None = None, **options: Any
    ) -> Sample:
        numbers = [length, axis] if axis is not None else [length] if length is not None else []
        operands = [None if number is None else np.array(number) for number in numbers]
        return sample("DFT", name, normal(*shape), *operands, **{"dtypes": "float64", **options})

    yield one("real", (2, 5, 1))
    yield one("complex", (2, 6, 2))
    yield one("inverse", (2, 5, 2), inverse=1)
    yield one("inverse_real", (2, 4, 1), inverse=1)
    yield one("half", (2, 5, 1), onesided=1)
    yield one("half_even", (2, 6, 1), onesided=1)
    yield one("half_back", (2, 4, 2), onesided=1, inverse=1)
    yield one("half_back_odd", (2, 4, 2), 7, 1, onesided=1, inverse=1)
    yield one("half_back_cut", (2, 4, 2), 4, 1, onesided=1, inverse=1)
    yield one("half_back_padded", (3, 3, 2), 9, 0, onesided=1, inverse=1, runtime="dft_length axis")
    yield one("padded", (2, 5, 1), 8, 1)
    yield one("cut", (2, 5, 2), 3, -2, inverse=1)
    yield one("cut_half", (2, 3, 5, 1), 4, 2, onesided=1)
    yield one("first_axis", (3, 4, 2), None, 0)
    yield one("at_run_time", (3, 4, 2), 6, -3, runtime="dft_length axis")
    yield one("line", (7, 1), 7)


def _frames() -> Iterator[Sample]:
    def one(name: str, channels: int, window: Array | None, length: int | None, step: int, **options: Any) -> Sample:
        numbers = np.array(step), window, None if length is None else np.array(length)
        return sample("STFT", name, normal(2, 11, channels), *numbers, **{"dtypes": "float64", **options})

    yield one("window", 1, normal(4), None, 2)
    yield one("both", 1, normal(5), 5, 3)
    yield one("length", 1, None, 4, 1)
    yield one("whole_spectrum", 1, normal(4), 4, 2, onesided=0)
    yield one("complex", 2, normal(5), None, 2, onesided=0)
    yield one("holes", 1, normal(3), None, 4, runtime="frame_step")
    yield one("at_run_time", 1, normal(4), 4, 3, runtime="frame_step frame_length")


def _determinants() -> Iterator[Sample]:
    singular = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
    for name, X in {
        "matrix": normal(3, 3),
        "batches": normal(2, 2, 4, 4),
        "one": normal(2, 1, 1),
        "singular": singular,
        "rank_one": np.ones((3, 3), np.float32),
        "zero": np.zeros((2, 2), np.float32),
    }.items():
        yield sample("Det", name, X, needs_rank=True, dtypes="float16" if name == "matrix" else "")


def _products() -> Iterator[Sample]:
    zeros = np.array([[0.0, 2.0, 3.0, 0.5], [0.0, 0.7, 0.0, 1.5]], np.float32)
    for reverse in (0, 1):
        for exclusive in (0, 1):
            options = {"reverse": reverse, "exclusive": exclusive, "opset": 26, "dtypes": "float64"}
            yield sample("CumProd", f"{reverse}{exclusive}", away(2, 5), np.array(1), **options)
            yield sample("CumProd", f"zeros_{reverse}{exclusive}", zeros, np.array(-1), **options)
            yield sample(
                "CumProd", f"at_run_time_{reverse}{exclusive}", away(3, 2), np.array(0), runtime="axis", **options
            )
    yield sample("CumProd", "one", away(2, 1, 3), np.array(1), opset=26, dtypes="")
    axes = {"last": ints(-1), "two": ints(0, -1), "none": ints()}
    for name, array in axes.items():
        for keep in (0, 1):
            yield sample("ReduceProd", f"computed_{name}_{keep}", away(2, 3, 2), array, keepdims=keep, runtime="axes")
    yield sample("ReduceProd", "computed_empty", normal(2, 0, 3), ints(1), runtime="axes")
    yield sample("ReduceProd", "computed_zeros", zeros, ints(1), runtime="axes")
    yield sample("ReduceProd", "computed_not_at_all", away(2, 3), ints(), noop_with_empty_axes=1, runtime="axes")
