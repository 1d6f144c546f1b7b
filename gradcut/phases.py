"""Phases: one objective, and a set of trainables that changes as training goes on, such as gradual unfreezing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradcut.errors import SpecError
from gradcut.optimizers import check_rate
from gradcut.steps import Patterns
from gradcut.text import parse_scalar

_KEYS = ("epochs", "train", "freeze", "stop_at", "lr")
_ITEM = re.compile(r"\s*(?:(\w[\w-]*)\s*=)?(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a training run.

    A parameter moves in the phases that train it and in no other; what it and its optimizer have come to is carried
    over by name. A parameter that a phase trains for the first time has fresh optimizer state, its count of updates
    included.

    Attributes:
        epochs: how long it lasts. train, freeze, stop_at: as of `gradcut.compile`; the last two add to what is said
            there for all phases.
        lr: the optimizer's rate in this phase; None: its own.
    """

    epochs: int
    train: Patterns | None = None
    freeze: Patterns = ()
    stop_at: Patterns = ()
    lr: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise SpecError(f"a phase lasts at least one epoch, not epochs={self.epochs!r}")
        if self.lr is not None:
            object.__setattr__(self, "lr", check_rate(self.lr, "lr of a phase"))


def parse_phase(text: str) -> Phase:
    """``epochs=3,train=layer4.*,head.*,lr=1e-4``: what has no key of its own adds to the patterns before it.

    Raises:
        SpecError: an option that a phase has not, or patterns without a key.
    """
    said: dict[str, Any] = {}
    key = ""
    for item in text.split(","):
        found = _ITEM.fullmatch(item)
        assert found is not None
        name, value = (found[1] or "").replace("-", "_"), found[2].strip()
        if found[1] is not None and (name not in _KEYS or name in said):
            what = "is given twice" if name in said else f"is no option of a phase; it has {', '.join(_KEYS)}"
            raise SpecError(f"{found[1]!r} in {text!r} {what}")
        key = name or key
        if not value or (not name and key not in _KEYS[1:4]):
            raise SpecError(f"{item!r} in {text!r} is not an option; write epochs=2,train=head.*")
        said[key] = [*said.get(key, []), value] if key in _KEYS[1:4] else parse_scalar(value)
    if "epochs" not in said:
        raise SpecError(f"the phase {text!r} does not say how long it lasts: epochs=2,...")
    return Phase(**said)


def as_phases(given: Sequence[Phase | str] | Phase | str) -> dict[str, Phase]:
    """Phases by name: ``phase1``, ``phase2``, ...

    Raises:
        SpecError: there is none, or something else.
    """
    several = [given] if isinstance(given, (Phase, str)) else list(given)
    parsed = [parse_phase(one) if isinstance(one, str) else one for one in several]
    if not parsed or not all(isinstance(one, Phase) for one in parsed):
        raise SpecError(f"phases are gradcut.Phase(epochs=..., train=...), at least one, not {given!r}")
    return {f"phase{number}": one for number, one in enumerate(parsed, 1)}
