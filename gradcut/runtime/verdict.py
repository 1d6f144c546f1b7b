"""What a gradient check finds: one value's verdict, the report of all, and how far apart two numbers may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradcut.errors import GradientCheckError
from gradcut.runtime.differences import NAN, Slope
from gradcut.runtime.widen import Array

#: Relative error allowed, by the dtype that the backward computes in.
_RELATIVE = {"float64": 1e-6, "float32": 5e-4, "float16": 3e-2, "bfloat16": 2e-1}
#: Error allowed for u and v of length 1, where a gradient is nearly zero.
_ROUNDING = {"float64": 2e-14, "float32": 5e-7, "float16": 3e-4, "bfloat16": 2e-3}
#: Where differences are not in float64, or the model rounds more coarsely than that.
_COARSE = 2e-2


@dataclass(frozen=True)
class ValueCheck:
    """One wanted value: the worst of its directions.

    Attributes:
        analytic: ``<J^T u, v>``. numeric: ``<u, J v>``.
        ok: the two agree.
        decided: they could be compared; what could not is not ok, and not wrong either.
        note: where it was judged, if not at the point given, or why no number could be had.
    """

    name: str
    analytic: float
    numeric: float
    tolerance: float
    ok: bool
    note: str = ""
    decided: bool = True

    @property
    def error(self) -> float:
        return abs(self.analytic - self.numeric)

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "FAIL" if self.decided else "??  "
        numbers = f"analytic {self.analytic:+.6e}  numeric {self.numeric:+.6e}  error {self.error:.1e}"
        return f"{verdict} {self.name}: {numbers} (tolerance {self.tolerance:.1e}){self.note and ', ' + self.note}"


def undecided(name: str, why: str) -> ValueCheck:
    """A value of which no number could be had."""
    return ValueCheck(name, NAN, NAN, 0.0, ok=False, note=f"undecided: {why}", decided=False)


@dataclass(frozen=True)
class CheckReport:
    """What a check found; ``str`` of it is a table for a person.

    Attributes:
        unseen: the values that there was no time to look at by themselves.
        together: the verdict on all of those at once; None where there is none, or none could be had.
    """

    values: tuple[ValueCheck, ...]
    of: tuple[str, ...]
    seed: int
    directions: int
    forward: str
    backward: str
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    together: ValueCheck | None = None

    @property
    def ok(self) -> bool:
        """Whether every gradient that there was time for was compared, and agrees."""
        return all(value.ok for value in self._verdicts)

    @property
    def _verdicts(self) -> tuple[ValueCheck, ...]:
        return self.values if self.together is None else (*self.values, self.together)

    @property
    def failed(self) -> tuple[ValueCheck, ...]:
        """The gradients that are wrong."""
        return tuple(value for value in self._verdicts if value.decided and not value.ok)

    @property
    def undecided(self) -> tuple[ValueCheck, ...]:
        """The gradients that could not be judged."""
        return tuple(value for value in self.values if not value.decided)

    @property
    def summary(self) -> str:
        """In one line how many gradients are not ok; empty where all are."""
        if self.together is not None and not self.together.ok:
            return (
                "of the gradients that were looked at together one or more are wrong; name some of them by --wrt (wrt=)"
            )
        counts = [(self.failed, "wrong"), (self.undecided, "undecided")]
        return " and ".join(f"{len(them)} of {len(self.values)} gradients are {what}" for them, what in counts if them)

    def __str__(self) -> str:
        head = f"gradients of {', '.join(self.of)}; seed {self.seed}, {self.directions} directions"
        places = f"differences: {self.forward or 'nowhere'}; backward: {self.backward}"
        notes = (
            [*self.notes, f"no time was left for {', '.join(self.unseen)}{self._how}"] if self.unseen else self.notes
        )
        return "\n".join([head, places, *(f"note: {note}" for note in notes), *map(str, self._verdicts)])

    @property
    def _how(self) -> str:
        return " but together" if self.together is not None else ""


def require(report: CheckReport) -> CheckReport:
    """The report itself where every gradient is right; else `GradientCheckError` with the others."""
    if not report.ok:
        raise GradientCheckError(f"{report.summary}\n{report}")
    return report


# --- one direction -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direction:
    """A gradient against the slope along one direction.

    Attributes:
        rough: why the slope is no derivative at this point, or empty.
        close: the two numbers agree; at a kink or a jump, where several gradients may be right: it is a number.
    """

    analytic: float
    slope: Slope
    tolerance: float
    close: bool

    @property
    def rough(self) -> str:
        return self.slope.kind if self.slope.kind != "smooth" else ""

    @property
    def error(self) -> float:
        return abs(self.analytic - self.slope.central) - self.tolerance

    def value(self, name: str, *, ok: bool, note: str = "", decided: bool = True) -> ValueCheck:
        """The verdict on a value that this direction says the most about."""
        return ValueCheck(name, self.analytic, self.slope.central, self.tolerance, ok, note, decided)


def compare(slope: Slope, gradient: Array, cotangents: Sequence[Array], *, exact: bool, fine: bool) -> Direction:
    """Hold a gradient against a slope.

    Args:
        exact: the gradient was computed in float64. fine: the slope was.
    """
    products = gradient.astype(np.float64) * slope.direction
    with np.errstate(invalid="ignore"):
        analytic = float(np.sum(products))
    tolerance = _tolerance(slope, gradient, products, cotangents, exact=exact, fine=fine)
    if slope.kind == "smooth":
        close = abs(analytic - slope.central) <= tolerance
    else:
        close = slope.kind == "edge" or not np.isnan(analytic)
    return Direction(analytic, slope, tolerance, bool(close))


def _tolerance(
    slope: Slope, gradient: Array, products: Array, cotangents: Sequence[Array], *, exact: bool, fine: bool
) -> float:
    """Relative to the slope and to the terms that make it up, and what rounding of this size of u and v leaves."""
    kind = "float64" if exact else str(gradient.dtype)
    relative = _RELATIVE[kind] if fine else max(_RELATIVE[kind], _COARSE)
    terms = float(np.sqrt(np.sum(np.square(products))))
    size = sum(float(np.linalg.norm(u.astype(np.float64))) for u in cotangents)
    rounding = _ROUNDING[kind] * size * float(np.linalg.norm(slope.direction))
    return relative * max(abs(slope.central), terms) + rounding + slope.noise / 30
