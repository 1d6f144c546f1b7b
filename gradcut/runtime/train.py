"""Training from data: epochs, held-out evaluation, early stopping, checkpoints that a killed run goes on from.

What a run has done is in one place, the checkpoint: the state and the position in the data are written together,
whole or not at all. `metrics.jsonl` is written before it; lines that a kill left ahead of the checkpoint are dropped on
resume, and the run writes them again. `best.safetensors` is a copy of the checkpoint that an improvement wrote, so it
is never ahead of it; a kill between the two is made good on resume.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradcut import checkpoint
from gradcut.artifacts import BEST, CHECKPOINT, METRICS
from gradcut.errors import ArtifactsError, CheckpointError, DataError, SpecError
from gradcut.io import atomic_write
from gradcut.runtime import averaging
from gradcut.runtime.evaluation import Evaluation, Evaluator
from gradcut.runtime.feeding import Data
from gradcut.runtime.metrics import rises
from gradcut.runtime.outcome import Outcome, Tally, Watcher
from gradcut.runtime.phases import Phases
from gradcut.runtime.plan import Plan, spelled
from gradcut.runtime.position import Position
from gradcut.runtime.prefetch import Prefetch
from gradcut.runtime.records import Record, append_record, read_records, write_records
from gradcut.runtime.session import StepResult, TrainingSession
from gradcut.runtime.signals import Interrupt
from gradcut.runtime.tensorboard import Board, require_writer
from gradcut.schedules import parse_schedule
from gradcut.text import counted

Array = np.ndarray[Any, Any]


class Trainer:
    """One run over a directory of artifacts.

    Raises:
        LossError: the artifacts have no loss. ArtifactsError: they were trained, and not `plan.resume`.
        DataError, FeedError: the data do not fit. SpecError: the schedule or a metric does not. All said before the
            first step.

    Attributes:
        goes_on: whether a run is resumed, not begun. watched: what the best checkpoint is best by.
    """

    def __init__(self, folder: str | os.PathLike[str], plan: Plan, device: str = "cpu") -> None:
        self.folder, self.plan = Path(folder), plan
        self.session = TrainingSession(folder, device=device)
        self.phases = Phases(self.session)
        self.session.require_loss()
        self.loss = self.session.manifest["loss"]  # the same in every phase
        self._refuse_trained()
        self._require_writable()
        if plan.log_dir is not None:
            require_writer()
        recorded = self._recorded()
        self.goes_on = recorded is not None
        self.data = Data(self.phases.lasting(plan), self.session.manifest, recorded)
        self.position = self.data.position
        self.phases.enter(self.position.epoch)
        self.evaluator = Evaluator(self.session, self.position.metrics, self.position.eval_ema)
        self.watched = next(iter(self.evaluator.names), "loss")
        self._require_held_out()
        self.rate = self._rates()
        self.records = read_records(self.folder / METRICS, self.position.written)
        self._board: Board | None = None
        self._tally = Tally()
        self._started = time.monotonic()

    def run(self, watcher: Watcher) -> Outcome:
        """Train until the run's last epoch, until its patience ends, or until an interrupt, which saves and ends it.

        Raises:
            NotFiniteError: the loss or a parameter became NaN or infinite; the last checkpoint is untouched.
            CheckpointError, ArtifactsError: a file cannot be written; the one before it is untouched.
        """
        self._tidy()
        begun = time.monotonic()
        if self.plan.log_dir is not None:
            self._board = Board(self.plan.log_dir, self.session.steps)
        try:
            with Interrupt() as interrupt:
                while self.position.epoch < self.position.epochs and not self.position.stopped and not interrupt:
                    self._epoch(watcher, interrupt)
                if interrupt:
                    self._save()
        finally:
            if self._board is not None:
                self._board.close()
        return self._outcome(bool(interrupt), time.monotonic() - begun)

    # --- an epoch --------------------------------------------------------------------------------------------

    def _epoch(self, watcher: Watcher, interrupt: Interrupt) -> None:
        position = self.position
        self.phases.enter(position.epoch)
        done = math.ceil(position.batch / position.accumulate)
        watcher.start(position.epoch + 1, position.epochs, self.data.steps_per_epoch, done)
        self._started = time.monotonic() - position.seconds
        updates = self.data.training(position.epoch, position.batch)
        with Prefetch(updates, lambda: interrupt) as ready:
            for batches in ready:
                if self._is_due():
                    self._evaluate(watcher, interrupt)
                if interrupt or self.position.stopped:
                    return
                self._update(batches, watcher)
                if interrupt:
                    return
                if self.plan.checkpoint_every and self.session.steps % self.plan.checkpoint_every == 0:
                    self._save()
        if not interrupt:
            self._evaluate(watcher, interrupt, ended=True)

    def _update(self, batches: Sequence[Mapping[str, Array]], watcher: Watcher) -> None:
        step: Any = self.session.step
        result: StepResult = step(batches[0] if len(batches) == 1 else batches, self.rate(self.session.steps))
        weight = sum(averaging.weight(self.loss, feeds) for feeds in batches)
        rows = sum(self.data.count(feeds) for feeds in batches)
        position = self.position
        self.position = replace(
            position,
            batch=position.batch + len(batches),
            loss=position.loss + result.loss * weight,
            weight=position.weight + weight,
            seconds=time.monotonic() - self._started,
        )
        self._tally.add(result.loss, rows)
        if self._board is not None:
            self._board.step(result.step, result.loss, self._last_rate(), rows)
        watcher.step(result, rows)

    def _is_due(self) -> bool:
        """Whether there is an evaluation to make before the next update; at an epoch's end there is one anyway."""
        every, steps = self.position.eval_every, self.session.steps
        return every is not None and steps % every == 0 and steps != self.position.written

    def _evaluate(self, watcher: Watcher, interrupt: Interrupt, ended: bool = False) -> None:
        """Evaluate, write it down, and save where the epoch has `ended` or the model is the best so far."""
        found = self._judge(interrupt)
        if interrupt:
            return
        record = self._record(found)
        self.records.append(record)
        append_record(self.folder / METRICS, record)
        before = self.position.best_step
        self.position = self._after(found, ended)
        improved = self.position.best_step != before
        if ended or improved or self.position.stopped:
            self._save()
        if improved:
            self._keep_best()
        if self._board is not None:
            self._board.record(record)
        watcher.record(record)

    def _judge(self, interrupt: Interrupt) -> Evaluation:
        with Prefetch(self.data.held_out(), lambda: interrupt) as ready:
            return self.evaluator(_until(interrupt, ready))

    def _record(self, found: Evaluation) -> Record:
        position = self.position
        return Record(
            epoch=position.epoch + 1,
            step=self.session.steps,
            loss=position.loss / position.weight if position.weight else None,
            eval_loss=found.loss,
            accuracy=found.metrics.get("accuracy"),
            seconds=round(time.monotonic() - self._started, 3),
            metrics=found.metrics if self.data.holds_out else {},
            lr=self._last_rate(),
        )

    def _after(self, found: Evaluation, ended: bool) -> Position:
        position = replace(self.position, written=self.session.steps)
        if self.data.holds_out:
            value = found.metrics.get(self.watched, found.loss)
            position = position.watched(value, rises(self.watched), self.session.steps)
        if not ended:
            return position
        return replace(position, epoch=position.epoch + 1, batch=0, loss=0.0, weight=0.0, seconds=0.0)

    # --- the learning rate -----------------------------------------------------------------------------------

    def _rates(self) -> Callable[[int], float | None]:
        """The rate by step; None is the optimizer's own."""
        position, per_epoch = self.position, self.data.steps_per_epoch
        if position.schedule is None:
            return lambda step: None if position.lr is None else position.lr * self.phases.factor
        if per_epoch is None:
            raise SpecError(
                f"--schedule {position.schedule} stretches over the run, and {', '.join(self.plan.sources)} yields "
                "nobody knows how many batches; say --steps-per-epoch"
            )
        lr = self.session.plan.base.lr if position.lr is None else position.lr
        rate = parse_schedule(position.schedule).over(position.epochs * per_epoch, lr)
        return lambda step: rate(step) * self.phases.factor

    def _last_rate(self) -> float:
        rate = self.rate(max(self.session.steps - 1, 0))
        return float(self.session.optimizer.lr if rate is None else rate)

    # --- state -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.session.save_checkpoint(self.folder / CHECKPOINT, {"position": self.position.to_json()})

    def _keep_best(self) -> None:
        """The checkpoint, which was written just now, becomes the best one as well."""
        best = self.folder / BEST
        try:
            atomic_write(best, lambda temporary: _copy(self.folder / CHECKPOINT, temporary))
        except OSError as error:
            raise CheckpointError(
                f"{best} could not be written ({error.strerror or error}); what was there is untouched, and the "
                f"checkpoint of step {self.session.steps} is good. Free some space, and go on with --resume"
            ) from error

    def _tidy(self) -> None:
        """Make good what a kill left between the files of the run."""
        if (self.folder / METRICS).exists():
            write_records(self.folder / METRICS, self.records)
        step = self.position.best_step
        if step is not None and step == self.session.steps and _step_of(self.folder / BEST) != step:
            self._keep_best()

    def _outcome(self, interrupted: bool, seconds: float) -> Outcome:
        last, tally = self.records[-1] if self.records else None, self._tally
        return Outcome(
            step=self.session.steps,
            interrupted=interrupted,
            last=last,
            checkpoint=self.folder / CHECKPOINT,
            stopped=self.position.stopped,
            steps=tally.steps,
            rows=tally.rows,
            seconds=seconds,
            first_loss=tally.first,
            last_loss=tally.last,
        )

    # --- refusals --------------------------------------------------------------------------------------------

    def _refuse_trained(self) -> None:
        if self.session.steps and not self.plan.resume:
            raise ArtifactsError(
                f"{self.folder} was trained for {counted(self.session.steps, 'step')}; go on with --resume, "
                "or start over with gradcut compile --force"
            )

    def _require_writable(self) -> None:
        """Now, not when the first checkpoint is due."""
        try:
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ArtifactsError(
                f"{self.folder} cannot be written ({error.strerror or error}), and checkpoints go there; "
                "make it writable, or copy it to a place that is"
            ) from error

    def _recorded(self) -> Position | None:
        recorded = self.session.artifacts.start.get("extra", {}).get("position")
        if recorded is None and self.session.steps:
            raise CheckpointError(
                f"{self.folder / CHECKPOINT} does not say where in the data it is; it was not written by gradcut train"
            )
        try:
            return None if recorded is None else Position(**recorded)
        except TypeError as error:
            where = self.folder / CHECKPOINT
            raise CheckpointError(f"{where}: its position in the data is damaged ({error})") from error

    def _require_held_out(self) -> None:
        if self.data.holds_out:
            return
        for option in ("metrics", "patience", "eval_every", "eval_ema"):
            if getattr(self.position, option):
                raise DataError(f"{spelled(option)} needs held-out rows; give --eval-data, or an --eval-split above 0")


def _until(interrupt: Interrupt, batches: Iterator[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    for feeds in batches:
        if interrupt:
            return
        yield feeds


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as file, open(target, "wb") as copy:
        shutil.copyfileobj(file, copy)


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint, None where there is none to read."""
    try:
        return int(checkpoint.load(path)[1]["step"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None
