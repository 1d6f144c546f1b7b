"""Metrics of classes and of binary labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradcut.errors import FeedError, SpecError
from gradcut.runtime.metrics.base import BINARY, CLASSES, Metric, task_of

Array = np.ndarray[Any, Any]


def accuracy(logits: Array, labels: Array, ignore_index: int = -100, axis: int | None = None) -> float:
    """The share of labels that have the largest logit; nan where every label is `ignore_index`.

    Args:
        logits: floats with the classes along `axis`.
        labels: integers of the shape of `logits` without `axis`.
        ignore_index: the label that does not count, as in torch.nn.CrossEntropyLoss.
        axis: of the classes; may be left out at rank 2, where it is 1.

    Raises SpecError without an axis at another rank, FeedError where the shapes do not fit each other.
    """
    hits, counted = hits_and_count(logits, labels, ignore_index, axis)
    return hits / counted if counted else float("nan")


def hits_and_count(logits: Array, labels: Array, ignore_index: int = -100, axis: int | None = None) -> tuple[int, int]:
    """`accuracy` as numerator and denominator, to be summed over batches."""
    scores, known = _scores(logits, labels, ignore_index, axis)
    return int(np.sum(np.argmax(scores, axis=1) == known)), len(known)


def _scores(logits: Array, labels: Array, ignore_index: int, axis: int | None) -> tuple[Array, Array]:
    """Scores [n, classes] and labels [n] of what is not ignored."""
    if axis is None and logits.ndim != 2:
        raise SpecError(f"logits of rank {logits.ndim} need axis=, the axis of the classes")
    last = np.moveaxis(logits, 1 if axis is None else axis, -1)
    if last.shape[:-1] != labels.shape:
        raise FeedError(
            f"labels of shape {labels.shape} do not fit logits of shape {logits.shape}: {last.shape[:-1]} is wanted"
        )
    counts = (labels != ignore_index).reshape(-1)
    return last.reshape(-1, last.shape[-1])[counts], labels.reshape(-1)[counts]


class Confusion(Metric):
    """Counts of true positives, predictions and occurrences, by class.

    Classes: the prediction is the largest score, labels that are ``ignore_index`` do not count. Binary: an element is
    predicted where its logit is above 0 and true where its label is above 1/2; axis 1 of the output (rank 2 and above)
    are the labels, and an output without it, or with one, has a single label.
    """

    tasks = (CLASSES, BINARY)

    def __init__(self, loss: Mapping[str, Any]) -> None:
        super().__init__(loss)
        self.right = self.predicted = self.actual = np.zeros(0, np.int64)
        self.agreed = self.counted = 0

    def add(self, output: Array, labels: Array) -> None:
        if task_of(self.loss) == CLASSES:
            self._add_classes(output, labels)
        else:
            self._add_binary(output, labels)

    def _add_classes(self, output: Array, labels: Array) -> None:
        scores, known = _scores(output, labels, self.loss["ignore_index"], self.loss["axis"])
        chosen, classes = np.argmax(scores, axis=1), scores.shape[1]
        hit = chosen == known
        counts = [np.bincount(one, minlength=classes) for one in (known[hit], chosen, known)]
        self._count(counts, int(hit.sum()), len(known))

    def _add_binary(self, output: Array, labels: Array) -> None:
        chosen, known = (_by_label(one) for one in (output > (0.5 if self.loss["kind"] == "bce" else 0), labels > 0.5))
        counts = [np.sum(one, axis=0) for one in (chosen & known, chosen, known)]
        self._count(counts, int(np.sum(chosen == known)), chosen.size)

    def _count(self, counts: list[Array], agreed: int, counted: int) -> None:
        if not self.counted:
            self.right, self.predicted, self.actual = (np.zeros_like(one) for one in counts)
        self.right, self.predicted, self.actual = (
            have + one for have, one in zip((self.right, self.predicted, self.actual), counts, strict=True)
        )
        self.agreed, self.counted = self.agreed + agreed, self.counted + counted

    def value(self) -> float | None:
        return self.figure() if self.counted else None

    @abstractmethod
    def figure(self) -> float:
        """The figure, where something was counted."""

    def _mean(self, numerator: Array, denominator: Array) -> float:
        """Numerator / denominator, 0 where that has none, averaged over the classes that occur or are predicted.

        Of binary labels all count, as in scikit-learn's average="macro" of a label indicator; a single one is its own
        figure.
        """
        ratios = np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
        kept = self.predicted + self.actual > 0 if task_of(self.loss) == CLASSES else np.ones(len(ratios), bool)
        return float(np.mean(ratios[kept]))


def _by_label(array: Array) -> Array:
    """Booleans as [elements, labels]."""
    if array.ndim < 2:
        return array.reshape(-1, 1)
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])


class Accuracy(Confusion):
    """The share of labels (binary: of elements) that are predicted right."""

    def figure(self) -> float:
        return self.agreed / self.counted


class Precision(Confusion):
    """Of what is predicted to be of a class, the share that is; macro average over classes."""

    def figure(self) -> float:
        return self._mean(self.right, self.predicted)


class Recall(Confusion):
    """Of what is of a class, the share that is predicted to be; macro average over classes."""

    def figure(self) -> float:
        return self._mean(self.right, self.actual)


class F1(Confusion):
    """The harmonic mean of precision and recall, 2 TP / (predicted + actual) by class; macro average over classes."""

    def figure(self) -> float:
        return self._mean(2 * self.right, self.predicted + self.actual)


class Top(Metric):
    """The share of labels whose score is among the k largest; of equal scores the lower class is the larger."""

    tasks = (CLASSES,)

    def __init__(self, loss: Mapping[str, Any], k: int) -> None:
        super().__init__(loss)
        self.k, self.hits, self.counted = k, 0, 0

    def add(self, output: Array, labels: Array) -> None:
        scores, known = _scores(output, labels, self.loss["ignore_index"], self.loss["axis"])
        own = np.take_along_axis(scores, known[:, None], axis=1)
        before = np.arange(scores.shape[1]) < known[:, None]
        ahead = np.sum((scores > own) | ((scores == own) & before), axis=1)
        self.hits, self.counted = self.hits + int(np.sum(ahead < self.k)), self.counted + len(known)

    def value(self) -> float | None:
        return self.hits / self.counted if self.counted else None
