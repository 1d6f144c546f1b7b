"""Samples of pooling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.rules.sample import Sample, distinct, normal, sample


def samples() -> Iterator[Sample]:
    yield from _max_pool()
    yield from _average_pool()
    places = np.array([[[[0, 7], [10, 13]], [[17, 18], [28, 31]]]], np.int64)
    yield sample("MaxUnpool", "halves", normal(1, 2, 2, 2), places, kernel_shape=[2, 2], strides=[2, 2])
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield sample(op, "image", distinct(2, 3, 3, 4))
        dtypes = "float16" if op == "GlobalMaxPool" else "float16 float64"
        yield sample(op, "line", distinct(2, 3, 5), dtypes=dtypes)
        yield sample(op, "volume", distinct(1, 2, 2, 3, 2), dtypes=dtypes)


def _max_pool() -> Iterator[Sample]:
    square = {"kernel_shape": [2, 2]}
    yield sample("MaxPool", "halves", distinct(2, 3, 4, 6), **square, strides=[2, 2])
    yield sample("MaxPool", "overlapping", distinct(1, 2, 5, 6), kernel_shape=[3, 2])
    yield sample("MaxPool", "pads", distinct(1, 2, 5, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    yield sample("MaxPool", "dilated", distinct(1, 2, 7, 7), **square, dilations=[3, 2])
    yield sample("MaxPool", "ceil", distinct(1, 2, 5, 6), kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)
    yield sample("MaxPool", "leaves_rows", distinct(1, 2, 5, 7), **square, strides=[2, 3])
    yield sample("MaxPool", "line", distinct(2, 3, 7), kernel_shape=[3], strides=[2], pads=[1, 0])
    yield sample("MaxPool", "volume", distinct(1, 2, 4, 3, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2])
    yield sample("MaxPool", "indices", distinct(1, 2, 4, 4), **square, outputs=2)
    for name, shape in {"line": (2, 3, 7), "image": (2, 3, 5, 4), "volume": (1, 2, 3, 4, 5)}.items():
        rank = len(shape) - 2
        attributes = {"kernel_shape": [2] * rank, "strides": [2] * rank, "storage_order": 1}
        yield sample("MaxPool", f"columns_first_{name}", distinct(*shape), **attributes)
        yield sample("MaxPool", f"columns_first_{name}_indices", distinct(*shape), outputs=2, **attributes)
    shared = {"kernel_shape": [2, 3], "outputs": 2}
    yield sample("MaxPool", "indices_dilated", distinct(1, 2, 6, 7), dilations=[2, 2], **shared)
    yield sample("MaxPool", "indices_ceil", distinct(1, 2, 5, 6), strides=[2, 2], ceil_mode=1, **shared)
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield sample("MaxPool", mode, distinct(1, 2, 5, 5), **square, strides=[2, 2], auto_pad=mode)


def _average_pool() -> Iterator[Sample]:
    yield _average("halves", (2, 3, 4, 6), kernel_shape=[2, 2], strides=[2, 2])
    yield _average("overlapping", (1, 2, 5, 6), kernel_shape=[3, 2])
    for include in (0, 1):
        shared = {"kernel_shape": [3, 3], "count_include_pad": include}
        yield _average(f"pads_{include}", (1, 2, 5, 6), strides=[2, 2], pads=[1, 1, 1, 1], **shared)
        yield _average(f"uneven_{include}", (1, 2, 5, 6), pads=[0, 2, 1, 0], **shared)
        yield _average(f"ceil_{include}", (1, 2, 6, 7), strides=[2, 2], ceil_mode=1, **shared)
        yield _average(f"ceil_pads_{include}", (1, 2, 6, 6), strides=[2, 3], pads=[1, 1, 1, 1], ceil_mode=1, **shared)
        yield _average(f"dilated_{include}", (1, 2, 7, 8), dilations=[2, 1], pads=[1, 1, 1, 1], **shared)
    yield _average("leaves_rows", (1, 2, 5, 7), kernel_shape=[2, 2], strides=[2, 3])
    yield _average("line", (2, 3, 7), kernel_shape=[3], strides=[2], pads=[1, 0])
    yield _average("volume", (1, 2, 4, 3, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2], pads=[0, 1, 0, 1, 0, 0])
    yield _average("volume_ceil", (1, 1, 4, 3, 5), kernel_shape=[2, 2, 2], strides=[2, 2, 2], ceil_mode=1)
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        for include in (0, 1):
            shared = {"kernel_shape": [2, 3], "auto_pad": mode, "count_include_pad": include}
            yield _average(f"{mode}_{include}", (1, 2, 5, 5), strides=[2, 2], **shared)
            yield _average(f"{mode}_dense_{include}", (1, 2, 5, 5), **shared)
    yield _average("sparse_same", (1, 2, 7, 5), kernel_shape=[1, 2], strides=[3, 2], auto_pad="SAME_LOWER")
    yield _average("less_than_a_window", (1, 2, 2, 5), kernel_shape=[3, 2], strides=[2, 2])
    yield _average(
        "less_than_a_window_pads", (1, 2, 2), kernel_shape=[5], strides=[4], pads=[1, 0], count_include_pad=1
    )
    yield _average("single", (1, 1, 1, 1), kernel_shape=[1, 1])


def _average(name: str, shape: tuple[int, ...], **attributes: object) -> Sample:
    return sample("AveragePool", name, normal(*shape), **attributes)
