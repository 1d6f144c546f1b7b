"""Metrics of values that are to be met."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradcut.runtime.metrics.base import VALUES, Metric

Array = np.ndarray[Any, Any]


class MeanSquaredError(Metric):
    """The mean of (output - labels)^2 over every element."""

    tasks = (VALUES,)
    rises = False

    def __init__(self, loss: Mapping[str, Any]) -> None:
        super().__init__(loss)
        self.total, self.counted = 0.0, 0

    def add(self, output: Array, labels: Array) -> None:
        error = np.asarray(output, np.float64) - labels
        self.total, self.counted = self.total + float(np.sum(self._of(error))), self.counted + error.size

    def _of(self, error: Array) -> Array:
        return np.square(error)

    def value(self) -> float | None:
        return self.total / self.counted if self.counted else None


class MeanAbsoluteError(MeanSquaredError):
    """The mean of |output - labels| over every element."""

    def _of(self, error: Array) -> Array:
        return np.abs(error)


class R2(Metric):
    """1 - sum (labels - output)^2 / sum (labels - mean)^2 by output element, and the mean of these over elements.

    As scikit-learn's r2_score: an element whose labels do not vary gives 1 where it is met exactly, else 0. Sums about
    the mean are combined from batch to batch as in Chan, Golub, LeVeque 1979.
    """

    tasks = (VALUES,)

    def __init__(self, loss: Mapping[str, Any]) -> None:
        super().__init__(loss)
        self.rows = 0
        self.mean: Any = 0.0
        self.spread: Any = 0.0
        self.error: Any = 0.0

    def add(self, output: Array, labels: Array) -> None:
        known = np.asarray(labels, np.float64).reshape(len(labels), -1)
        if not len(known):
            return
        mean, total = known.mean(axis=0), self.rows + len(known)
        apart = mean - self.mean
        between = np.square(apart) * (self.rows * len(known) / total)
        self.spread = self.spread + np.square(known - mean).sum(axis=0) + between
        self.mean = self.mean + apart * (len(known) / total)
        self.error = self.error + np.square(np.asarray(output, np.float64).reshape(known.shape) - known).sum(axis=0)
        self.rows = total

    def value(self) -> float | None:
        if self.rows < 2:
            return None
        still = np.where(self.error == 0, 0.0, 1.0)
        share = np.divide(self.error, self.spread, out=still, where=self.spread > 0)
        return float(np.mean(1.0 - share))
