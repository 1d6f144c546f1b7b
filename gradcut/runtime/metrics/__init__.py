"""Figures that a person judges a model by, over all batches at once: counts and sums are added up, never averages.

A metric is of a task, which the loss says: classes (cross_entropy, nll), binary (bce_with_logits: every element of the
output is one yes or no), or values (mse, l1, huber, ...). `loss` is of every task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gradcut.errors import SpecError
from gradcut.runtime.metrics.base import BINARY, CLASSES, Metric, task_of
from gradcut.runtime.metrics.classes import F1, Accuracy, Precision, Recall, Top, accuracy, hits_and_count
from gradcut.runtime.metrics.values import R2, MeanAbsoluteError, MeanSquaredError
from gradcut.text import join_names, nearest

__all__ = [
    "LOSS",
    "METRICS",
    "Metric",
    "accuracy",
    "check_metrics",
    "default_metrics",
    "hits_and_count",
    "maker",
    "rises",
    "term_of",
]

LOSS = "loss"
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


def default_metrics(terms: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Accuracy where there are classes or labels to get right; otherwise the loss says enough."""
    return ("accuracy",) if any(task_of(term) in (CLASSES, BINARY) for term in terms) else ()


def term_of(name: str, terms: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the terms of a loss the first that a metric fits.

    Raises:
        SpecError: it fits none.
    """
    for term in terms:
        if task_of(term) in _kind(name).tasks:
            return term
    tasks = {task_of(term) for term in terms}
    fitting = [one for one, other in METRICS.items() if tasks.intersection(other.tasks)]
    fitting += ["top<k>"] if CLASSES in tasks else []
    kinds = " + ".join(str(term.get("kind")) for term in terms)
    raise SpecError(f"--metric {name} does not fit the loss {kinds}; what does: {', '.join([*fitting, LOSS])}")


def maker(name: str, term: Mapping[str, Any]) -> Callable[[], Metric]:
    """What makes a fresh metric of a term for every evaluation."""
    top = _TOP.fullmatch(name)
    return (lambda: Top(term, int(top[1]))) if top else (lambda: METRICS[name](term))


def _kind(name: str) -> type[Metric]:
    return METRICS.get(name, Top)
