"""The two losses that ONNX has."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.in_torch.call import Call

_UNUSED = -(2**31)


def negative_log_likelihood(a: Call, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Written out: torch's has no gradient by `weight`."""
    counts = target != a.get("ignore_index", _UNUSED)
    safe = torch.where(counts, target, 0)
    weights = counts.to(x.dtype) if weight is None else torch.where(counts, weight[safe], 0.0)
    losses = -x.gather(1, safe[:, None]).squeeze(1) * weights
    how = a.text("reduction", "mean")
    return losses if how == "none" else losses.sum() if how == "sum" else losses.sum() / weights.sum()


def softmax_cross_entropy(a: Call, x: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    logs = x.log_softmax(1)
    return negative_log_likelihood(a, logs, target, weight), logs


OPERATORS = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}
