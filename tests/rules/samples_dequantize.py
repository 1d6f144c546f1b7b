"""Samples of DequantizeLinear, of which the scale has a derivative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Sample, positive, sample

_RNG = np.random.default_rng(20240611)


def _stored(*shape: int, dtype: Any = np.int8) -> np.ndarray[Any, Any]:
    bounds = np.iinfo(dtype)
    return _RNG.integers(max(bounds.min, -300), min(bounds.max, 300), shape, dtype=dtype)


def samples() -> Iterator[Sample]:
    yield _of("whole", _stored(3, 4), positive(1)[0])
    yield _of("whole_shifted", _stored(2, 3, 4, dtype=np.uint8), positive(1)[0], np.array(7, np.uint8))
    yield _of("one", _stored(3, 4), positive(1), np.array([-5], np.int8), axis=0)
    yield _of("int32", _stored(3, 4, dtype=np.int32), positive(1)[0])
    yield _of("places", _stored(2, 3, 4), positive(3), np.array([1, -2, 3], np.int8))
    yield _of("places_first", _stored(3, 4, dtype=np.uint8), positive(3), np.array([1, 2, 255], np.uint8), axis=0)
    yield _of("places_last", _stored(2, 3, 4), positive(4), axis=-1)
    yield _of("places_of_vector", _stored(4), positive(4), axis=0)
    yield _of("blocks", _stored(4, 6), positive(2, 6), _stored(2, 6), axis=0, block_size=2)
    yield _of("blocks_cut", _stored(2, 5, 3), positive(2, 3, 3), axis=1, block_size=2)
    yield _of("blocks_last", _stored(2, 3, 8), positive(2, 3, 2), axis=-1, block_size=4)
    yield _of("scale_of_nothing", _stored(3, 4), np.zeros((), np.float32))


def _of(name: str, *operands: Any, **attributes: Any) -> Sample:
    dtypes = "float16" if operands[0].dtype != np.int32 else ""
    held = {"known": "x_scale", "needs_rank": operands[1].size > 1}
    return sample("DequantizeLinear", name, *operands, runtime="x x_zero_point", dtypes=dtypes, **held, **attributes)
