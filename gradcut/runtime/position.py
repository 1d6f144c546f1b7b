"""Where a run stands, as its checkpoint records it, and what a resumed run may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gradcut.errors import DataError
from gradcut.runtime.plan import Plan, spelled
from gradcut.runtime.sources.opening import is_stream
from gradcut.text import counted

_BATCH, _SEED, _SPLIT = 32, 0, 0.2
#: What decides which rows a step sees, or what the best checkpoint is best by: a resumed run keeps it.
_FIXED = ("seed", "batch_size", "accumulate", "steps_per_epoch", "metrics", "eval_ema")
#: What is given again counts from there on.
_FREE = ("epochs", "lr", "schedule", "eval_every", "patience", "min_delta")


@dataclass(frozen=True)
class Position:
    """Where in the data a run is, how it was started, and what it has summed up so far; JSON, in the checkpoint.

    Attributes:
        data, eval_checksum: checksums of the data, so that nobody resumes on other data.
        eval_data: the source of held-out rows, None where `eval_split` holds them out.
        batch: batches of this epoch that are done. weight: labels or rows behind `loss`, which is a sum.
        written: the step of the last line in ``metrics.jsonl``.
        best, best_step: of the watched metric. bar, stale: what the next evaluation has to beat by `min_delta`, and how
            many in a row have not.
    """

    seed: int
    batch_size: int
    eval_split: float
    data: int
    eval_data: Sequence[str] | None = None
    eval_checksum: int | None = None
    epochs: int = 1
    lr: float | None = None
    schedule: str | None = None
    accumulate: int = 1
    steps_per_epoch: int | None = None
    eval_every: int | None = None
    metrics: Sequence[str] = ()
    eval_ema: bool = False
    patience: int | None = None
    min_delta: float = 0.0
    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    weight: float = 0.0
    seconds: float = 0.0
    written: int = 0
    best: float | None = None
    best_step: int | None = None
    bar: float | None = None
    stale: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def held_out(self) -> dict[str, Any]:
        """The option that says what is held out."""
        return {"eval_split": self.eval_split} if self.eval_data is None else {"eval_data": self.eval_data}

    def watched(self, value: float | None, rises: bool, step: int) -> Position:
        """The position after an evaluation gave `value` for the watched metric; NaN and None improve nothing."""
        changed: dict[str, Any] = {"stale": self.stale + 1}
        if value is not None and _beats(value, self.bar, rises, self.min_delta):
            changed = {"stale": 0, "bar": value}
        if value is not None and _beats(value, self.best, rises, 0.0):
            changed |= {"best": value, "best_step": step}
        return replace(self, **changed)

    @property
    def stopped(self) -> bool:
        """Whether the run has waited long enough for an improvement."""
        return self.patience is not None and self.stale >= self.patience


def _beats(value: float, other: float | None, rises: bool, by: float) -> bool:
    if other is None:
        return value == value
    return value > other + by if rises else value < other - by


def begin(plan: Plan, data: int, batch: int | None) -> Position:
    """The position of a new run.

    Args:
        data: checksum of its data. batch: the batch that the graph fixes, None where it is open.
    """
    held: dict[str, Any] = {"eval_split": _or(plan.eval_split, 0.0 if is_stream(plan.sources) else _SPLIT)}
    if plan.held_out is not None:
        held = {"eval_split": 0.0, "eval_data": list(plan.held_out)}
    sizes = {"seed": _or(plan.seed, _SEED), "batch_size": _or(plan.batch_size, batch or _BATCH)}
    asked = {option: getattr(plan, option) for option in (*_FIXED, *_FREE) if option not in sizes}
    given = {option: value for option, value in asked.items() if value is not None}
    given["metrics"] = list(plan.metrics or ())
    return Position(data=data, **sizes, **held, **given)


def go_on(plan: Plan, run: Position, data: int) -> Position:
    """The recorded position of a run, with what the plan may change of it.

    Raises:
        DataError: the plan asks for other data, batches or metrics than the run was started with.
    """
    asked = {option: getattr(plan, option) for option in _FIXED}
    asked |= {"metrics": None if plan.metrics is None else list(plan.metrics), "eval_ema": plan.eval_ema or None}
    _check_same({option: getattr(run, option) for option in asked}, asked)
    # another path may hold the same rows: the checksum decides
    moved = plan.held_out is not None and run.eval_data is not None
    if not moved:
        _check_same(run.held_out, {"eval_split": plan.eval_split, "eval_data": plan.held_out})
    if data != run.data:
        raise _other(plan.sources)
    if plan.epochs is not None and plan.epochs < run.epoch:
        raise DataError(f"--epochs {plan.epochs} is of the whole run, and {counted(run.epoch, 'epoch')} of it are done")
    found = list(plan.held_out) if moved and plan.held_out is not None else run.eval_data
    given = {option: _or(getattr(plan, option), getattr(run, option)) for option in _FREE}
    return replace(run, eval_data=found, **given)


def with_eval_data(run: Position, checksum: int) -> Position:
    """The position with the checksum of its held-out data, which is the recorded one."""
    if run.eval_checksum not in (None, checksum):
        raise _other(run.eval_data or ())
    return replace(run, eval_checksum=checksum)


def _check_same(had: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for option, value in asked.items():
        if value is None or value == had.get(option):
            continue
        started = option if option in had else next(iter(had))
        was = f"without {spelled(option)}"
        if had[started] not in (None, []) and had[started] is not False:
            other = _shown(value) if started == option else f"{spelled(option)} {_shown(value)}"
            was = f"with {spelled(started)} {_shown(had[started])}, not {other}"
        raise DataError(f"the run was started {was}; leave {spelled(option)} away to resume it")


def _shown(value: Any) -> str:
    return str(value) if not isinstance(value, (list, tuple)) else ", ".join(map(str, value))


def _other(names: Sequence[str]) -> DataError:
    several = ", ".join(names)
    return DataError(f"{several} does not hold the data that the run was started with; a run resumes on the same data")


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
