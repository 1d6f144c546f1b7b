"""Samples of reductions and of running sums."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.rules.sample import Array, Sample, away, distinct, ints, normal, sample

_REDUCTIONS = [f"Reduce{name}" for name in ("Sum", "Mean", "Max", "Min", "SumSquare", "L2", "L1", "LogSumExp")]
_DATA = {"ReduceMax": distinct, "ReduceMin": distinct, "ReduceL1": away}


def samples() -> Iterator[Sample]:
    for op in _REDUCTIONS:
        yield from _reduction(op, lambda *shape, op=op: _DATA.get(op, normal)(*shape))
    yield from _cum_sum()


def _reduction(op: str, data: object) -> Iterator[Sample]:
    assert callable(data)
    none = np.zeros(0, np.int64)
    axes: dict[str, Array | None] = {
        "all": None,
        "last": ints(-1),
        "two": ints(0, 2),
        "negative": ints(-3, 1),
        "empty": none,
    }
    for name, which in axes.items():
        for keep in (0, 1):
            operands = [data(2, 3, 4), *([] if which is None else [which])]
            yield sample(op, f"{name}_keep_{keep}", *operands, keepdims=keep)
    for keep in (0, 1):
        yield sample(op, f"axes_at_run_time_{keep}", data(2, 3, 4), ints(-1, 0), keepdims=keep, runtime="axes")
        yield sample(op, f"no_axes_at_run_time_{keep}", data(2, 3), none, keepdims=keep, runtime="axes")
    yield sample(op, "not_at_all", data(2, 3), noop_with_empty_axes=1)
    yield sample(op, "not_at_all_by_axes", data(2, 3), none, noop_with_empty_axes=1, keepdims=0)
    yield sample(op, "not_at_all_at_run_time", data(2, 3), none, noop_with_empty_axes=1, keepdims=0, runtime="axes")
    yield sample(op, "scalar", data())
    yield sample(op, "vector", data(4), keepdims=0)


def _cum_sum() -> Iterator[Sample]:
    for name, axis in {"first": 0, "last": -1, "middle": 1}.items():
        yield sample("CumSum", name, normal(2, 3, 4), np.array(axis))
    yield sample("CumSum", "reverse", normal(2, 3), np.array(1), reverse=1)
    yield sample("CumSum", "exclusive", normal(2, 3), np.array(1), exclusive=1)
    yield sample("CumSum", "both", normal(2, 3), np.array(0, np.int32), exclusive=1, reverse=1, runtime="axis")
