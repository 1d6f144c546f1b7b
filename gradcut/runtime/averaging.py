"""What the loss of a batch was averaged over, so that batches add up to a larger one.

The mean over a large batch is the mean of its parts' means, each weighted by what it was taken over; a sum over a large
batch is the plain sum of its parts'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradcut.losses import terms_of

Array = np.ndarray[Any, Any]


def weight(loss: Mapping[str, Any], feeds: Mapping[str, Array]) -> float:
    """What one batch counts against others, up to a factor; 1 where the loss is a sum over the batch.

    Of several losses, the first that is a mean counts: over batches whose counts are not in proportion, the mean of
    their total is then not that of the large batch, and `weights` tells them apart.

    Args:
        loss: the manifest's wiring of the loss. feeds: the batch, labels included.
    """
    return next((count for count in weights(loss, feeds) if count is not None), 1.0)


def weights(loss: Mapping[str, Any], feeds: Mapping[str, Array]) -> list[float | None]:
    """What each term of the loss was averaged over, in the order of the manifest's terms; None: it is a sum."""
    return [_count(term, feeds, loss.get("inputs", ())) for term in terms_of(loss)]


def _count(term: Mapping[str, Any], feeds: Mapping[str, Array], labels_of: Sequence[str]) -> float | None:
    if term.get("reduction") == "sum":
        return None
    over = term.get("over")
    if over in (None, "targets"):  # a graph, an output or a value of the model: as if it were averaged over rows
        return _rows(feeds, labels_of)
    labels = np.asarray(feeds[term["labels"]])
    if over == "labels":
        return _labels_that_count(term, labels)
    if over == "rows":
        return float(len(labels))
    if over == "vectors":
        return float(labels.size // max(labels.shape[term["axis"]], 1))
    return float(labels.size)


def _rows(feeds: Mapping[str, Array], labels: Sequence[str]) -> float:
    """Of the labels, where there are any: other inputs may be the same for every batch."""
    arrays = [feeds[name] for name in (*labels, *feeds) if name in feeds]
    return next((float(len(array)) for array in arrays if np.ndim(array)), float(bool(feeds)))


def _labels_that_count(term: Mapping[str, Any], labels: Array) -> float:
    """How many are not ignored, each as often as the weight of its class."""
    counted = labels[labels != term["ignore_index"]]
    by_class = term.get("weight")
    if not by_class:
        return float(counted.size)
    return float(np.take(np.asarray(by_class, np.float64), counted).sum())
