"""Samples of activations, of Einsum, of Resize and its like, and of what stands alone in its topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Sample, away, distinct, ints, normal, positive, sample, within


def samples() -> Iterator[Sample]:
    yield from _activations()
    yield from _trigonometry()
    yield from _normalizations()
    yield from _einsum()
    yield from _resize()
    yield from _moves()
    yield from _arithmetic()


def _activations() -> Iterator[Sample]:
    yield sample("PRelu", "scalar", away(2, 3), np.float32(0.3))
    yield sample("PRelu", "channels", away(2, 3, 2, 2), normal(3, 1, 1))
    yield sample("PRelu", "same", away(2, 3), normal(2, 3))
    for op in ("Elu", "Celu", "Selu"):
        dtypes = "float64" if op == "Celu" else "float16 float64"
        yield sample(op, "default", away(3, 4), dtypes=dtypes)
        yield sample(op, "alpha", away(3, 4), alpha=0.6, dtypes=dtypes)
    yield sample("ThresholdedRelu", "default", away(3, 4, high=3.0))
    yield sample("ThresholdedRelu", "alpha", away(3, 4), alpha=0.25)
    yield sample("Shrink", "default", away(3, 4))
    yield sample("Shrink", "soft", away(3, 4), lambd=0.7, bias=0.4)
    yield sample("Shrink", "negative", away(3, 4), lambd=-0.1, bias=0.4)
    yield sample("Softsign", "matrix", away(3, 4))
    yield sample("Mish", "matrix", normal(3, 4))
    for axis in (-1, 0):
        for p in (1, 2):
            yield sample("LpNormalization", f"{p}_axis_{axis}", away(3, 4), axis=axis, p=p, dtypes="float64")
    yield sample("Swish", "default", normal(3, 4), opset=24)
    yield sample("Swish", "alpha", normal(3, 4), alpha=0.4, opset=24)


def _trigonometry() -> Iterator[Sample]:
    inside = {"Asin", "Acos", "Atanh", "Tan"}
    for op in ("Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"):
        data = within(3, 4) if op in inside else normal(3, 4)
        data = positive(3, 4, low=1.2, high=3.0) if op == "Acosh" else data
        yield sample(op, "matrix", data)


def _normalizations() -> Iterator[Sample]:
    op = "InstanceNormalization"
    yield sample(op, "image", normal(2, 3, 2, 3), positive(3), normal(3), needs_rank=True)
    yield sample(op, "line", normal(2, 3, 5), positive(3), normal(3), epsilon=1e-2, needs_rank=True)
    op = "GroupNormalization"
    yield sample(op, "image", normal(2, 4, 2, 3), positive(4), normal(4), num_groups=2, needs_rank=True)
    yield sample(op, "line", normal(2, 6, 3), positive(6), normal(6), num_groups=3, epsilon=1e-2, needs_rank=True)
    yield sample(op, "one", normal(2, 4, 3), positive(4), normal(4), num_groups=1, needs_rank=True)
    op = "RMSNormalization"
    yield sample(op, "last", normal(2, 3, 5), positive(5), opset=23, needs_rank=True)
    yield sample(op, "axis_1", normal(2, 3, 4), positive(3, 4), axis=1, epsilon=1e-2, opset=23, needs_rank=True)


def _einsum() -> Iterator[Sample]:
    def one(name: str, equation: str, *shapes: tuple[int, ...]) -> Sample:
        operands = (normal(*shape) for shape in shapes)
        return sample("Einsum", name, *operands, equation=equation, needs_rank="..." in equation)

    yield one("matmul", "ij,jk->ik", (2, 3), (3, 4))
    yield one("batches", "bhid,bhjd->bhij", (2, 2, 3, 2), (2, 2, 4, 2))
    yield one("implicit", "ij, kj", (2, 3), (4, 3))
    yield one("transpose", "ijk->kij", (2, 3, 4))
    yield one("sum", "ijk->j", (2, 3, 4))
    yield one("inner", "i,i->", (4,), (4,))
    yield one("summed_alone", "ij,k->i", (2, 3), (4,))
    yield one("three", "ij,jk,kl->il", (2, 3), (3, 2), (2, 4))
    yield one("dots", "...ij,jk->...ik", (2, 2, 2, 3), (3, 4))
    yield one("dots_broadcast", "...ij,...jk->...ik", (2, 1, 2, 3), (1, 4, 3, 2))
    yield one("dots_summed", "ij...->j...", (2, 3, 2))
    yield one("dots_implicit", "...i,i", (2, 3), (3,))
    yield one("dots_of_one", "...,...c->...", (2,), (1, 2))
    yield one("diagonal", "ii->i", (3, 3))
    yield one("diagonals", "bii,ij->bj", (2, 3, 3), (3, 2))
    yield one("trace", "bii->b", (2, 3, 3))
    yield one("thrice", "iii->i", (3, 3, 3))
    yield one("summed_narrow", "ij,jk->ik", (2, 1), (4, 3))
    yield one("summed_narrow_all", "ij,ij->", (1, 5), (3, 1))


def _resize() -> Iterator[Sample]:
    def one(name: str, shape: tuple[int, ...], scales: Any = None, sizes: Any = None, **options: Any) -> Sample:
        numbers = [None, None if scales is None else np.array(scales, np.float32)]
        numbers += [] if sizes is None else [ints(*sizes)]
        constant = "" if scales is None else "scales"
        dtypes = options.pop("dtypes", "")
        options |= {"constant": constant, "dtypes": dtypes, "needs_rank": "axes" in options}
        return sample("Resize", name, normal(*shape), *numbers, **options)

    double = [1.0, 1.0, 2.0, 2.0]
    yield one("nearest", (1, 2, 3, 4), double)
    yield one("nearest_floor", (1, 2, 3, 4), double, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    yield one("linear", (2, 2, 3, 4), double, mode="linear")
    yield one("linear_sizes", (1, 2, 3, 4), None, (1, 2, 5, 7), mode="linear")
    yield one("linear_corners", (1, 2, 3, 4), None, (1, 2, 5, 7), mode="linear",
              coordinate_transformation_mode="align_corners")  # fmt: skip
    yield one("linear_smaller", (1, 1, 6, 7), None, (1, 1, 3, 4), mode="linear", antialias=1)
    yield one("cubic", (1, 1, 4, 5), [1.0, 1.0, 1.5, 2.0], mode="cubic", cubic_coeff_a=-0.5)
    yield one("axes", (1, 2, 3, 4), None, (6, 8), axes=[2, 3])
    yield one("negative_axes", (1, 2, 3, 4), [3.0], axes=[-1])
    yield one("line", (2, 2, 5), [1.0, 1.0, 1.7])
    yield one("volume", (1, 1, 2, 3, 2), [1.0, 1.0, 2.0, 2.0, 3.0])


def _moves() -> Iterator[Sample]:
    yield sample("DepthToSpace", "DCR", normal(1, 8, 2, 3), blocksize=2)
    yield sample("DepthToSpace", "CRD", normal(2, 8, 2, 3), blocksize=2, mode="CRD")
    yield sample("DepthToSpace", "three", normal(1, 9, 2, 1), blocksize=3, mode="CRD")
    yield sample("DepthToSpace", "one", normal(2, 3, 2, 3), blocksize=1)
    yield sample("SpaceToDepth", "image", normal(1, 2, 4, 6), blocksize=2)
    yield sample("Tile", "matrix", normal(2, 3), ints(2, 3))
    yield sample("Tile", "nothing", normal(2, 3), ints(0, 2))
    yield sample("Tile", "scalar", np.asarray(normal()), np.zeros(0, np.int64))
    yield sample("Tile", "ones", normal(2, 3), ints(1, 1))
    yield sample("Tile", "at_run_time", normal(2, 1, 3), ints(2, 1, 2), runtime="repeats")
    yield sample("Trilu", "upper", normal(3, 4))
    yield sample("Trilu", "lower", normal(2, 3, 4), np.array(1), upper=0)
    for name, options in {"last": {}, "first": {"axis": 0}, "smallest": {"largest": 0, "sorted": 0}}.items():
        yield sample("TopK", name, distinct(4, 5), ints(2), outputs=2, **options)
    yield sample("TopK", "nothing", distinct(4, 5), ints(0), outputs=2)
    yield sample("TopK", "at_run_time", distinct(4, 5), ints(3), outputs=2, runtime="K")


def _arithmetic() -> Iterator[Sample]:
    yield sample("Mean", "two", normal(2, 3), normal(3))
    yield sample("Mean", "three", normal(2, 1), normal(2, 3), np.float32(0.5), dtypes="float16")
    yield sample("Mod", "same", away(2, 3, low=1.0, high=5.0), away(2, 3, low=0.7, high=0.9), fmod=1)
    yield sample("Mod", "row", away(2, 3, low=1.0, high=5.0), away(3, low=0.7, high=0.9), fmod=1)
    zeros = np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 1.5]], np.float32)
    for name, axes in {"all": [], "last": [ints(-1)], "first": [ints(0)]}.items():
        for keep in (0, 1):
            yield sample("ReduceProd", f"{name}_{keep}", away(2, 3), *axes, keepdims=keep)
    yield sample("ReduceProd", "two", away(2, 3, 2), ints(0, 2))
    yield sample("ReduceProd", "empty", normal(2, 0, 3), ints(1))
    yield sample("ReduceProd", "empty_others", normal(2, 0, 3), ints(2))
    yield sample("ReduceProd", "zeros", zeros, ints(1))
    many = positive(2, 5, 14, low=0.8, high=1.25)
    many[0, :2, 3] = many[1, 2, 0] = 0.0  # of 70 elements none, one and two
    yield sample("ReduceProd", "many", many, ints(1, 2))
    yield sample("ReduceProd", "not_at_all", normal(2, 3), noop_with_empty_axes=1)
    for keep in (0, 1):
        yield sample("ReduceLogSum", f"last_{keep}", positive(2, 3), ints(-1), keepdims=keep)
    yield sample("ReduceLogSum", "all", positive(2, 3))
