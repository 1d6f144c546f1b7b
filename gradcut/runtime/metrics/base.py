"""What a metric is, and which task a loss says that the model has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, Any]

CLASSES, BINARY, VALUES = "classes", "binary", "values"
_TASKS = {
    **dict.fromkeys(("cross_entropy", "nll"), CLASSES),
    **dict.fromkeys(("bce_with_logits", "bce"), BINARY),
    **dict.fromkeys(("mse", "l1", "huber", "smooth_l1"), VALUES),
}


def task_of(loss: Mapping[str, Any]) -> str | None:
    """What a loss says that the model does, from the manifest's wiring; None where it does not tell.

    One that reads a value of the model in place of labels has nothing to be judged by.
    """
    return None if "target" in loss else _TASKS.get(str(loss.get("kind")))


class Metric(ABC):
    """One figure over batches.

    Args:
        loss: the manifest's wiring of the loss whose output and labels are judged.
    """

    tasks: ClassVar[tuple[str, ...]]
    rises: ClassVar[bool] = True  # whether more is better

    def __init__(self, loss: Mapping[str, Any]) -> None:
        self.loss = loss

    @abstractmethod
    def add(self, output: Array, labels: Array) -> None:
        """Count a batch in."""

    @abstractmethod
    def value(self) -> float | None:
        """The figure so far; None where nothing was counted."""
