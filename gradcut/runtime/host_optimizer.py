"""The optimizer outside the graph: numba kernels that update numpy arrays in place.

One call updates everything. The tensors of one optimizer and dtype stand in a table of addresses, cut into parts of
equal element count, so that neither sixty small tensors nor one large one cost more than their memory traffic. The
kernels release the GIL, and parts run on a thread pool of our own: OpenMP's workers, like ONNX Runtime's, spin after
their work is done and take the cores from whoever is next (a session beside this wants
``session.force_spinning_stop``). Norms are summed in float64 over blocks that do not depend on the number of threads,
so neither does any result.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import numpy as np

from gradcut.errors import FeedError, SpecError
from gradcut.optimizers import NORM_EPS, Optimizer, UpdatePlan
from gradcut.runtime import kernels
from gradcut.runtime.finite import require_finite_norm
from gradcut.runtime.host_updates import host_update
from gradcut.runtime.kernels import Kernel

Array = np.ndarray[Any, Any]
Work = tuple[Array, list[tuple[int, int]]]

_PARALLEL_FROM = 1 << 18  # elements: below, waking a thread (about 70 us) costs more than it saves
_PARTS_PER_THREAD = 4  # so that a core that is busy elsewhere does not hold up the others
_BLOCK = 1 << 16  # elements whose squares are one sum
_GRADIENT = 1  # column of the address table; 0 is the parameter, from 2 on come the slots


class _Table:
    """Tensors of one dtype that are updated alike: where they are, and how the work on them is cut."""

    def __init__(self, names: Sequence[str], columns: Sequence[Sequence[Array]], threads: int) -> None:
        self.names = names
        self.arrays = columns  # per tensor: parameter, slots; kept, as their addresses are
        self.dtype = columns[0][0].dtype
        rows = [[own[0].ctypes.data, 0, *(slot.ctypes.data for slot in own[1:])] for own in columns]
        self.addresses = np.array(rows, dtype=np.int64)
        sizes = [own[0].size for own in columns]
        parts = threads * _PARTS_PER_THREAD if threads > 1 and sum(sizes) >= _PARALLEL_FROM else 1
        self.work = cut(sizes, parts)
        self.blocks = _in_blocks(sizes, parts)
        self.rates = np.ones(len(names), self.dtype)
        self.sums = np.zeros((len(self.blocks[0]), 2))

    def aim(self, gradients: Mapping[str, Array]) -> list[Array]:
        """Point the table at this step's gradients; the arrays to keep alive for as long."""
        held = [_gradient(gradients, name, own[0]) for name, own in zip(self.names, self.arrays, strict=True)]
        self.addresses[:, _GRADIENT] = [gradient.ctypes.data for gradient in held]
        return held

    def totals(self) -> Array:
        """What a kernel has measured, summed over the blocks of each tensor: [2, tensors]."""
        tensors = self.blocks[0][:, 0]
        return np.stack([np.bincount(tensors, column, len(self.names)) for column in self.sums.T])


def _in_blocks(sizes: Sequence[int], parts: int) -> Work:
    """As `cut`, in segments that do not depend on `parts`."""
    rows = [
        (tensor, start, min(_BLOCK, size - start))
        for tensor, size in enumerate(sizes)
        for start in range(0, size, _BLOCK)
    ]
    bounds = [len(rows) * part // parts for part in range(parts + 1)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3), list(pairwise(bounds))


def cut(sizes: Sequence[int], parts: int) -> tuple[Array, list[tuple[int, int]]]:
    """Cut tensors laid end to end into `parts` of equal length.

    Returns segments, INT64 [n, 3], each (tensor, first element, elements) within one tensor, and for each part
    its segments as a range (first, last). Tensors without elements are in no segment.
    """
    total = sum(sizes)
    bounds = [total * part // parts for part in range(1, parts + 1)]
    segments: list[tuple[int, int, int]] = []
    ranges: list[tuple[int, int]] = []
    first = position = 0
    for tensor, size in enumerate(sizes):
        start = 0
        while start < size:
            count = min(size - start, bounds[len(ranges)] - position)
            if count:
                segments.append((tensor, start, count))
            start, position = start + count, position + count
            if position == bounds[len(ranges)]:
                ranges.append((first, len(segments)))
                first = len(segments)
    return np.array(segments, dtype=np.int64).reshape(-1, 3), ranges


class HostOptimizer:
    """Updates `parameters` and `slots` in place; their memory stays where it is.

    Args:
        optimizer: which update, the same for all parameters or a plan; the learning rate is given to `step`.
        parameters: float32 or float64 arrays, contiguous and writable, by name.
        slots: for each parameter, by its name, an array like it for each of its slots.
        threads: how many threads take part; None: the cores this process may use.

    Raises SpecError for an array of another dtype, not in place updatable, or not there.
    """

    def __init__(
        self,
        optimizer: Optimizer | UpdatePlan,
        parameters: Mapping[str, Array],
        slots: Mapping[str, Mapping[str, Array]],
        threads: int | None = None,
    ) -> None:
        self._plan = optimizer if isinstance(optimizer, UpdatePlan) else UpdatePlan(optimizer)
        self._threads = threads if threads is not None else _cores()
        rows = {name: _row(self._plan, name, array, slots) for name, array in parameters.items()}
        alike: dict[tuple[np.dtype[Any], Optimizer, str], list[str]] = {}
        for name, array in parameters.items():
            alike.setdefault((array.dtype, self._plan.of(name), self._plan.clock(name)), []).append(name)
        self._tables = [
            (self._plan.of(names[0]), host_update(self._plan.of(names[0])), self._table(names, rows))
            for names in alike.values()
        ]
        self._averages = self._average_tables(rows) if self._plan.ema is not None else []
        self._pool: ThreadPoolExecutor | None = None

    def _table(self, names: Sequence[str], rows: Mapping[str, Sequence[Array]]) -> _Table:
        return _Table(names, [rows[name] for name in names], self._threads)

    def _average_tables(self, rows: Mapping[str, Sequence[Array]]) -> list[_Table]:
        """Parameters beside their last slot, which is the average."""
        pairs = {name: [row[0], row[-1]] for name, row in rows.items()}
        dtypes = dict.fromkeys(row[0].dtype for row in rows.values())
        return [self._table([name for name in rows if rows[name][0].dtype == dtype], pairs) for dtype in dtypes]

    def step(
        self, gradients: Mapping[str, Array], lr: float, step: int, clocks: Mapping[str, int] | None = None
    ) -> float | None:
        """One update; where gradients are clipped by their norm, that norm before, else None.

        Args:
            gradients: by parameter name, of the parameters' shapes and dtypes; other names are passed over.
            lr: the base learning rate of this step.
            step: updates done before this one. clocks: likewise, by the names that the plan gives counts of their own.

        Raises, before anything is changed, FeedError for a gradient that is missing or does not fit, and
        NotFiniteError where gradients are clipped by a norm that is NaN or infinite.
        """
        held = [table.aim(gradients) for _, _, table in self._tables]
        norm = self._norm() if self._plan.clip_norm is not None else None
        factor = 1.0
        if norm is not None and self._plan.clip_norm is not None:
            require_finite_norm(norm, step + 1)
            factor = min(1.0, self._plan.clip_norm / (norm + NORM_EPS))
        for optimizer, update, table in self._tables:
            rate = lr * self._plan.factor(optimizer)
            clock = self._plan.clock(table.names[0])
            done = (clocks or {}).get(clock, 0) if clock else step
            taken = [factor * update.sign, self._limit, *update.scalars(rate, done)]
            scalars = np.array(taken, dtype=table.dtype)
            if update.measure is not None and update.ratios is not None:
                self._run(update.measure, table, table.blocks, scalars)
                weights, moves = np.sqrt(table.totals())
                # what `squares` measures has no factor yet; LAMB's measure is of what it moves by
                moves = moves * factor if update.measure is kernels.squares else moves
                table.rates[:] = update.ratios(weights, moves)
            self._run(update.kernel, table, table.work, scalars)
        for table in self._averages:
            assert self._plan.ema is not None
            self._run(kernels.average, table, table.work, np.array([self._plan.ema, 1.0 - self._plan.ema], table.dtype))
        del held
        return norm

    @property
    def _limit(self) -> float:
        return self._plan.clip_value if self._plan.clip_value is not None else math.inf

    def _norm(self) -> float:
        """Of all gradients together, bounded by value."""
        totals = []
        for _, _, table in self._tables:
            self._run(kernels.gradient_squares, table, table.blocks, np.array([1.0, self._limit], table.dtype))
            totals.append(table.sums[:, 1])
        return math.sqrt(float(np.concatenate([np.zeros(1), *totals]).sum()))

    def _run(self, kernel: Kernel, table: _Table, work: Work, scalars: Array) -> None:
        segments, ranges = work
        parts = iter(ranges)

        def drain() -> None:
            for first, last in parts:
                kernel(first, last, segments, table.addresses, scalars, table.rates, table.sums)

        helpers = [self._workers().submit(drain) for _ in range(min(self._threads, len(ranges)) - 1)]
        try:
            drain()
        finally:
            wait(helpers)  # no thread may still write when an interrupt is on its way up
        for helper in helpers:
            helper.result()

    def _workers(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="gradcut-optimizer")
        return self._pool


def _row(plan: UpdatePlan, name: str, parameter: Array, slots: Mapping[str, Mapping[str, Array]]) -> list[Array]:
    """The parameter and its slots, checked."""
    if parameter.dtype not in (np.float32, np.float64):
        raise SpecError(
            f"{name!r} is {parameter.dtype}: the host optimizer updates float32 and float64 only; "
            "take optimizer_backend='graph'"
        )
    own = [parameter, *_slots(plan, name, slots)]
    for array in own:
        if array.dtype != parameter.dtype or array.shape != parameter.shape:
            raise SpecError(
                f"{plan.of(name).name}'s state for {name!r} is {array.dtype}{list(array.shape)}; "
                f"wanted is {parameter.dtype}{list(parameter.shape)}"
            )
        if not array.flags.carray:
            raise SpecError(f"{name!r}: an array that is updated in place must be contiguous and writable")
    return own


def _slots(plan: UpdatePlan, name: str, slots: Mapping[str, Mapping[str, Array]]) -> Iterator[Array]:
    for slot in plan.slots(name):
        if slot not in slots.get(name, {}):
            raise SpecError(f"{plan.of(name).name} wants state {slot!r} for {name!r}")
        yield slots[name][slot]


def _gradient(gradients: Mapping[str, Array], name: str, parameter: Array) -> Array:
    if name not in gradients:
        raise FeedError(f"there is no gradient for {name!r}")
    gradient = gradients[name]
    if gradient.dtype != parameter.dtype or gradient.shape != parameter.shape:
        raise FeedError(
            f"the gradient of {name!r} is {gradient.dtype}{list(gradient.shape)}; "
            f"wanted is {parameter.dtype}{list(parameter.shape)}"
        )
    if gradient.flags.c_contiguous and gradient.flags.aligned:
        return gradient
    return np.require(gradient, requirements=["C", "A"])


def _cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
