"""Figures that a person judges a model by, over all batches at once: counts and sums are added up, never averages.

A metric is of a task, which the loss says: classes (cross_entropy, nll), binary (bce_with_logits: every element of the
output is one yes or no), or values (mse, l1, huber, ...). `loss` is of every task.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from gradcut.errors import FeedError, SpecError
from gradcut.text import join_names, nearest

Array = np.ndarray[Any, Any]

CLASSES, BINARY, VALUES = "classes", "binary", "values"
_TASKS = {
    **dict.fromkeys(("cross_entropy", "nll"), CLASSES),
    **dict.fromkeys(("bce_with_logits", "bce"), BINARY),
    **dict.fromkeys(("mse", "l1", "huber", "smooth_l1"), VALUES),
}
LOSS = "loss"


def task_of(loss: Mapping[str, Any]) -> str | None:
    """What a loss says that the model does, from the manifest's wiring; None where it does not tell."""
    return _TASKS.get(str(loss.get("kind")))


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


# --- classes -------------------------------------------------------------------------------------------------


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


# --- values --------------------------------------------------------------------------------------------------


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


METRICS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
    "mse": MeanSquaredError,
    "mae": MeanAbsoluteError,
    "r2": R2,
}
_TOP = re.compile(r"top([1-9]\d*)")
_KNOWN = [*METRICS, "top5", LOSS]


def check_metrics(names: Iterable[str]) -> None:
    """Raise SpecError where there is no metric of a name."""
    for name in names:
        if name not in METRICS and name != LOSS and not _TOP.fullmatch(name):
            close = nearest(name, _KNOWN, 1)
            hint = f" Nearest: {close[0]}." if close else ""
            known = join_names(_KNOWN, len(_KNOWN))
            raise SpecError(f"--metric: {name!r} is no metric.{hint} There are {known}; any k will do in top<k>")


def rises(name: str) -> bool:
    """Whether more of a metric is better."""
    return name != LOSS and (name not in METRICS or METRICS[name].rises)


def default_metrics(loss: Mapping[str, Any]) -> tuple[str, ...]:
    """Accuracy where there are classes or labels to get right; otherwise the loss says enough."""
    return ("accuracy",) if task_of(loss) in (CLASSES, BINARY) else ()


def maker(name: str, loss: Mapping[str, Any]) -> Callable[[], Metric]:
    """What makes a fresh metric for every evaluation.

    Raises:
        SpecError: it is not of the task that the loss says.
    """
    top = _TOP.fullmatch(name)
    kind: type[Metric] = Top if top else METRICS[name]
    task = task_of(loss)
    if task not in kind.tasks:
        fitting = [one for one, other in METRICS.items() if task in other.tasks]
        fitting += ["top<k>"] if task == CLASSES else []
        raise SpecError(
            f"--metric {name} does not fit the loss {loss.get('kind')}; what does: {', '.join([*fitting, LOSS])}"
        )
    return (lambda: Top(loss, int(top[1]))) if top else (lambda: METRICS[name](loss))
