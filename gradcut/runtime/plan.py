"""What a training run is asked to do, and where in it a checkpoint stands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gradcut.errors import DataError
from gradcut.optimizers import check_rate

_BATCH, _SEED, _SPLIT = 32, 0, 0.2


@dataclass(frozen=True)
class Plan:
    """How to train; None is the default, or on resume what the run was started with.

    Attributes:
        epochs: of the whole run, those before a resume included; 1 by default.
        eval_split: the share of the rows held out where there is no `eval_data`; 0 holds out nothing.
        lr: the learning rate of every step; the optimizer's own by default.
        checkpoint_every: steps between checkpoints, beside the one after each epoch; 0: only those.

    Raises:
        DataError: an option that no run can have. SpecError: a learning rate that none can have.
    """

    data: str | os.PathLike[str]
    eval_data: str | os.PathLike[str] | None = None
    eval_split: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    lr: float | None = None
    checkpoint_every: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.eval_data is not None and self.eval_split is not None:
            raise DataError("--eval-data and --eval-split exclude each other")
        if self.eval_split is not None and not 0 <= self.eval_split < 1:
            raise DataError(f"--eval-split is {self.eval_split:g}; it lies between 0 and 1")
        for option, least in {"epochs": 1, "batch_size": 1, "seed": 0, "checkpoint_every": 0}.items():
            value = getattr(self, option)
            if value is not None and value < least:
                raise DataError(f"{_spelled(option)} is {value}; it is at least {least}")
        if self.lr is not None:
            check_rate(self.lr, "--lr")


@dataclass(frozen=True)
class Position:
    """Where in the data a run is, how it was started, and what its epoch has summed up so far; JSON, in the checkpoint.

    Attributes:
        data, eval_checksum: checksums of the data, so that nobody resumes on another file.
        eval_data: the file of held-out rows, None where `eval_split` holds them out.
        batch: batches of this epoch that are done. weight: labels or rows behind `loss`, which is a sum.
    """

    seed: int
    batch_size: int
    eval_split: float
    data: int
    eval_data: str | None = None
    eval_checksum: int | None = None
    epochs: int = 1
    lr: float | None = None
    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    weight: float = 0.0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def held_out(self) -> dict[str, Any]:
        """The option that says what is held out."""
        return {"eval_split": self.eval_split} if self.eval_data is None else {"eval_data": self.eval_data}


def begin(plan: Plan, data: int, batch: int | None) -> Position:
    """The position of a new run.

    Args:
        data: checksum of its data. batch: the batch that the graph fixes, None where it is open.
    """
    held = {"eval_split": _or(plan.eval_split, _SPLIT)}
    if plan.eval_data is not None:
        held = {"eval_split": 0.0, "eval_data": os.fspath(plan.eval_data)}
    sizes = {"seed": _or(plan.seed, _SEED), "batch_size": _or(plan.batch_size, batch or _BATCH)}
    return Position(data=data, epochs=_or(plan.epochs, 1), lr=plan.lr, **sizes, **held)


def go_on(plan: Plan, run: Position, data: int) -> Position:
    """The recorded position of a run, with the epochs and the learning rate of the plan where it has some.

    Raises:
        DataError: the plan asks for other data or batches than the run was started with.
    """
    asked = {"seed": plan.seed, "batch_size": plan.batch_size}
    _check_same({option: getattr(run, option) for option in asked}, asked)
    # another path may hold the same rows: the checksum decides
    moved = plan.eval_data is not None and run.eval_data is not None
    if not moved:
        _check_same(run.held_out, {"eval_split": plan.eval_split, "eval_data": plan.eval_data})
    if data != run.data:
        raise _other(plan.data)
    found = os.fspath(plan.eval_data) if moved and plan.eval_data is not None else run.eval_data
    return replace(run, epochs=_or(plan.epochs, run.epochs), lr=_or(plan.lr, run.lr), eval_data=found)


def with_eval_data(run: Position, checksum: int) -> Position:
    """The position with the checksum of its held-out file, which is the recorded one."""
    if run.eval_checksum not in (None, checksum):
        raise _other(run.eval_data)
    return replace(run, eval_checksum=checksum)


def _check_same(had: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for option, value in asked.items():
        if value is not None and value != had.get(option):
            started = option if option in had else next(iter(had))
            other = value if started == option else f"{_spelled(option)} {value}"
            raise DataError(
                f"the run was started with {_spelled(started)} {had[started]}, not {other}; "
                f"leave {_spelled(option)} away to resume it"
            )


def _other(path: Any) -> DataError:
    return DataError(f"{path} does not hold the data that the run was started with; a run resumes on the same file")


def _spelled(option: str) -> str:
    return "--" + option.replace("_", "-")


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
