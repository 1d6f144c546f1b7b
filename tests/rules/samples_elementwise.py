"""Samples of elementwise operators."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from tests.rules.sample import Sample, away, distinct, normal, positive, sample


def samples() -> Iterator[Sample]:
    yield from _unary()
    yield from _binary()
    yield from _cast()
    yield from _power()
    yield from _selection()
    yield from _many()


def _unary() -> Iterator[Sample]:
    for op in ("Identity", "Neg", "Sigmoid", "Tanh", "Exp", "Erf", "Sin", "Cos", "Softplus"):
        yield sample(op, "matrix", normal(3, 4))
    for op in ("Log", "Sqrt", "Reciprocal"):
        yield sample(op, "matrix", positive(3, 4))
    yield sample("Reciprocal", "signs", away(2, 3))
    yield sample("Abs", "matrix", away(3, 4))
    yield sample("Relu", "matrix", away(3, 4))
    yield sample("Relu", "scalar", np.float32(0.7))
    yield sample("Sigmoid", "scalar", np.float32(0.7))
    yield sample("LeakyRelu", "alpha", away(3, 4), alpha=0.2)
    yield sample("LeakyRelu", "default", away(3, 4))
    yield sample("HardSigmoid", "alpha", away(3, 4, low=0.1, high=1.2), alpha=0.4, beta=0.6)
    yield sample("HardSigmoid", "default", away(2, 8, low=0.2, high=4.0))
    yield sample("HardSwish", "matrix", np.array([[-4.0, -2.0, -0.5], [0.4, 2.0, 5.0]], np.float32))
    yield sample("Gelu", "erf", normal(3, 4))
    yield sample("Gelu", "tanh", normal(3, 4), approximate="tanh")


def _binary() -> Iterator[Sample]:
    pairs = {
        "same": (away(3, 4), away(3, 4)),
        "row": (away(3, 4), away(4)),
        "column": (away(3, 1), away(3, 4)),
        "outer": (away(3, 1), away(1, 4)),
        "scalar": (away(2, 3), np.float32(1.3)),
        "wide": (away(4), away(2, 3, 4)),
        "inner": (away(2, 3, 4), away(3, 1)),
        "one": (away(2, 3), away(1, 1, 1)),
    }
    for op in ("Add", "Sub", "Mul", "Div"):
        for name, (a, b) in pairs.items():
            yield sample(op, name, a, b)
    yield sample("Div", "number", away(2, 3), np.float32(2.5), constant="B")


def _cast() -> Iterator[Sample]:
    yield sample("Cast", "double", normal(2, 3), to=TensorProto.DOUBLE)
    yield sample("Cast", "from_half", normal(2, 3).astype(np.float16), to=TensorProto.FLOAT)
    yield sample("CastLike", "double", normal(2, 3), np.zeros(1, np.float64), constant="target_type")


def _power() -> Iterator[Sample]:
    for exponent in (2.0, 3.0, 0.5, -1.5, 1.0):
        yield sample("Pow", f"number_{exponent}", positive(2, 3), np.float32(exponent), constant="Y")
    yield sample("Pow", "zero", away(2, 3), np.float32(0.0), constant="Y", unwanted="Y")
    yield sample("Pow", "negative_base", away(2, 3), np.float32(3.0), constant="Y", unwanted="Y")
    yield sample("Pow", "integer", away(2, 3), np.array([1, 2, 3]))
    yield sample("Pow", "integer_at_run_time", away(2, 3), np.array([0, 2, 3]), runtime="Y")
    yield sample("Pow", "constant_vector", positive(2, 3), np.array([0.0, 2.0, 0.5], np.float32), constant="Y")
    yield sample("Pow", "both", positive(2, 3), normal(2, 3))
    yield sample("Pow", "row", positive(2, 3), normal(3))
    yield sample("Pow", "wide", positive(3), normal(2, 3))


def _selection() -> Iterator[Sample]:
    mask = np.array([[True, False, True, True], [False, False, True, False]])
    yield sample("Where", "same", mask, normal(2, 4), normal(2, 4))
    yield sample("Where", "at_run_time", mask, normal(2, 4), normal(2, 4), runtime="condition")
    yield sample("Where", "scalar", mask, normal(2, 4), np.float32(-3.0))
    yield sample("Where", "wide_mask", mask[:, None], normal(4), normal(3, 1))
    yield sample("Where", "narrow_mask", np.array([True, False]), normal(3, 2), normal(2), runtime="condition")
    low, high = np.float32(-0.5), np.float32(0.6)
    yield sample("Clip", "both", normal(3, 4), low, high)
    yield sample("Clip", "numbers", normal(3, 4), low, high, constant="min max")
    yield sample("Clip", "below", normal(3, 4), low)
    yield sample("Clip", "above", normal(3, 4), None, high)
    yield sample("Clip", "none", normal(3, 4))
    yield sample("Clip", "crossed", normal(3, 4), np.float32(0.5), np.float32(0.1))


def _many() -> Iterator[Sample]:
    yield sample("Sum", "one", normal(2, 3))
    yield sample("Sum", "three", normal(2, 3), normal(3), normal(2, 1))
    for op in ("Max", "Min"):
        yield sample(op, "one", normal(2, 3))
        yield sample(op, "two", *np.split(distinct(2, 2, 3), 2))
        yield sample(op, "row", distinct(3, 4), distinct(4) + np.float32(0.04))
        parts = distinct(3, 2, 3)
        yield sample(op, "three", parts[0], parts[1][:1], parts[2])
        yield sample(op, "number", distinct(3, 4), np.float32(0.01), constant="data_0_1")
