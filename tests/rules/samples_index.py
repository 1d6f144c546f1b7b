"""Samples of gathering and scattering, and of Dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Array, Sample, ints, normal, sample

#: ONNX Runtime's CPU kernels that scatter and add take no halves.
_SCATTERED = {"none": "float16 float64", "add": "float64"}


def samples() -> Iterator[Sample]:
    yield from _gather()
    yield from _elements()
    yield from _nd()
    yield from _dropout()


def _indexed(op: str, name: str, *operands: Array, **options: Any) -> Sample:
    return sample(op, name, *operands, runtime="indices", **options)


def _gather() -> Iterator[Sample]:
    yield _indexed("Gather", "rows", normal(5, 3), ints(4, 0, 4))
    yield _indexed("Gather", "negative", normal(5, 3), ints(-1, 0, -5))
    yield _indexed("Gather", "scalar", normal(5, 3), np.array(2))
    yield _indexed("Gather", "negative_scalar", normal(5, 3), np.array(-2), axis=1)
    yield _indexed("Gather", "matrix", normal(5, 3), ints(4, 0, 1, 4).reshape(2, 2))
    yield _indexed("Gather", "columns", normal(2, 5, 3), ints(4, 0, 4, -2), axis=1)
    yield _indexed("Gather", "last", normal(2, 3, 4), ints(1, 1, 3, 0).reshape(2, 2), axis=-1)
    yield _indexed("Gather", "int32", normal(5, 3), np.array([1, 1], np.int32))
    yield _indexed("Gather", "vector", normal(5), ints(3, 3, 1))
    yield _indexed("Gather", "no_row", normal(5, 3), np.zeros((0, 2), np.int64), axis=1)
    yield _indexed("Gather", "no_element", normal(2, 0), np.array(1), axis=0, known="data")
    yield sample("Gather", "constant", normal(5, 3), ints(1, 2))


def _elements() -> Iterator[Sample]:
    where = ints(0, 1, 2, 2, 0, 0).reshape(2, 3)
    yield _indexed("GatherElements", "first", normal(3, 3), where)
    yield _indexed("GatherElements", "last", normal(3, 4), where, axis=-1)
    yield _indexed("GatherElements", "negative", normal(2, 3), where - 3, axis=1)
    apart = ints(0, 2, 1, 2, 0, 0).reshape(2, 3)
    for reduction, dtypes in _SCATTERED.items():
        data, updates = normal(3, 4), normal(2, 3)
        yield _indexed("ScatterElements", reduction, data, apart, updates, reduction=reduction, dtypes=dtypes)
        last = ints(0, 3, 1, 2, 0, 3).reshape(2, 3)
        options = {"axis": -1, "reduction": reduction, "dtypes": dtypes}
        yield _indexed("ScatterElements", f"{reduction}_last", data, last, updates, **options)
    twice = {"reduction": "add", "dtypes": "float64"}
    yield _indexed("ScatterElements", "add_twice", normal(3, 3), where, normal(2, 3), **twice)
    yield _indexed("ScatterElements", "negative", normal(3, 3), apart - 3, normal(2, 3))


def _nd() -> Iterator[Sample]:
    places = ints(0, 1, 2, 0, 0, 1).reshape(3, 2)
    yield _indexed("GatherND", "elements", normal(3, 2), places)
    yield _indexed("GatherND", "slices", normal(3, 2, 4), places)
    yield _indexed("GatherND", "rows", normal(3, 4), ints(2, -1, 0).reshape(3, 1))
    yield _indexed("GatherND", "wide", normal(3, 2), places.reshape(3, 1, 2))
    yield _indexed("GatherND", "batches", normal(2, 3, 4), ints(2, 0).reshape(2, 1), batch_dims=1)
    yield _indexed("GatherND", "two_batches", normal(2, 2, 3), ints(2, 0, 1, -1).reshape(2, 2, 1), batch_dims=2)
    for reduction, dtypes in _SCATTERED.items():
        options = {"reduction": reduction, "dtypes": dtypes}
        apart = ints(0, 1, 2, 0, 1, 1).reshape(3, 2)
        yield _indexed("ScatterND", f"elements_{reduction}", normal(3, 2), apart, normal(3), **options)
        rows = ints(2, -3).reshape(2, 1)
        yield _indexed("ScatterND", f"rows_{reduction}", normal(3, 4), rows, normal(2, 4), **options)
    yield _indexed("ScatterND", "add_twice", normal(3, 2), places, normal(3), reduction="add", dtypes="float64")


def _dropout() -> Iterator[Sample]:
    yes, no = np.array(True), np.array(False)
    ratio = np.float32(0.4)
    yield sample("Dropout", "default", normal(4, 5), outputs=2)
    yield sample("Dropout", "ratio", normal(4, 5), ratio, constant="ratio")
    yield sample("Dropout", "inference", normal(4, 5), ratio, no, constant="ratio")
    yield sample("Dropout", "training", normal(4, 5), ratio, yes, constant="ratio")
    yield sample("Dropout", "training_mask", normal(4, 5), ratio, yes, constant="ratio", outputs=2)
    yield sample("Dropout", "training_default", normal(4, 5), None, yes)
    yield sample("Dropout", "at_run_time", normal(4, 5), ratio, yes, constant="ratio", runtime="training_mode")
    yield sample("Dropout", "off_at_run_time", normal(4, 5), ratio, no, constant="ratio", runtime="training_mode")
    yield sample("Dropout", "ratio_zero", normal(4, 5), np.float32(0.0), yes, constant="ratio")
