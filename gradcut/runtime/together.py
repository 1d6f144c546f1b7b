"""The gradients of several values at once, where there is no time for each: ``<u, sum J v> = sum <J^T u, v>``.

Each value is moved by a length that makes its share of the slope no larger than the middle one's, so that a wrong
gradient of a single value stands out among hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradcut.runtime.backward import Results
from gradcut.runtime.differences import Differences, typical
from gradcut.runtime.point import DRIFT, Point, distance
from gradcut.runtime.verdict import Direction, ValueCheck, compare
from gradcut.runtime.widen import Array


def together(point: Point, names: Sequence[str]) -> ValueCheck | None:
    """The verdict on several values; None where nothing runs, or the model has no slope there."""
    results, differences = point.results, point.differences
    if results is None or differences is None or not differences.place:
        return None
    for name in names:
        if point.gradient(results, name).shape != differences.base[name].shape:
            found = point.verdict(name)
            return found if isinstance(found, ValueCheck) else None
    worst, note = _worst(point, differences, results, names), ""
    if not worst.close and not worst.rough and (exact := _exact(point, results, names)) is not None:
        worst, note = _worst(point, differences, exact, names), "judged in float64"
    name = f"{len(names)} others together"
    return None if worst.rough else worst.value(name, ok=worst.close, note=note if worst.close else "")


def _worst(point: Point, differences: Differences, results: Results, names: Sequence[str]) -> Direction:
    gradients = {name: point.gradient(results, name) for name in names}
    narrow = min((gradient.dtype for gradient in gradients.values()), key=lambda dtype: dtype.itemsize)
    flat = np.concatenate([gradient.ravel() for gradient in gradients.values()]).astype(narrow)
    lengths = _lengths(differences, gradients)
    slopes = [differences.together(lengths, number, point.cotangents) for number in range(point.directions)]
    found = [compare(s, flat, point.cotangents, exact=results.exact, fine=differences.fine) for s in slopes]
    return max(found, key=lambda direction: (not direction.close, bool(direction.rough), direction.error))


def _lengths(differences: Differences, gradients: dict[str, Array]) -> dict[str, float]:
    sizes = {name: typical(differences.base[name]) for name in gradients}
    shares = {name: sizes[name] * float(np.linalg.norm(g.astype(np.float64))) for name, g in gradients.items()}
    middle = float(np.median(list(shares.values())))
    return {n: size * min(1.0, middle / shares[n]) if middle and shares[n] else size for n, size in sizes.items()}


def _exact(point: Point, results: Results, names: Sequence[str]) -> Results | None:
    """The results in float64, where each gradient is near the one that was found."""
    exact = None if results.draws or results.exact else point.exactly()
    if exact is None:
        return None
    near = all(distance(point.gradient(results, n), point.gradient(exact, n)) <= DRIFT for n in names)
    return exact if near else None
