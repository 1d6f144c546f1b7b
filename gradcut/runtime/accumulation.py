"""Several micro-batches as one large batch: what each counts, what it draws, what comes out of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradcut.errors import FeedError
from gradcut.losses import terms_of
from gradcut.runtime import averaging
from gradcut.runtime.backend import Slot, to_device

Array = np.ndarray[Any, Any]
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: seeds that a person picks are not apart by multiples of it


def shares(loss: Mapping[str, Any] | None, batches: Sequence[Mapping[str, Array]]) -> list[float]:
    """The factor of each micro-batch's loss and gradients in the large batch's.

    A mean over the large batch is the mean of the micro-batches' means, each by how much it was averaged over
    (`averaging.weights`, the one place that knows); a sum is their sum, as are gradients of cotangents that are fed.

    Raises:
        FeedError: the terms of the loss want different factors.
    """
    if loss is None or len(batches) == 1:
        return [1.0] * len(batches)
    if any("ignore_index" in term and "labels" not in term for term in terms_of(loss)):
        raise FeedError(
            "which labels count is known only within a run, where the model gives them (target=), so micro-batches "
            "cannot be weighed; step them one by one"
        )
    found = [
        _shares(list(counts)) for counts in zip(*(averaging.weights(loss, batch) for batch in batches), strict=True)
    ]
    if any(not np.allclose(one, found[0], rtol=1e-6, atol=0.0) for one in found):
        sums = {term.get("reduction") == "sum" for term in terms_of(loss)}
        if len(sums) > 1:
            raise FeedError(
                "one term of the loss is a sum over the batch and another a mean, so micro-batches do not add up to "
                "the large batch; step them one by one, or give every term the same reduction"
            )
        raise FeedError(
            "the terms of the loss were averaged over counts that are not in proportion in these micro-batches, so "
            "their gradients do not add up to the large batch's; step them one by one, or make the batches alike"
        )
    return found[0]


def _shares(counts: list[float | None]) -> list[float]:
    """By the counts of one term in each micro-batch; None: it is a sum."""
    known = [1.0 if count is None else count for count in counts]
    total = 1.0 if None in counts else sum(known)
    return [count / total if total else 1.0 / len(known) for count in known]


def seed_of(seed: int, part: int) -> int:
    """What micro-batch `part` draws with: the seed itself for the first, so that one is a plain step."""
    return (seed + part * _GOLDEN + 2**63) % 2**64 - 2**63


def fold(slot: Slot, share: float, first: bool, last: bool) -> None:
    """Take a gradient that a run has written into the sum; after the last, the sum is the slot's value.

    On CPU in place, with the slot's own spare as the sum's memory. A share of 0 takes nothing, not even NaN.
    """
    if slot.device != "cpu":
        _fold_through_host(slot, share, first, last)
        return
    if share:
        slot.array *= share
    else:
        slot.array[...] = 0
    if not first:
        slot.array += slot.other
    if not last:
        slot.swap()


def _fold_through_host(slot: Slot, share: float, first: bool, last: bool) -> None:
    """The slot's array, which a device does not read, holds the sum."""
    part = slot.current.numpy() * slot.array.dtype.type(share) if share else 0
    slot.array[...] = part if first else slot.array + part
    if last:
        slot.current = to_device(slot.array, slot.device)


def joined(outputs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Each output end to end along axis 0; one that does not fit together (a scalar) is the last micro-batch's."""
    return {name: _concatenated([one[name] for one in outputs]) for name in outputs[-1]}


def _concatenated(parts: Sequence[Array]) -> Array:
    fits = all(part.ndim and part.shape[1:] == parts[-1].shape[1:] for part in parts)
    return np.concatenate(parts) if fits and len(parts) > 1 else parts[-1]
