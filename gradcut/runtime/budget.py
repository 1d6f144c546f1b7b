"""How long a check may take, and an order in which the first few values say something of all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence


class Budget:
    """Seconds from now on; None: as long as it takes."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = float("inf") if seconds is None else time.monotonic() + seconds

    @property
    def spent(self) -> bool:
        return time.monotonic() >= self._end


def spread(names: Sequence[str]) -> list[str]:
    """The names in an order whose every beginning lies evenly over the list (van der Corput's)."""
    bits = max(len(names) - 1, 1).bit_length()
    reversed_bits = lambda index: int(f"{index:0{bits}b}"[::-1], 2)
    return [names[index] for index in sorted(range(len(names)), key=reversed_bits)]
