"""The two losses that ONNX has."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tests.in_torch.call import Call

_UNUSED = -(2**31)


def negative_log_likelihood(a: Call, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.nll_loss(x, target, weight, ignore_index=a.get("ignore_index", _UNUSED), reduction=_how(a))


def softmax_cross_entropy(a: Call, x: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    logs = x.log_softmax(1)
    return negative_log_likelihood(a, logs, target, weight), logs


def _how(a: Call) -> str:
    return a.text("reduction", "mean")


OPERATORS = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}
