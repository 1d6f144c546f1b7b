"""Samples of operators that move elements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Array, Sample, ints, normal, sample

_FAR = 2**62


def samples() -> Iterator[Sample]:
    yield from _shapes()
    yield from _parts()
    yield from _slices()
    yield from _pads()


def _shapes() -> Iterator[Sample]:
    yield sample("Reshape", "flat", normal(2, 3, 4), ints(6, -1))
    yield sample("Reshape", "zero", normal(2, 3, 4), ints(0, -1))
    yield sample("Reshape", "at_run_time", normal(2, 6), ints(3, 4), runtime="shape")
    yield sample("Reshape", "scalar", normal(1, 1), np.zeros(0, np.int64))
    yield sample("Reshape", "allowzero", normal(0, 3), ints(3, 0), allowzero=1)
    yield sample("Reshape", "no_element", normal(2, 0, 3), ints(2, -1, 0))
    yield sample("Squeeze", "axes", normal(2, 1, 3, 1), ints(1, -1))
    yield sample("Squeeze", "all", normal(2, 1, 3, 1))
    yield sample("Squeeze", "at_run_time", normal(2, 1, 3), ints(1), runtime="axes")
    yield sample("Unsqueeze", "axes", normal(2, 3), ints(0, -1))
    yield sample("Unsqueeze", "at_run_time", normal(2, 3), ints(1), runtime="axes")
    for axis in (0, 1, -1, 3):
        yield sample("Flatten", f"axis_{axis}", normal(2, 3, 4), axis=axis)
    yield sample("Transpose", "reversed", normal(2, 3, 4))
    yield sample("Transpose", "perm", normal(2, 3, 4), perm=[2, 0, 1])
    yield sample("Transpose", "same", normal(2, 3), perm=[0, 1])
    yield sample("Expand", "rows", normal(1, 3), ints(4, 3))
    yield sample("Expand", "wide", normal(3, 1), ints(2, 1, 4))
    yield sample("Expand", "narrower", normal(2, 3), ints(3))
    yield sample("Expand", "scalar", np.asarray(normal()), ints(2, 2))
    yield sample("Expand", "to_nothing", normal(1, 3), ints(0, 3))
    yield sample("Expand", "at_run_time", normal(2, 1), ints(3, 1, 2), runtime="shape")


def _parts() -> Iterator[Sample]:
    yield sample("Concat", "two", normal(2, 3), normal(1, 3), axis=0)
    yield sample("Concat", "three", normal(2, 1), normal(2, 2), normal(2, 3), axis=-1)
    yield sample("Concat", "one", normal(2, 1), axis=1)
    yield sample("Concat", "nothing", normal(2, 0), normal(2, 3), axis=1)
    yield sample("Concat", "numbers", normal(2, 3), normal(4, 3), normal(1, 3), axis=-2, constant="inputs_1")
    yield sample("Split", "equal", normal(4, 3), num_outputs=2, outputs=2)
    yield sample("Split", "uneven", normal(2, 5), num_outputs=3, axis=-1, outputs=3)
    yield sample("Split", "sizes", normal(2, 6), ints(1, 2, 3), axis=1, outputs=3)
    yield sample("Split", "nothing", normal(2, 3), ints(3, 0), axis=1, outputs=2)
    yield sample("Split", "at_run_time", normal(5, 2), ints(4, 1), outputs=2, runtime="split")


def _slice(name: str, data: Array, starts: Any, ends: Any, axes: Any = None, steps: Any = None, **kw: Any) -> Sample:
    numbers = [None if part is None else ints(*part) for part in (starts, ends, axes, steps)]
    while numbers[-1] is None:
        numbers.pop()
    return sample("Slice", name, data, *numbers, **kw)


def _slices() -> Iterator[Sample]:
    at_run_time = "starts ends axes steps"
    yield _slice("start", normal(4, 5), [1], [_FAR])
    yield _slice("axes", normal(4, 5), [1, 2], [3, 4], [1, 0])
    yield _slice("negative", normal(4, 5), [-3], [-1], [-1])
    yield _slice("clamped", normal(4, 5), [-9, 1], [9, 99])
    yield _slice("empty", normal(4, 5), [3], [2])
    yield _slice("steps", normal(4, 7), [0, 1], [4, 6], [0, 1], [2, 3])
    yield _slice("backwards", normal(4, 5), [-1], [-_FAR], [1], [-1])
    yield _slice("backwards_two", normal(4, 7), [5, 3], [0, -9], [1, 0], [-2, -1])
    yield _slice("at_run_time", normal(4, 5), [1], [3], runtime=at_run_time)
    yield _slice("all_at_run_time", normal(4, 5), [3, -1], [0, -4], [0, -1], [-1, -2], runtime=at_run_time)
    yield sample("Slice", "int32", normal(4, 5), *(np.array([n], np.int32) for n in (1, 9)), runtime="starts ends")


def _pads() -> Iterator[Sample]:
    yield sample("Pad", "zeros", normal(2, 3), ints(1, 0, 2, 1))
    yield sample("Pad", "value", normal(2, 3), ints(0, 1, 1, 2), np.float32(0.5))
    yield sample("Pad", "cut", normal(4, 5), ints(-1, 2, 0, -2), np.float32(0.5))
    yield sample("Pad", "at_run_time", normal(2, 3), ints(0, 1, 1, 2), np.float32(0.5), runtime="pads")
    yield sample("Pad", "two_axes", normal(2, 3, 4), ints(0, -1, 1, -1), np.float32(0.5), ints(0, -1))
    yield sample("Pad", "axes_at_run_time", normal(2, 3), ints(1, 2), None, ints(-1), runtime="pads axes")
    yield sample("Pad", "edge_cut", normal(3, 4), ints(-1, 2, 1, -1), mode="edge")
    yield sample("Pad", "wrap_far", normal(2, 3), ints(0, 4, 0, 5), mode="wrap")
    yield sample("Pad", "axes", normal(2, 3, 4), ints(1, 2), np.float32(0.5), ints(-2))
    for mode in ("reflect", "edge", "wrap"):
        yield sample("Pad", mode, normal(3, 4), ints(1, 2, 2, 1), mode=mode)
        yield sample("Pad", f"{mode}_axes", normal(2, 4, 3), ints(2, 1), None, ints(1), mode=mode)
