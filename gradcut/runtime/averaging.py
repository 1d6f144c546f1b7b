"""What the loss of a batch was averaged over, so that batches add up to a larger one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def weight(loss: Mapping[str, Any], feeds: Mapping[str, Array]) -> float:
    """What one batch counts against others, up to a factor: labels that are not ignored, else rows.

    Args:
        loss: the manifest's wiring of the loss. feeds: the batch, labels included.
    """
    if loss.get("kind") == "cross_entropy":
        return float(np.sum(np.asarray(feeds[loss["labels"]]) != loss["ignore_index"]))
    return float(len(next(iter(feeds.values())))) if feeds else 0.0
