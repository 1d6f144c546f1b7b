"""Samples of scattering with reductions, of choosing and reordering rows, and of spreading numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Array, Sample, distinct, ints, normal, sample


def samples() -> Iterator[Sample]:
    yield from _reductions()
    yield from _caches()
    yield from _chosen()
    yield from _reordered()
    yield from _spread()


def _apart(*shapes: tuple[int, ...]) -> list[Array]:
    """Arrays no two elements of which are near each other."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    parts = np.split(distinct(sum(sizes)), np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _reductions() -> Iterator[Sample]:
    """Places named once, twice, from behind; the extremum in data and in updates; a zero among factors."""
    twice = ints(0, 2, 0, 2, 0, 0).reshape(2, 3)
    for reduction in ("mul", "max", "min"):
        options: dict[str, Any] = {"reduction": reduction, "runtime": "indices", "dtypes": "float64"}
        yield sample("ScatterElements", f"{reduction}_rows", *_with(_apart((3, 4), (2, 3)), twice), **options)
        last = twice.T.copy() - 3
        yield sample("ScatterElements", f"{reduction}_last", *_with(_apart((4, 3), (3, 2)), last), axis=-1, **options)
        yield sample("ScatterElements", f"{reduction}_one", *_with(_apart((1,), (1,)), ints(0)), **options)
        rows = ints(2, -3, 2).reshape(3, 1)
        yield sample("ScatterND", f"{reduction}_rows", *_with(_apart((3, 2), (3, 2)), rows), **options)
        places = ints(0, 1, 2, 0, 0, 1, 0, -1).reshape(4, 2)
        yield sample("ScatterND", f"{reduction}_places", *_with(_apart((3, 2), (4,)), places), **options)
        nothing = np.zeros((0, 3), np.int64)
        yield sample("ScatterElements", f"{reduction}_nothing", normal(3, 3), nothing, normal(0, 3), **options)
    wide = {"reduction": "max", "runtime": "indices", "dtypes": "float16"}
    yield sample("ScatterElements", "max_halves", *_with(_apart((3, 4), (2, 3)), twice), **wide)
    zeros = {"reduction": "mul", "runtime": "indices", "dtypes": "float64"}
    data, updates = np.float32([0, 2, 3, 4]), np.float32([0, 5, 0, 0, 6])
    yield sample("ScatterElements", "mul_zeros", data, ints(1, 1, 2, 0, 3), updates, **zeros)
    yield sample("ScatterND", "mul_zeros", data, ints(1, 1, 2, 0, 3).reshape(5, 1), updates, **zeros)


def _with(arrays: list[Array], indices: Array) -> tuple[Array, Array, Array]:
    data, updates = arrays
    return data, indices, updates


def _caches() -> Iterator[Sample]:
    where: dict[str, Any] = {"opset": 24, "runtime": "write_indices", "needs_rank": True}
    cache, update, first = (2, 3, 5, 2), (2, 3, 2, 2), ints(1, 3)
    yield sample("TensorScatter", "linear", normal(*cache), normal(*update), first, **where)
    yield sample("TensorScatter", "circular", normal(*cache), normal(*update), first + 1, mode="circular", **where)
    yield sample("TensorScatter", "start", normal(*cache), normal(*update), **where)
    yield sample("TensorScatter", "axis", normal(2, 4, 3), normal(2, 2, 3), ints(2, 0), axis=1, **where)
    yield sample(
        "TensorScatter", "last", normal(2, 1, 4), normal(2, 1, 4), ints(3, 0), axis=-1, mode="circular", **where
    )


def _chosen() -> Iterator[Sample]:
    yes = np.array([False, True, True])
    for name, axis in {"first": 0, "last": -1, "middle": 1}.items():
        yield sample("Compress", name, normal(3, 3, 4), yes, axis=axis, runtime="condition")
    yield sample("Compress", "shorter", normal(3, 4), yes[:2], axis=1)
    yield sample(
        "Compress", "flat", normal(2, 3), np.array([True, False, True, False, True, True]), runtime="condition"
    )
    yield sample("Compress", "flat_shorter", normal(2, 3), yes)
    yield sample("Compress", "longer", normal(2, 3), np.array([True, False, False, True]), axis=0)
    yield sample("Compress", "none", normal(2, 3), np.array([False, False]), axis=0, runtime="condition")
    for order in (0, 1):
        numbers = {"outputs": 4, "sorted": order, "dtypes": "float64"}
        yield sample("Unique", f"flat_{order}", distinct(2, 4), **numbers)
        yield sample("Unique", f"rows_{order}", distinct(3, 2), axis=0, **numbers)
        yield sample("Unique", f"columns_{order}", distinct(2, 3, 2), axis=-1, **numbers)
    yield sample("Unique", "values_alone", distinct(5), dtypes="float64")


def _reordered() -> Iterator[Sample]:
    lengths = {"runtime": "sequence_lens"}
    yield sample("ReverseSequence", "default", normal(4, 3, 2), ints(1, 4, 3), **lengths)
    yield sample("ReverseSequence", "batch_first", normal(2, 4), ints(3, 2), batch_axis=0, time_axis=1, **lengths)
    target = {"runtime": "shape", "dtypes": "float64"}
    for name, sizes in {"crop": (3, 2), "crop_odd": (2, 3), "pad": (6, 8), "pad_odd": (7, 7), "both": (4, 8)}.items():
        yield sample("CenterCropPad", name, normal(5, 6), ints(*sizes), **target)
    yield sample("CenterCropPad", "axes", normal(2, 5, 4), ints(3, 7), axes=[-1, 1], **target)
    yield sample("CenterCropPad", "constant", normal(2, 5, 4), ints(3), axes=[1], dtypes="float64")


def _spread() -> Iterator[Sample]:
    off_on = np.float32([-0.5, 1.5])
    indices = ints(0, 2, -1, 7).reshape(2, 2)
    for axis in (-1, 0, 1):
        options = {"axis": axis, "runtime": "indices", "dtypes": ""}
        yield sample("OneHot", f"axis_{axis}", indices, np.array(3), off_on, **options)
    yield sample("OneHot", "vector", ints(1, -4), np.array([3]), off_on, runtime="indices depth", dtypes="float16")
    yield sample("Range", "up", np.float32(0.3), np.float32(2.0), np.float32(0.4), dtypes="float64")
    yield sample("Range", "down", np.float32(2.3), np.float32(-1), np.float32(-0.7), dtypes="float64")
    yield sample("Range", "one", np.float32(2.3), np.float32(2.5), np.float32(0.6), dtypes="float64")
