"""Training from a data file: shuffled epochs, held-out evaluation, metrics, checkpoints that a killed run goes on from.

What a run has done is in one place, the checkpoint: the state and the position in the data are written together,
whole or not at all. `metrics.jsonl` is written before it; lines that a kill left ahead of the checkpoint are dropped on
resume, and the run writes them again.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gradcut.artifacts import CHECKPOINT
from gradcut.errors import ArtifactsError, CheckpointError, DataError, FeedError
from gradcut.io import atomic_write_bytes
from gradcut.losses import terms_of
from gradcut.runtime import averaging
from gradcut.runtime.data import Batches, check_keys, load_npz, split_indices
from gradcut.runtime.feeds import FeedCheck
from gradcut.runtime.metrics import hits_and_count
from gradcut.runtime.plan import Plan, Position, begin, go_on, with_eval_data
from gradcut.runtime.session import StepResult, TrainingSession
from gradcut.runtime.signals import Interrupt
from gradcut.text import counted

Array = np.ndarray[Any, Any]
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Epoch:
    """One line of ``metrics.jsonl``, where NaN is null. `epoch` counts from 1; `accuracy` is of the held-out rows."""

    epoch: int
    step: int
    loss: float | None
    eval_loss: float | None
    accuracy: float | None
    seconds: float


class Watcher(Protocol):
    """What a run tells while it runs."""

    def start(self, epoch: int, epochs: int, batches: int, done: int) -> None: ...

    def step(self, result: StepResult, rows: int) -> None: ...

    def epoch(self, record: Epoch) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `last` is the last epoch's line, None before the first."""

    step: int
    interrupted: bool
    last: Epoch | None
    checkpoint: Path


class Trainer:
    """One run over a directory of artifacts.

    Raises:
        LossError: the artifacts have no loss. ArtifactsError: they were trained, and not `plan.resume`.
        DataError, FeedError: the data do not fit, said before the first step.

    Attributes:
        goes_on: whether a run is resumed, not begun.
    """

    def __init__(self, folder: str | os.PathLike[str], plan: Plan, device: str = "cpu") -> None:
        self.folder, self.plan = Path(folder), plan
        self.session = TrainingSession(folder, device=device)
        self.session.require_loss()
        self.loss = self.session.manifest["loss"]
        self._refuse_trained()
        recorded = self._recorded()
        self.goes_on = recorded is not None
        self.data = Data(plan, self.session.manifest, recorded)
        self.position = self.data.position
        self.records = _read_metrics(self.folder / METRICS, self.position.epoch)
        self._started = time.monotonic()

    def run(self, watcher: Watcher) -> Outcome:
        """Train until the run's last epoch, or until an interrupt, which saves and ends it.

        Raises:
            NotFiniteError: the loss or a parameter became NaN or infinite; the last checkpoint is untouched.
        """
        if self.plan.resume and (self.folder / METRICS).exists():
            _write_metrics(self.folder / METRICS, self.records)
        with Interrupt() as interrupt:
            while self.position.epoch < self.position.epochs and not interrupt:
                self._epoch(watcher, interrupt)
            if interrupt:
                self._save()
        last = self.records[-1] if self.records else None
        return Outcome(self.session.steps, bool(interrupt), last, self.folder / CHECKPOINT)

    def _epoch(self, watcher: Watcher, interrupt: Interrupt) -> None:
        position = self.position
        watcher.start(position.epoch + 1, position.epochs, self.data.per_epoch, position.batch)
        self._started = time.monotonic() - position.seconds
        for feeds, rows in self.data.training(position.epoch, position.batch):
            result = self.session.step(feeds, position.lr)
            self._count(result, feeds)
            watcher.step(result, rows)
            if interrupt:
                return
            if self.plan.checkpoint_every and self.session.steps % self.plan.checkpoint_every == 0:
                self._save()
        held_out = self._evaluate(interrupt)
        if not interrupt:
            self._finish(held_out, watcher)

    def _count(self, result: StepResult, feeds: Mapping[str, Array]) -> None:
        weight = averaging.weight(self.loss, feeds)
        position = self.position
        self.position = replace(
            position,
            batch=position.batch + 1,
            loss=position.loss + result.loss * weight,
            weight=position.weight + weight,
            seconds=time.monotonic() - self._started,
        )

    def _finish(self, held_out: tuple[float | None, float | None], watcher: Watcher) -> None:
        position = self.position
        loss = position.loss / position.weight if position.weight else None
        seconds = round(time.monotonic() - self._started, 3)
        record = Epoch(position.epoch + 1, self.session.steps, loss, *held_out, seconds)
        self.records.append(record)
        _write_metrics(self.folder / METRICS, self.records)
        self.position = replace(position, epoch=position.epoch + 1, batch=0, loss=0.0, weight=0.0, seconds=0.0)
        self._save()
        watcher.epoch(record)

    # --- evaluation ------------------------------------------------------------------------------------------

    def _evaluate(self, interrupt: Interrupt) -> tuple[float | None, float | None]:
        """Loss and accuracy on the held-out rows; batches count by what their loss was averaged over."""
        total, weights, hits, counted = 0.0, 0.0, 0, 0
        for feeds, _ in self.data.held_out():
            if interrupt:
                break
            result = self.session.evaluate(feeds)
            weight = averaging.weight(self.loss, feeds)
            total, weights = total + result.loss * weight, weights + weight
            term = next((one for one in terms_of(self.loss) if "classes" in one), None)
            if term is not None and term["output"] in result.outputs:
                scores, labels = result.outputs[term["output"]], feeds[term["labels"]]
                found = hits_and_count(scores, labels, term["ignore_index"], term["axis"])
                hits, counted = hits + found[0], counted + found[1]
        return total / weights if weights else None, hits / counted if counted else None

    # --- state -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.session.save_checkpoint(self.folder / CHECKPOINT, {"position": self.position.to_json()})

    def _refuse_trained(self) -> None:
        if self.session.steps and not self.plan.resume:
            raise ArtifactsError(
                f"{self.folder} was trained for {counted(self.session.steps, 'step')}; go on with --resume, "
                "or start over with gradcut compile --force"
            )

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


class Data:
    """The rows to train on and those held out, checked against the graph before anything runs."""

    def __init__(self, plan: Plan, manifest: Mapping[str, Any], recorded: Position | None) -> None:
        self.plan, self.manifest, self.recorded = plan, manifest, recorded
        inputs = self.manifest["graphs"]["training_model"]["inputs"]
        self._ports = [port for port in inputs if port["role"] in ("user", "label")]
        arrays = self._load(self.plan.data)
        self.position = self._start(arrays)
        count = len(next(iter(arrays.values())))
        rows, held = np.arange(count), np.arange(0)
        self._held: dict[str, Array] = {}
        if self.position.eval_data is not None:
            self._held = self._load(self.position.eval_data)
            self.position = with_eval_data(self.position, _checksum(self._held))
        elif self.position.eval_split:
            rows, held = split_indices(count, self.position.eval_split, self.position.seed)
            self._held = {name: array[held] for name, array in arrays.items()}
        self._batches = Batches(arrays, rows, self.position.batch_size, self.position.seed)
        self.per_epoch = len(rows) // self.position.batch_size if self._fixed else len(self._batches)
        if not self.per_epoch:
            raise DataError(f"{len(rows)} rows to train on are less than the model's fixed batch of {self._fixed}")

    def training(self, epoch: int, start: int) -> Iterator[tuple[dict[str, Array], int]]:
        """The batches of an epoch from number `start` on, with their rows."""
        for number, feeds in enumerate(self._batches.batches(epoch, start), start):
            if number < self.per_epoch:
                yield feeds, _rows(feeds)

    def held_out(self) -> Iterator[tuple[dict[str, Array], int]]:
        """The held-out rows in order, the last batch as short as it is."""
        size = self.position.batch_size
        for start in range(0, _rows(self._held), size):
            feeds = {name: array[start : start + size] for name, array in self._held.items()}
            if not self._fixed or _rows(feeds) == size:
                yield feeds, _rows(feeds)

    @property
    def _fixed(self) -> int | None:
        """The batch that the graph's file fixes, None where it is open."""
        sizes = [port["shape"][0] for port in self._ports if port["shape"]]
        return next((size for size in sizes if isinstance(size, int)), None)

    def _load(self, path: str | os.PathLike[str]) -> dict[str, Array]:
        arrays = load_npz(path)
        names = [port["name"] for port in self._ports]
        check_keys(arrays, names)
        opened = [{**port, "shape": [None, *port["shape"][1:]] if port["shape"] else None} for port in self._ports]
        try:
            return FeedCheck(opened, self.manifest["loss"])({name: arrays[name] for name in names})
        except FeedError as error:
            raise FeedError(f"{path}: {error}") from None

    def _start(self, arrays: Mapping[str, Array]) -> Position:
        """A fresh position, or the recorded one where nothing that was asked for speaks against it."""
        checksum, fixed = _checksum(arrays), self._fixed
        recorded = self.recorded
        start = begin(self.plan, checksum, fixed) if recorded is None else go_on(self.plan, recorded, checksum)
        if fixed and start.batch_size != fixed:
            raise DataError(f"the model's batch is fixed at {fixed}; say --batch-size {fixed}")
        return start


def _rows(feeds: Mapping[str, Array]) -> int:
    return len(next(iter(feeds.values()))) if feeds else 0


def _checksum(arrays: Mapping[str, Array]) -> int:
    checksum = 0
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name}{array.dtype}{array.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
    return checksum


# --- metrics -------------------------------------------------------------------------------------------------


def _read_metrics(path: Path, epochs: int) -> list[Epoch]:
    """The lines of the epochs that the checkpoint has behind it."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(Epoch(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # cut short by a kill
    return [record for record in records if record.epoch <= epochs]


def _write_metrics(path: Path, records: list[Epoch]) -> None:
    atomic_write_bytes(path, "".join(json.dumps(_plain(record)) + "\n" for record in records).encode())


def _plain(record: Epoch) -> dict[str, Any]:
    """JSON has no NaN."""
    values = asdict(record)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
