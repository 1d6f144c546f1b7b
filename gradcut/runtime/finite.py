"""Refusing what is not finite: a loss or a norm before it moves anything, a state before it is written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gradcut.errors import NotFiniteError
from gradcut.losses import terms_of
from gradcut.runtime import averaging

Array = np.ndarray[Any, Any]


def require_finite_loss(
    value: float, step: int, rate: float, where: str, loss: Mapping[str, Any], feeds: Mapping[str, Array]
) -> None:
    """Raise NotFiniteError where the loss of a batch is NaN or infinite.

    Args:
        step: the step that is being taken, from 1. where: which part of it.
        loss: the manifest's wiring of the loss. feeds: the batch.
    """
    if math.isfinite(value):
        return
    raise NotFiniteError(
        f"the loss is {value} at step {step} (learning rate {rate:g}){where}; the step was not taken. "
        f"{_advice(loss, feeds)}"
    )


def _advice(loss: Mapping[str, Any], feeds: Mapping[str, Array]) -> str:
    """What makes a loss that is not finite go away."""
    empty = [name for name, feed in feeds.items() if np.size(feed) == 0]
    if empty:
        return f"The mean over no elements has no value: the feed {empty[0]!r} is empty."
    for name, feed in feeds.items():
        if np.asarray(feed).dtype.kind == "f" and np.isnan(feed).any():
            place = [int(axis) for axis in np.argwhere(np.isnan(feed))[0]]
            return f"The feed {name!r} holds nan, first at {place} of the batch: clean the data."
    for term in terms_of(loss):
        labels, ignored = feeds.get(term.get("labels", "")), term.get("ignore_index")
        if labels is not None and ignored is not None and np.all(np.asarray(labels) == ignored):
            return f"The mean over no labels has no value: every label is {ignored}, the ignore_index."
        if labels is not None and term.get("weight") and not averaging.weights(term, feeds)[0]:
            return "The mean over labels whose classes all weigh 0 has no value; see the weight of the loss."
    return "Try a smaller learning rate, or look at the batch."


def require_finite_norm(norm: float, step: int) -> None:
    """Raise NotFiniteError where gradients cannot be clipped by their norm; `step`: from 1."""
    if not math.isfinite(norm):
        raise NotFiniteError(
            f"the norm of the gradients is {norm} at step {step}, though the loss was finite; the step was not taken. "
            "Look at session.gradients(batch)"
        )


def require_finite_state(tensors: Iterable[tuple[str, Array]], step: int, path: str | os.PathLike[str]) -> None:
    """A gradient may be NaN where the loss is not; the weights that it made are worth nothing."""
    for name, array in tensors:
        if not np.all(np.isfinite(array)):
            raise NotFiniteError(
                f"{name!r} is not finite after step {step}, though the loss was; {path} was not written. "
                "Try a smaller learning rate, or look at session.gradients(batch)."
            )
