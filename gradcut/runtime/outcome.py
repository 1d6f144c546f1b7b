"""What a run tells: while it runs, and when it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gradcut.runtime.records import Record
from gradcut.runtime.session import StepResult


class Watcher(Protocol):
    """What a run tells while it runs; `steps` is None where nobody knows how many an epoch has."""

    def start(self, epoch: int, epochs: int, steps: int | None, done: int) -> None: ...

    def step(self, result: StepResult, rows: int) -> None: ...

    def record(self, record: Record) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: updates of the whole run. interrupted: by Ctrl-C. stopped: by its patience.
        last: the last line of metrics.jsonl, None before the first.
        steps, rows, seconds: of this call alone. first_loss, last_loss: of its first and last update.
    """

    step: int
    interrupted: bool
    last: Record | None
    checkpoint: Path
    stopped: bool = False
    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None


@dataclass
class Tally:
    """What one call of `run` has done."""

    steps: int = 0
    rows: int = 0
    first: float | None = None
    last: float | None = None

    def add(self, loss: float, rows: int) -> None:
        self.steps, self.rows, self.last = self.steps + 1, self.rows + rows, loss
        self.first = loss if self.first is None else self.first
