"""Learning rate schedules: a factor on the optimizer's rate, by step.

The rate is an input of the emitted graphs, so a schedule is the host's business: `gradcut train --schedule` applies one
over the run, and in Python ``session.step(batch, lr=rate(session.steps))`` with ``rate = Cosine(warmup=100).over(1000,
lr=1e-3)`` does the same. Formulas are those of the torch.optim.lr_scheduler pages named at each.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from gradcut.errors import SpecError
from gradcut.text import format_spec, parse_spec, unknown


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor from 0 to 1 for every step of a run.

    Attributes:
        warmup: steps at the start in which the factor rises in a straight line to 1: (t + 1) / warmup at step t, as
            LinearLR from 1 / warmup over warmup - 1 steps; below 1, a share of the run.
    """

    name: ClassVar[str]

    warmup: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not good or value < 0:
                raise SpecError(f"{self.name}: {field.name} is a number of at least 0, not {value!r}")

    def over(self, steps: int, lr: float = 1.0) -> Callable[[int], float]:
        """The rate by step (0 is the first) in a run of `steps` steps whose full rate is `lr`.

        Raises:
            SpecError: the schedule is longer than the run.
        """
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        self._require_within(warmup, steps, "warmup", "")
        rest = self._length(steps - warmup)
        return lambda step: lr * ((step + 1) / warmup if step < warmup else self._factor(step - warmup, rest))

    def _length(self, steps: int) -> int:
        """How many of the `steps` after the warm-up the schedule stretches over."""
        return steps

    @abstractmethod
    def _factor(self, step: int, length: int) -> float:
        """The factor `step` steps after the warm-up."""

    def _require_within(self, wanted: int, steps: int, option: str, where: str = " after the warm-up") -> None:
        if wanted > steps:
            raise SpecError(
                f"the schedule is longer than the run: {self.spec()} wants {option} of {wanted} steps, and the run "
                f"has {steps}{where if self.warmup else ''}; train for more epochs, or shorten it"
            )

    def spec(self) -> str:
        """Text that `parse_schedule` reads back; only what differs from the defaults."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return format_spec(self.name, {name: value for name, value in values.items() if value != defaults[name]})


@dataclass(frozen=True)
class Constant(Schedule):
    """1 after the warm-up."""

    name: ClassVar[str] = "constant"

    def _factor(self, step: int, length: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """From 1 down to `final` in a straight line; as LinearLR.

    Attributes:
        steps: how long, the warm-up left out; 0: to the end of the run. It stays at `final` afterwards.
    """

    name: ClassVar[str] = "linear"

    steps: float = 0
    final: float = 0.0

    def _length(self, steps: int) -> int:
        wanted = int(self.steps)
        self._require_within(wanted, steps, "steps")
        return wanted or steps

    def _factor(self, step: int, length: int) -> float:
        return 1.0 + (self.final - 1.0) * min(step / length, 1.0)


@dataclass(frozen=True)
class Cosine(Linear):
    """From 1 down to `final` along half a cosine (Loshchilov, Hutter 2017); as CosineAnnealingLR."""

    name: ClassVar[str] = "cosine"

    def _factor(self, step: int, length: int) -> float:
        return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * min(step / length, 1.0))) / 2.0


@dataclass(frozen=True)
class Step(Schedule):
    """Times `gamma` after every `every` steps; as StepLR, counted in steps.

    Attributes:
        every: steps, which must be said; below 1, a share of what follows the warm-up.
    """

    name: ClassVar[str] = "step"

    every: float = 0.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.every:
            raise SpecError("step: say after how many steps the rate falls, such as step:every=1000")

    def _length(self, steps: int) -> int:
        wanted = round(self.every * steps) if self.every < 1 else int(self.every)
        self._require_within(wanted, steps, "every")
        return max(wanted, 1)

    def _factor(self, step: int, length: int) -> float:
        return float(self.gamma ** (step // length))


SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Constant, Linear, Cosine, Step)}


def parse_schedule(text: str) -> Schedule:
    """``"cosine:warmup=100"`` -> ``Cosine(warmup=100)``.

    Raises:
        SpecError: no such schedule or option (naming the nearest), or a value out of its range.
    """
    name, options = parse_spec(text)
    if name not in SCHEDULES:
        raise SpecError(unknown("schedule", name, SCHEDULES))
    kind = SCHEDULES[name]
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            raise SpecError(unknown(f"option of the schedule {name}", option, known))
    return kind(**options)  # type: ignore[arg-type]
