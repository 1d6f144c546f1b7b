"""Samples of convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.rules.sample import Sample, normal, sample


def samples() -> Iterator[Sample]:
    yield from _conv()
    yield from _conv_transpose()


def _one(op: str, name: str, x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, **options: Any) -> Sample:
    group = options.get("group", 1)
    channels = w[0] if op == "Conv" else w[1] * group
    operands = [normal(*x), normal(*w), *([normal(channels)] if bias else [])]
    said = {"kernel_shape", "strides", "dilations", "pads", "output_padding", "output_shape"} & options.keys()
    rank_is_said = said or "W" in options.get("known", "").split()
    return sample(op, name, *operands, needs_rank=not rank_is_said, **options)


def _conv() -> Iterator[Sample]:
    yield _one("Conv", "plain", (2, 3, 5, 6), (4, 3, 3, 3))
    yield _one("Conv", "bias_pads", (2, 3, 5, 6), (4, 3, 3, 3), True, pads=[1, 1, 1, 1])
    yield _one("Conv", "uneven_pads", (1, 2, 5, 6), (3, 2, 3, 2), True, pads=[0, 1, 2, 1])
    yield _one("Conv", "pointwise", (2, 3, 4, 4), (5, 3, 1, 1), True)
    yield _one("Conv", "pointwise_strided", (2, 3, 5, 5), (5, 3, 1, 1), strides=[2, 2])
    yield _one("Conv", "strided", (2, 3, 6, 7), (4, 3, 3, 3), True, strides=[2, 3], pads=[1, 1, 1, 1])
    yield _one("Conv", "stride_that_leaves_rows", (1, 2, 8, 9), (2, 2, 2, 3), strides=[3, 4])
    yield _one("Conv", "dilated", (1, 2, 7, 8), (2, 2, 3, 2), True, dilations=[2, 3], pads=[1, 0, 1, 0])
    yield _one("Conv", "dilated_strided", (1, 2, 9, 9), (2, 2, 3, 3), strides=[2, 2], dilations=[2, 1])
    yield _one("Conv", "groups", (2, 4, 5, 5), (6, 2, 3, 3), True, group=2, pads=[1, 1, 1, 1], dtypes="float16")
    yield _one("Conv", "groups_strided", (2, 6, 6, 5), (3, 2, 3, 2), group=3, strides=[2, 1], dtypes="float16")
    yield _one("Conv", "depthwise", (2, 3, 5, 5), (3, 1, 3, 3), True, group=3, pads=[1, 1, 1, 1])
    yield _one("Conv", "depthwise_multiplied", (1, 3, 5, 5), (6, 1, 3, 3), group=3, dilations=[2, 2], dtypes="float16")
    yield _one("Conv", "line", (2, 3, 7), (4, 3, 3), True, strides=[2], pads=[1, 1])
    yield _one("Conv", "line_groups", (2, 4, 7), (4, 1, 3), group=4, dilations=[2], pads=[2, 1])
    yield _one("Conv", "volume", (1, 2, 4, 4, 5), (3, 2, 2, 3, 2), True, strides=[1, 2, 1], pads=[0, 1, 0, 1, 1, 0])
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield _one("Conv", mode, (1, 2, 6, 7), (2, 2, 3, 2), auto_pad=mode, strides=[2, 2])
        yield _one("Conv", f"{mode}_known", (1, 2, 6, 7), (2, 2, 3, 2), auto_pad=mode, strides=[2, 2], known="X W")
        yield _one("Conv", f"{mode}_even", (1, 2, 5, 7), (2, 2, 2, 4), True, auto_pad=mode)
        yield _one("Conv", f"{mode}_sparse", (1, 2, 7, 8), (2, 1, 1, 2), auto_pad=mode, strides=[3, 4], group=2)
        yield _one("Conv", f"{mode}_skips", (2, 2, 8, 8), (3, 2, 1, 1), True, auto_pad=mode, strides=[4, 5],
                   dtypes="float16")  # fmt: skip  # onnx's evaluator, the only one in float64, reads other places
    yield _one("Conv", "kernel_shape", (1, 2, 5, 7), (2, 2, 2, 4), True, auto_pad="SAME_UPPER", kernel_shape=[2, 4])


def _conv_transpose() -> Iterator[Sample]:
    op = "ConvTranspose"
    yield _one(op, "plain", (2, 3, 4, 5), (3, 2, 3, 3))
    yield _one(op, "bias_pads", (2, 3, 4, 5), (3, 2, 3, 3), True, pads=[1, 0, 1, 1])
    yield _one(op, "strided", (1, 3, 4, 3), (3, 2, 3, 2), True, strides=[2, 3], pads=[1, 0, 1, 0])
    yield _one(
        op, "output_padding", (1, 3, 3, 3), (3, 2, 3, 3), True, strides=[2, 3], output_padding=[1, 2], pads=[1] * 4
    )
    yield _one(op, "dilated", (1, 2, 4, 4), (2, 3, 2, 3), dilations=[2, 1], strides=[1, 2])
    yield _one(op, "groups", (2, 4, 3, 3), (4, 3, 3, 3), True, group=2, strides=[2, 2], dtypes="float16")
    yield _one(op, "depthwise", (1, 3, 4, 4), (3, 1, 2, 2), group=3)
    yield _one(op, "line", (2, 3, 4), (3, 2, 3), True, strides=[2])
    yield _one(op, "volume", (1, 2, 2, 3, 2), (2, 2, 2, 2, 3), True, strides=[2, 1, 1])
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield _one(op, mode, (1, 2, 3, 4), (2, 2, 3, 4), True, auto_pad=mode, strides=[2, 1])
        yield _one(op, f"{mode}_known", (1, 2, 3, 4), (2, 2, 3, 4), True, auto_pad=mode, strides=[2, 1], known="W")
    image, half = ((1, 2, 3, 4), (2, 2, 3, 3)), {"strides": [2, 2], "dtypes": "float16"}
    for name, shape in {"smaller": [6, 8], "exact": [7, 9], "larger": [8, 10], "uneven": [5, 6]}.items():
        yield _one(op, f"output_shape_{name}", *image, True, output_shape=shape, **half)
        yield _one(op, f"output_shape_{name}_upper", *image, output_shape=shape, auto_pad="SAME_UPPER", **half)
    padding = {"output_shape": [6, 9], "output_padding": [1, 0]}
    yield _one(op, "output_shape_padding", *image, known="X W", **padding, **half)
    yield _one(op, "output_shape_line", (1, 2, 3), (2, 2, 2), output_shape=[6], strides=[3], dtypes="float16")
    yield _one(
        op, "output_shape_groups", (2, 4, 3), (4, 1, 2), output_shape=[6], strides=[2], group=2, dtypes="float16"
    )
