"""``gradcut train``: artifacts and data -> trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from gradcut.cli import train_options as options
from gradcut.cli.console import rows
from gradcut.cli.progress import watcher

if TYPE_CHECKING:
    from gradcut.runtime.outcome import Outcome
    from gradcut.runtime.train import Trainer


def command(
    folder: options.Folder,
    data: options.Sources,
    eval_data: options.EvalSources = None,
    eval_split: options.EvalSplit = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    epochs: options.Epochs = None,
    steps_per_epoch: options.StepsPerEpoch = None,
    accumulate: options.Accumulate = None,
    lr: options.Rate = None,
    schedule: options.ScheduleText = None,
    eval_every: options.EvalEvery = None,
    metric: options.Metrics = None,
    patience: options.Patience = None,
    min_delta: options.MinDelta = None,
    eval_ema: options.EvalEma = False,
    device: options.Device = "cpu",
    resume: options.Resume = False,
    checkpoint_every: options.CheckpointEvery = 0,
    log_dir: options.LogDir = None,
) -> None:
    """Train the artifacts in DIR."""
    from gradcut.artifacts import exclusive
    from gradcut.runtime.plan import Plan
    from gradcut.runtime.train import Trainer

    plan = Plan(
        data=data,
        eval_data=eval_data or None,
        eval_split=eval_split,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        lr=lr,
        checkpoint_every=checkpoint_every,
        resume=resume,
        steps_per_epoch=steps_per_epoch,
        schedule=schedule,
        accumulate=accumulate,
        eval_every=eval_every,
        metrics=metric or None,
        patience=patience,
        min_delta=min_delta,
        log_dir=log_dir,
        eval_ema=eval_ema,
    )
    with exclusive(folder):
        trainer = Trainer(folder, plan, device)
        if resume and not trainer.goes_on:
            typer.echo(f"{folder} was not trained yet: a new run begins")
        for note in trainer.data.notes:
            typer.echo(f"note: {note}")
        with watcher() as watching:
            outcome = trainer.run(watching)
    rows(_summary(trainer, outcome))
    if outcome.interrupted:
        typer.echo(f"interrupted after step {outcome.step}; saved {outcome.checkpoint}; go on with --resume")
        raise typer.Exit(130)


def _summary(trainer: Trainer, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """What was done, how good it is, where it lies, and what comes next."""
    from gradcut.text import counted

    position = trainer.position
    done = f"{position.epoch} of {counted(position.epochs, 'epoch')}, {counted(outcome.step, 'step')}"
    if outcome.steps:
        speed = outcome.rows / max(outcome.seconds, 1e-9)
        yield "run", f"{done}; {outcome.seconds:.1f} s, {speed:.0f} samples/s"
        yield "loss", f"{outcome.first_loss:.4f} at the first step, {outcome.last_loss:.4f} at the last"
    else:
        yield "run", f"{done}; nothing was left to do"
    yield from _ended(trainer, outcome)
    yield from _judged(trainer, outcome)
    yield "checkpoint", str(outcome.checkpoint)
    if not outcome.interrupted:
        which = " --best" if position.best_step not in (None, outcome.step) else ""
        which += " --ema" if position.eval_ema else ""
        yield "next", f"gradcut export {trainer.folder} -o {trainer.folder.name}.onnx{which}"


def _ended(trainer: Trainer, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Why a run that is not interrupted has no more to do."""
    position = trainer.position
    from gradcut.text import counted

    if outcome.stopped:
        since = f"no better {trainer.watched} in {counted(position.stale, 'evaluation')}"
        yield "stopped", f"early: {since}; a larger --patience goes on with --resume"
    elif not outcome.steps and not outcome.interrupted:
        yield "", "a larger --epochs goes on"


def _judged(trainer: Trainer, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """The metrics of the last evaluation, and which was the best."""
    position, last = trainer.position, outcome.last
    if last is None or not trainer.data.holds_out:
        return
    figures = last.metrics or {"eval loss": last.eval_loss}
    shown = [f"{name} {value:.4f}" for name, value in figures.items() if value is not None]
    if shown:
        what = ", of the running averages" if position.eval_ema else ""
        yield "held out", f"{', '.join(shown)} at step {last.step}{what}"
    if position.best is not None:
        from gradcut.artifacts import BEST

        what = trainer.watched if trainer.watched != "loss" else "eval loss"
        yield "best", f"{what} {position.best:.4f} at step {position.best_step}: {trainer.folder / BEST}"
