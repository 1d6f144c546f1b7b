"""Points next to a given one: where a model has a kink, a jump or an edge at a point, it has none a little further."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradcut.runtime.differences import typical
from gradcut.runtime.widen import Array

#: How far, relative to the numbers of an array; the step of differences in float64 is 1e-5, in float32 1e-2.
_FINE, _WIDE = (1e-3, 1e-2, 1e-1), (1e-1, 3e-1, 1.0)


@dataclass(frozen=True)
class Shift:
    """How far a point is moved, and which way: ``up`` or ``down``, ``in`` to zero or ``out``, or each element as a coin
    falls.
    """

    size: float
    way: str

    def __str__(self) -> str:
        where = {"": "at random", "in": "towards zero", "out": "away from zero"}.get(self.way, self.way)
        return f"moved {where} by {self.size:g}"

    def __call__(self, arrays: Mapping[str, Array], seed: int) -> dict[str, Array]:
        """The arrays, moved; no element by less than half the size."""
        rng = np.random.default_rng([seed, 2])
        return {name: self._moved(array, rng) for name, array in arrays.items()}

    def _moved(self, array: Array, rng: np.random.Generator) -> Array:
        length = self.size * typical(array) * rng.uniform(0.5, 1.5, array.shape)
        coin = rng.choice([-1.0, 1.0], array.shape)
        number = array.astype(np.float64)
        outward = np.where(number == 0, coin, np.sign(number))
        sign = {"up": np.ones(array.shape), "down": -np.ones(array.shape), "in": -outward, "out": outward}
        return np.asarray(number + length * sign.get(self.way, coin)).astype(array.dtype)


def shifts(*, fine: bool, kinds: Sequence[str]) -> Iterator[Shift]:
    """Those to try, the smallest first; the same way for all elements only where there is an edge."""
    sizes = _FINE if fine else _WIDE
    yield from (Shift(size, "") for size in sizes)
    if "edge" in kinds:
        yield from (Shift(size, way) for size in sizes[::2] for way in ("in", "out", "up", "down"))
