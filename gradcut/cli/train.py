"""``gradcut train``: artifacts and data -> trained weights."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gradcut.runtime.session import StepResult
    from gradcut.runtime.train import Epoch, Watcher

#: Seconds between two plain lines where there is no terminal.
_QUIET = 10.0


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What gradcut compile wrote.")],
    data: Annotated[Path, typer.Option(metavar="F", help="An .npz; its keys are the graph's input names.")],
    eval_data: Annotated[Path | None, typer.Option(metavar="F", help="An .npz of held-out rows.")] = None,
    eval_split: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of DATA held out instead; 0.2 by default.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of the whole run, those before a --resume included; 1 by default.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step; 32 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split and the shuffling; 0 by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in DIR, with the options of its run.")
    ] = False,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the optimizer's own by default.")] = None,
    checkpoint_every: Annotated[
        int, typer.Option(metavar="STEPS", help="Checkpoints between the ends of epochs; 0: none.")
    ] = 0,
) -> None:
    """Train the artifacts in DIR."""
    from gradcut.runtime.plan import Plan
    from gradcut.runtime.train import Trainer
    from gradcut.text import counted

    plan = Plan(data, eval_data, eval_split, epochs, batch_size, seed, lr, checkpoint_every, resume)
    trainer = Trainer(folder, plan, device)
    start = trainer.session.steps
    if resume and not trainer.goes_on:
        typer.echo(f"{folder} was not trained yet: a new run begins")
    with _watcher() as watcher:
        outcome = trainer.run(watcher)
    if outcome.interrupted:
        typer.echo(f"interrupted after step {outcome.step}; saved {outcome.checkpoint}; go on with --resume")
        raise typer.Exit(130)
    accuracy = None if outcome.last is None else outcome.last.accuracy
    if outcome.step == start:
        typer.echo(f"the run has its {counted(trainer.position.epochs, 'epoch')}; a larger --epochs goes on")
    said = "" if accuracy is None else f"accuracy {accuracy:.4f} on the held-out rows; "
    typer.echo(f"{said}step {outcome.step}; checkpoint {outcome.checkpoint}")


def _watcher() -> Bar | Lines:
    return Bar() if sys.stdout.isatty() else Lines()


def _line(record: Epoch) -> str:
    parts = [f"epoch {record.epoch}", f"step {record.step}"]
    for name, value in (("loss", record.loss), ("eval loss", record.eval_loss), ("accuracy", record.accuracy)):
        if value is not None:
            parts.append(f"{name} {value:.4f}")
    return ", ".join([*parts, f"{record.seconds:.1f} s"])


class Lines:
    """Progress where nobody watches a terminal: a line an epoch, and one now and then."""

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        self.epoch_number, self.epochs, self.batches, self.done = epoch, epochs, batches, done
        self.begun = self.said = time.monotonic()
        self.rows = self.steps = 0

    def step(self, result: StepResult, rows: int) -> None:
        self.rows, self.steps, self.done = self.rows + rows, self.steps + 1, self.done + 1
        now = time.monotonic()
        if now - self.said >= _QUIET:
            self.said = now
            rate = (now - self.begun) / self.steps
            left = rate * (self.batches - self.done + self.batches * (self.epochs - self.epoch_number))
            speed = self.rows / (now - self.begun)
            where = f"epoch {self.epoch_number} of {self.epochs}, batch {self.done} of {self.batches}"
            typer.echo(f"{where}, loss {result.loss:.4f}, {speed:.0f} samples/s, {left:.0f} s left")

    def epoch(self, record: Epoch) -> None:
        typer.echo(_line(record))


class Bar:
    """A progress bar over the whole run: loss, samples a second, time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
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

    def start(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        if self.task is None:
            self.task = self.progress.add_task("", total=epochs * batches, epoch="", loss=float("nan"), speed=0.0)
        completed = (epoch - 1) * batches + done
        self.progress.update(self.task, completed=completed, epoch=f"{epoch}/{epochs}")

    def step(self, result: StepResult, rows: int) -> None:
        self.rows += rows
        speed = self.rows / max(time.monotonic() - self.begun, 1e-9)
        self.progress.update(self.task, advance=1, loss=result.loss, speed=speed)

    def epoch(self, record: Epoch) -> None:
        self.progress.console.print(_line(record), highlight=False)
