"""What a training run is asked to do."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from gradcut.errors import DataError
from gradcut.optimizers import check_rate
from gradcut.runtime.metrics import check_metrics
from gradcut.runtime.sources.opening import is_stream
from gradcut.schedules import parse_schedule

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Plan:
    """How to train; None is the default, or on resume what the run was started with.

    Attributes:
        data, eval_data: a file, a folder of .npy files, ``module:function``, or ``NAME=FILE.npy`` texts.
        eval_split: the share of the rows held out where there is no `eval_data`; 0 holds out nothing.
        epochs: of the whole run, those before a resume included; 1 by default.
        steps_per_epoch: updates after which an epoch ends, if the data do not end before; by default they do.
        lr: the optimizer's own by default. schedule: text of `gradcut.schedules`, which stretches over the run.
        accumulate: batches an update; 1 by default.
        eval_every: updates between evaluations, beside the one after each epoch.
        eval_ema: judge the running averages of the parameters (compiled with `ema`) instead of the parameters.
        metrics: names; the first is the one that the best checkpoint and `patience` go by.
        patience: evaluations in a row without improvement by more than `min_delta` (0 by default) that end the run.
        checkpoint_every: updates between checkpoints, beside the one after each epoch; 0: only those.
        log_dir: where TensorBoard's event files go; none by default.

    Raises:
        DataError: an option that no run can have. SpecError: a learning rate, schedule or metric that there is not.
    """

    data: Path | Sequence[Path]
    eval_data: Path | Sequence[Path] | None = None
    eval_split: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    lr: float | None = None
    checkpoint_every: int = 0
    resume: bool = False
    steps_per_epoch: int | None = None
    schedule: str | None = None
    accumulate: int | None = None
    eval_every: int | None = None
    metrics: Sequence[str] | None = None
    patience: int | None = None
    min_delta: float | None = None
    log_dir: Path | None = None
    eval_ema: bool = False

    def __post_init__(self) -> None:
        if self.held_out is not None and self.eval_split is not None:
            raise DataError("--eval-data and --eval-split exclude each other")
        if self.eval_split is not None and not 0 <= self.eval_split < 1:
            raise DataError(f"--eval-split is {self.eval_split:g}; it is at least 0 and below 1")
        self._check_numbers()
        if self.lr is not None:
            check_rate(self.lr, "--lr")
        if self.schedule is not None:
            parse_schedule(self.schedule)
        check_metrics(self.metrics or ())
        if is_stream(self.sources):
            self._check_stream()

    @property
    def sources(self) -> tuple[str, ...]:
        """What `data` names."""
        return _texts(self.data)

    @property
    def held_out(self) -> tuple[str, ...] | None:
        """What `eval_data` names."""
        return _texts(self.eval_data) if self.eval_data else None

    def _check_numbers(self) -> None:
        positive = ("epochs", "batch_size", "steps_per_epoch", "accumulate", "eval_every", "patience")
        for option, least in {**dict.fromkeys(positive, 1), "seed": 0, "checkpoint_every": 0}.items():
            value = getattr(self, option)
            if value is not None and value < least:
                raise DataError(f"{spelled(option)} is {value}; it is at least {least}")
        if self.min_delta is not None and not 0 <= self.min_delta < math.inf:
            raise DataError(f"--min-delta is {self.min_delta}; it is a finite number of at least 0")

    def _check_stream(self) -> None:
        """A function makes its own batches, and nobody knows how many."""
        name = self.sources[0]
        if self.eval_split:
            raise DataError(f"--eval-split takes a share of the rows, and {name} yields batches; give --eval-data")
        if self.batch_size is not None and (self.held_out is None or is_stream(self.held_out)):
            raise DataError(f"--batch-size does not apply to {name}, which makes its own batches")


def spelled(option: str) -> str:
    """An option's name as on the command line."""
    return "--" + {"metrics": "metric"}.get(option, option).replace("_", "-")


def _texts(data: Path | Sequence[Path]) -> tuple[str, ...]:
    several = [data] if isinstance(data, (str, os.PathLike)) else data
    return tuple(os.fspath(one) for one in several)
