"""Samples of what turns floats into integers of few bits, and these back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.rules.sample import Array, Sample, distinct, positive, sample

_RNG = np.random.default_rng(20240921)


def samples() -> Iterator[Sample]:
    yield from _dynamic_quantize()
    yield from _dequantize()


def _dynamic_quantize() -> Iterator[Sample]:
    values = distinct(3, 4)
    for name, x in {
        "": values,
        "_above_zero": values + 2,
        "_below_zero": values - 2,
        "_number": np.float32(1.5),
    }.items():
        yield sample("DynamicQuantizeLinear", f"both_sides{name}", x, outputs=3, dtypes="")


def _integers(dtype: type, *shape: int) -> Array:
    return _RNG.integers(1, 100, shape).astype(dtype)


def _dequantize() -> Iterator[Sample]:
    op, shape = "DequantizeLinear", (3, 4, 5)
    for dtype in (np.int8, np.uint8, np.int16, np.uint16):
        yield sample(
            op, f"one_scale_{dtype.__name__}", _integers(dtype, *shape), positive(), _integers(dtype), dtypes=""
        )
    yield sample(op, "int32", _integers(np.int32, *shape), positive(), dtypes="")
    yield sample(op, "one_scale_of_rank_1", _integers(np.int8, *shape), positive(1), _integers(np.int8, 1), dtypes="")
    yield sample(
        op,
        "at_run_time",
        _integers(np.int8, 2, 3),
        positive(),
        _integers(np.int8),
        runtime="x x_zero_point",
        dtypes="",
        needs_rank=True,
    )
    yield sample(op, "number", _integers(np.int8), positive(), dtypes="")
    for axis in (0, 1, -1):
        size = shape[axis]
        operands = _integers(np.int8, *shape), positive(size), _integers(np.int8, size)
        yield sample(op, f"axis_{axis}", *operands, axis=axis, dtypes="float16")
    yield sample(op, "default_axis", _integers(np.uint8, 2, 3), positive(3), dtypes="")
    yield sample(op, "vector", _integers(np.uint8, 3), positive(3), axis=0, dtypes="")
    for block, axis, scales in ((2, 1, (3, 2, 5)), (3, 1, (3, 2, 5)), (2, -1, (3, 4, 3)), (8, 0, (1, 4, 5))):
        operands = _integers(np.int8, *shape), positive(*scales), _integers(np.int8, *scales)
        yield sample(op, f"block_{block}_{axis}", *operands, axis=axis, block_size=block, known="x_scale", dtypes="")
    output = {"axis": 0, "output_dtype": 1}
    yield sample(op, "output_dtype", _integers(np.int8, 2, 3), positive(2), opset=23, **output, dtypes="")
