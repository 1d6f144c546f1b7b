"""What to look at while an encoder learns without labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def spread(z: Array) -> float:
    """The std over the batch of z / |z|, mean over components, times sqrt(d).

    1 where the directions of z [N, d] are spread evenly over the sphere, 0 where all are one: collapse (Chen & He 2021,
    section 4.1).
    """
    unit = _unit(z)
    return float(unit.std(axis=0).mean() * np.sqrt(z.shape[1]))


def knn_accuracy(known: Array, labels: Array, asked: Array, expected: Array, k: int = 1) -> float:
    """The share of rows of `asked` [M, d] whose k nearest rows of `known` [N, d], by cosine, are mostly of their class.

    Of classes with as many neighbours the one with the nearest wins.
    """
    nearest = np.argsort(-_unit(asked) @ _unit(known).T, axis=1, kind="stable")[:, :k]
    return float(np.mean([_vote(labels[row]) == right for row, right in zip(nearest, expected, strict=True)]))


def _vote(labels: Array) -> Any:
    values, first, counts = np.unique(labels, return_index=True, return_counts=True)
    return values[np.lexsort((first, -counts))[0]]


def gradient_norms(gradients: Mapping[str, Array]) -> dict[str, float]:
    """The norm of the gradients of each block: of the parameters whose names agree up to the last dot."""
    squares: dict[str, float] = defaultdict(float)
    for name, gradient in gradients.items():
        squares[name.rpartition(".")[0] or name] += float(np.sum(np.square(gradient, dtype=np.float64)))
    return {block: float(np.sqrt(total)) for block, total in squares.items()}


def _unit(x: Array) -> Array:
    wide = np.asarray(x, np.float64)
    unit: Array = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit
