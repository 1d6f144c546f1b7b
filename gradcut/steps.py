"""What one of several steps over one set of parameters is asked to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradcut.artifacts import OURS
from gradcut.errors import SpecError
from gradcut.losses import Objective
from gradcut.optimizers import Groups, Optimizer
from gradcut.text import join_names

Patterns = str | Sequence[str]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One player, or one objective, over the parameters that all steps share.

    What a step does not train is the same, bit for bit, after it.

    Attributes:
        loss, train, freeze, stop_at, groups, no_decay, clip_norm, clip_value, batch_norm, dropout: as of
            `gradcut.compile`; `freeze` and `stop_at` add to those that are said there for all steps.
        optimizer: of this step, with state of its own; None: the one said for all steps.
        outputs: patterns over the model's outputs that the step gives beside its loss; None: those that need no more
            inputs than the loss does, so that nothing has to be fed for them.
    """

    loss: Objective = None
    train: Patterns | None = None
    freeze: Patterns = ()
    stop_at: Patterns = ()
    optimizer: Optimizer | str | None = None
    groups: Groups | None = None
    no_decay: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    batch_norm: str | None = None
    dropout: str | None = None
    outputs: Patterns | None = None


def check_steps(steps: Mapping[str, Step]) -> None:
    """Raise where there is none, or one whose name cannot be a folder's or which is no step."""
    if not isinstance(steps, Mapping) or not steps:
        raise SpecError("steps are gradcut.Step(...) by name, at least one, such as {'generator': gradcut.Step(...)}")
    for name, step in steps.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in OURS:
            raise SpecError(f"{name!r} names no step: a name is letters, digits, '_', '-' and '.', as of a folder")
        if not isinstance(step, Step):
            raise SpecError(f"step {name!r} is a gradcut.Step(...), not {step!r}")
    folded = [name.lower() for name in steps]
    twice = [name for name in steps if folded.count(name.lower()) > 1]
    if twice:
        raise SpecError(f"{join_names(twice)} differ in capitals alone, and each names a folder")
