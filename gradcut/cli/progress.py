"""What ``gradcut train`` shows while it runs: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from gradcut.runtime.outcome import Watcher
    from gradcut.runtime.records import Record
    from gradcut.runtime.session import StepResult

#: Seconds between two plain lines where there is no terminal.
_QUIET = 10.0


def watcher() -> Bar | Lines:
    """What fits where the output goes; used within ``with``."""
    return Bar() if sys.stdout.isatty() else Lines()


def line(record: Record) -> str:
    """An evaluation as a sentence."""
    parts = [f"epoch {record.epoch}", f"step {record.step}"]
    judged = {name: value for name, value in record.metrics.items() if name != "loss"}
    for name, value in {"loss": record.loss, "eval loss": record.eval_loss, **judged}.items():
        if value is not None:
            parts.append(f"{name} {value:.4f}")
    return ", ".join([*parts, f"{record.seconds:.1f} s"])


class Lines:
    """Progress where nobody watches a terminal: a line an evaluation, and one now and then."""

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, epoch: int, epochs: int, steps: int | None, done: int) -> None:
        self.epoch, self.epochs, self.per_epoch, self.done = epoch, epochs, steps, done
        self.begun = self.said = time.monotonic()
        self.rows = self.taken = 0

    def step(self, result: StepResult, rows: int) -> None:
        self.rows, self.taken, self.done = self.rows + rows, self.taken + 1, self.done + 1
        now = time.monotonic()
        if now - self.said >= _QUIET:
            self.said = now
            typer.echo(f"{self._where()}, loss {result.loss:.4f}, {self._speed(now)}")

    def _where(self) -> str:
        of = "" if self.per_epoch is None else f" of {self.per_epoch}"
        return f"epoch {self.epoch} of {self.epochs}, step {self.done}{of}"

    def _speed(self, now: float) -> str:
        speed = f"{self.rows / (now - self.begun):.0f} samples/s"
        if self.per_epoch is None:
            return speed
        left = self.per_epoch - self.done + self.per_epoch * (self.epochs - self.epoch)
        return f"{speed}, {(now - self.begun) / self.taken * left:.0f} s left"

    def record(self, record: Record) -> None:
        typer.echo(line(record))


class Bar:
    """A progress bar over the whole run: loss, samples a second, time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} samples/s"),
            TimeRemainingColumn(),
        ]
        self.progress = Progress(*columns)
        self.task: Any = None
        self.begun, self.rows = time.monotonic(), 0

    def __enter__(self) -> Watcher:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, epoch: int, epochs: int, steps: int | None, done: int) -> None:
        total = None if steps is None else epochs * steps
        if self.task is None:
            self.task = self.progress.add_task("", total=total, epoch="", loss=float("nan"), speed=0.0)
        self.progress.update(self.task, epoch=f"{epoch}/{epochs}")
        if steps is not None:
            self.progress.update(self.task, completed=(epoch - 1) * steps + done)

    def step(self, result: StepResult, rows: int) -> None:
        self.rows += rows
        speed = self.rows / max(time.monotonic() - self.begun, 1e-9)
        self.progress.update(self.task, advance=1, loss=result.loss, speed=speed)

    def record(self, record: Record) -> None:
        self.progress.console.print(line(record), highlight=False)
