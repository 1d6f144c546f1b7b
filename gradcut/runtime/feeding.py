"""The batches that a run trains on and those it is judged by, checked against the graph before anything runs."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from gradcut.errors import DataError
from gradcut.runtime.data import Batches, split_indices
from gradcut.runtime.inputs import Inputs
from gradcut.runtime.plan import Plan
from gradcut.runtime.position import Position, begin, go_on, with_eval_data
from gradcut.runtime.sources import Rows, Stream, open_data
from gradcut.runtime.sources.opening import is_stream
from gradcut.text import counted, join_names

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


class Data:
    """What a run is fed.

    Args:
        recorded: the position of the run that goes on, None where one begins.

    Attributes:
        position: of the run, before its next step.
        per_epoch: batches an epoch; None where a function yields them and nothing limits it.
        notes: what a user should know about how the data are taken.

    Raises:
        DataError, FeedError: the data do not fit the graph or the recorded run.
    """

    def __init__(self, plan: Plan, manifest: Mapping[str, Any], recorded: Position | None) -> None:
        self._inputs = Inputs(manifest)
        self.notes: list[str] = []
        self._source = self._open(plan.sources)
        self.position = self._start(plan, recorded)
        self._held, held = self._hold_out()
        self._held_rows = held[: len(held) - len(held) % self._inputs.fixed] if self._inputs.fixed else held
        self._batches = self._make_batches()
        self._note_left_out(len(held))
        self.per_epoch = self._count()

    def training(self, epoch: int, start: int) -> Iterator[list[Feeds]]:
        """The batches of an epoch from number `start` on, as many together as an update takes; the last fewer."""
        source = self._source
        batches = self._stream(source, epoch, start) if isinstance(source, Stream) else self._rows(epoch, start)
        limited = islice(batches, None if self.per_epoch is None else max(self.per_epoch - start, 0))
        try:
            while update := list(islice(limited, self.position.accumulate)):
                yield update
        finally:
            batches.close()

    def held_out(self) -> Iterator[Feeds]:
        """The held-out batches in order, the last as short as it is."""
        if isinstance(self._held, Stream):
            yield from self._stream(self._held, 0, 0)
            return
        size = self.position.batch_size
        for start in range(0, len(self._held_rows), size):
            rows = self._held_rows[start : start + size]
            if self._held is not None:
                yield self._inputs.cast(self._held.take(rows), self._held.name)

    @property
    def holds_out(self) -> bool:
        """Whether there is anything to be judged by."""
        return isinstance(self._held, Stream) or len(self._held_rows) > 0

    def count(self, feeds: Mapping[str, Array]) -> int:
        """The rows of a batch."""
        return self._inputs.count(feeds)

    @property
    def steps_per_epoch(self) -> int | None:
        """Updates an epoch, None where nobody knows."""
        return None if self.per_epoch is None else math.ceil(self.per_epoch / self.position.accumulate)

    # --- opening ---------------------------------------------------------------------------------------------

    def _open(self, given: Sequence[str]) -> Rows | Stream:
        if not is_stream(given):
            self._inputs.require_rows()
        source = open_data(given, self._inputs.names, self._inputs.whole)
        if isinstance(source, Stream):
            return source
        if source.whole:
            self.notes.append(f"{source.name}: {join_names(source.whole)} is fed as it is to every batch")
        rounded = self._inputs.rounded(source.arrays)
        if rounded:
            self.notes.append(f"{source.name}: {join_names(rounded)} is float64 and is fed as float32")
        return self._inputs.checked(source)

    def _start(self, plan: Plan, recorded: Position | None) -> Position:
        """A fresh position, or the recorded one where nothing that was asked for speaks against it."""
        fixed, checksum = self._inputs.fixed, self._source.checksum
        start = begin(plan, checksum, fixed) if recorded is None else go_on(plan, recorded, checksum)
        if isinstance(self._source, Stream):
            self.notes.append(f"{self._source.name} makes the batches: no --batch-size, no shuffling")
        if fixed and start.batch_size != fixed:
            raise DataError(f"the model's batch is fixed at {fixed}; say --batch-size {fixed}")
        return start

    def _hold_out(self) -> tuple[Rows | Stream | None, Array]:
        """What is held out, and which rows of it."""
        position = self.position
        if position.eval_data is not None:
            held = self._open(position.eval_data)
            self.position = with_eval_data(position, held.checksum)
            if isinstance(held, Rows):
                return held, np.arange(len(held))
            first = self._stream(held, 0, 0)
            next(first)  # what does not fit is said now, not after an epoch
            first.close()
            return held, np.arange(0)
        if position.eval_split and isinstance(self._source, Rows):
            return self._source, split_indices(len(self._source), position.eval_split, position.seed)[1]
        return None, np.arange(0)

    def _make_batches(self) -> Batches | None:
        if isinstance(self._source, Stream):
            return None
        rows = np.arange(len(self._source))
        if self._held is self._source:
            rows = split_indices(len(rows), self.position.eval_split, self.position.seed)[0]
        if not len(rows):
            raise DataError(
                f"--eval-split {self.position.eval_split:g} holds out all of {self._source.name} "
                f"({counted(len(self._source), 'row')}) and leaves none to train on"
            )
        if self._inputs.fixed and len(rows) < self._inputs.fixed:
            raise DataError(
                f"{len(rows)} rows to train on are less than the model's fixed batch of {self._inputs.fixed}"
            )
        return Batches(rows, self.position.batch_size, self.position.seed)

    def _count(self) -> int | None:
        wanted = self.position.steps_per_epoch
        limit = None if wanted is None else wanted * self.position.accumulate
        if self._batches is None:
            return limit
        there = len(self._batches) - (self._left_out() > 0)
        return there if limit is None else min(there, limit)

    def _left_out(self) -> int:
        """Rows of a last batch that is too short for the graph."""
        assert self._batches is not None
        last = self._batches.last
        return last if self._inputs.fixed is not None and last < self._inputs.fixed else 0

    def _note_left_out(self, held: int) -> None:
        """Say which rows nobody will look at."""
        fixed, left = self._inputs.fixed, held - len(self._held_rows)
        if self._batches is not None and (rows := self._left_out()):
            self.notes.append(
                f"the model's batch is fixed at {fixed}: an epoch leaves out {counted(rows, 'row')}, others each time"
            )
        if left:
            self.notes.append(
                f"the model's batch is fixed at {fixed}: {left} of {counted(held, 'held-out row')} left out"
            )
        if self.position.eval_split and isinstance(self._source, Rows) and not held:
            share = f"{self.position.eval_split:g} of {counted(len(self._source), 'row')}"
            self.notes.append(f"{share} is no row: nothing is held out, so nothing is evaluated")

    # --- batches ---------------------------------------------------------------------------------------------

    def _rows(self, epoch: int, start: int) -> Generator[Feeds, None, None]:
        assert self._batches is not None and isinstance(self._source, Rows)
        for rows in self._batches.rows(epoch, start):
            yield self._inputs.cast(self._source.take(rows), self._source.name)

    def _stream(self, stream: Stream, epoch: int, start: int) -> Generator[Feeds, None, None]:
        for number, arrays in enumerate(stream.batches(epoch, self.position.seed)):
            if number >= start:
                yield self._inputs.batch(arrays, f"{stream.name}, batch {number + 1}")
