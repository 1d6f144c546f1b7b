"""Figures that a person judges a model by."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcut.errors import FeedError, SpecError

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
    if axis is None and logits.ndim != 2:
        raise SpecError(f"logits of rank {logits.ndim} need axis=, the axis of the classes")
    chosen = np.argmax(logits, axis=1 if axis is None else axis)
    if chosen.shape != labels.shape:
        raise FeedError(
            f"labels of shape {labels.shape} do not fit logits of shape {logits.shape}: {chosen.shape} is wanted"
        )
    counts = labels != ignore_index
    return int(np.sum((chosen == labels) & counts)), int(np.sum(counts))
