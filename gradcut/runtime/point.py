"""One point of a gradient check: the gradients that the backward gives there, held against the slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradcut.runtime.backward import Backward, Results
from gradcut.runtime.differences import Differences
from gradcut.runtime.verdict import Direction, ValueCheck, compare, undecided
from gradcut.runtime.widen import Array

#: How far float32 may be from a gradient that is right in float64: where rounding takes a few of many kinks across.
DRIFT = 2e-2
#: How far apart the slopes of a kink may be, relative to the larger, where a kink is wherever the point is moved to.
_FLAT_KINK = 0.1


class Point:
    """Gradients and differences at one point."""

    def __init__(
        self,
        directions: int,
        emitted: Backward,
        feeds: Mapping[str, Array],
        wanted: Sequence[str],
        cotangents: list[Array],
        results: Results | None,
        differences: Differences | None,
    ) -> None:
        self.directions, self.emitted, self.feeds, self.wanted = directions, emitted, feeds, wanted
        self.cotangents, self.results, self.differences = cotangents, results, differences
        self._exact: Results | None = None

    @property
    def holes(self) -> int:
        """How many elements of the outputs are no numbers."""
        outputs = self.results.outputs if self.results is not None else []
        return sum(int(np.sum(~np.isfinite(y.astype(np.float64)))) for y in outputs)

    @property
    def runs(self) -> bool:
        """Whether both sides could be computed."""
        return self.results is not None and self.differences is not None and bool(self.differences.place)

    def verdict(self, name: str) -> ValueCheck | Direction:
        """On one value; a direction where the point says nothing against it, but has no slope there."""
        if self.results is None:
            return undecided(name, "the backward could not be run")
        if self.differences is None or not self.differences.place:
            return undecided(name, "the model could not be evaluated")
        gradient, expected = self.gradient(self.results, name), self.differences.base[name].shape
        if gradient.shape != expected:
            wrong = undecided(name, "")
            return replace(wrong, decided=True, note=f"the gradient's shape is {gradient.shape}, not {expected}")
        found = self._directions(name, gradient, exact=self.results.exact)
        worst = max(found, key=lambda d: (not d.close, d.error))
        if not worst.close:
            return self._second_look(name, worst) or worst.value(name, ok=False, note=rough_note(worst))
        rough = [d for d in found if d.rough]
        return max(rough, key=lambda d: d.error) if rough else worst.value(name, ok=True)

    def as_it_is(self, name: str, direction: Direction) -> ValueCheck:
        """The verdict on a value that has no slope at any point near."""
        slope = direction.slope
        if slope.kind in ("jump", "coarse"):
            return self._coarsely(name)
        flat = slope.jump <= _FLAT_KINK * max(abs(slope.left), abs(slope.right))
        near = abs(direction.analytic - slope.central) <= slope.jump + direction.tolerance
        if slope.kind == "kink" and flat and near:
            return direction.value(name, ok=True, note=f"{rough_note(direction)}, and wherever the inputs are moved")
        why = f"{rough_note(direction)}, and wherever the inputs are moved"
        return direction.value(name, ok=False, decided=False, note=f"undecided: {why}")

    def _coarsely(self, name: str) -> ValueCheck:
        assert self.differences is not None and self.results is not None
        gradient = self.gradient(self.results, name)
        slopes = [self.differences.wide_slope(name, i, self.cotangents) for i in range(self.directions)]
        found = [
            compare(replace(slope, kind="smooth"), gradient, self.cotangents, exact=self.results.exact, fine=False)
            for slope in slopes
        ]
        worst = max(found, key=lambda d: (not d.close, d.error))
        return worst.value(name, ok=worst.close, note="the model rounds coarsely here")

    def _directions(self, name: str, gradient: Array, *, exact: bool) -> list[Direction]:
        return [self._direction(name, index, gradient, exact) for index in range(self.directions)]

    def _direction(self, name: str, index: int, gradient: Array, exact: bool) -> Direction:
        differences = self.differences
        assert differences is not None
        slope = differences.slope(name, index, self.cotangents)
        found = compare(slope, gradient, self.cotangents, exact=exact, fine=differences.fine)
        if found.close:
            return found
        finer = differences.finer(name, slope, self.cotangents)
        return compare(finer, gradient, self.cotangents, exact=exact, fine=differences.fine)

    def gradient(self, results: Results, name: str) -> Array:
        return results.gradients[list(self.wanted).index(name)]

    # --- what float32 rounds across kinks -------------------------------------------------------------------------

    def _second_look(self, name: str, worst: Direction) -> ValueCheck | None:
        """The verdict of float64 on what failed in float32, where both are near each other."""
        assert self.results is not None and self.differences is not None
        mine = self.gradient(self.results, name)
        if worst.rough or self.results.draws or mine.dtype != np.float32 or not self.differences.fine:
            return None
        exact = self.exactly()
        if exact is None:
            return None
        right = self.gradient(exact, name)
        drift = distance(mine, right)
        found = self._directions(name, right, exact=True)
        if not drift <= DRIFT or not all(d.close and not d.rough for d in found):
            return None
        best = max(found, key=lambda d: d.error)
        return best.value(
            name, ok=True, note=f"judged in float64; float32 is {drift:.1%} off, by kinks it rounds across"
        )

    def exactly(self) -> Results | None:
        """What the backward gives in float64."""
        if self._exact is None:
            self._exact = self.emitted.exactly()(self.feeds, self.cotangents)
        return self._exact


def distance(mine: Array, right: Array) -> float:
    """How far a gradient is from the right one, relative to that."""
    return float(np.linalg.norm(mine - right)) / max(float(np.linalg.norm(right)), 1e-30)


def rough_note(direction: Direction) -> str:
    """Why a direction has no slope at a point, in words; empty where it has one."""
    slope = direction.slope
    if slope.kind == "kink":
        low, high = sorted((slope.left, slope.right))
        return f"a kink: slopes {low:.4g} and {high:.4g}"
    return {"smooth": "", "edge": "the edge of where the model is defined"}.get(slope.kind, "a jump")
