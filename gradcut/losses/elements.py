"""Losses whose labels have the output's own shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from gradcut.losses.base import Loss, Numbers, along, axis_of, rank_of
from gradcut.ops import Builder


@dataclass(frozen=True, kw_only=True)
class MSE(Loss):
    """torch.nn.MSELoss: the mean of (output - labels)^2 over every element."""

    name: ClassVar[str] = "mse"

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        difference = output - labels
        return self.reduced(b, difference * difference)


@dataclass(frozen=True, kw_only=True)
class L1(Loss):
    """torch.nn.L1Loss: the mean of |output - labels|; slope 0 where they are equal."""

    name: ClassVar[str] = "l1"

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        return self.reduced(b, b.Abs(output - labels))


@dataclass(frozen=True, kw_only=True)
class Huber(Loss):
    """torch.nn.HuberLoss (Huber 1964): d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) elsewhere.

    Attributes:
        delta: above 0.
    """

    name: ClassVar[str] = "huber"

    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("delta", 0.0, strict=True)

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        return self.reduced(b, _huber(b, output - labels, self.delta))


@dataclass(frozen=True, kw_only=True)
class SmoothL1(Loss):
    """torch.nn.SmoothL1Loss (Girshick 2015): huber of delta = beta over beta; l1 where beta is 0.

    Attributes:
        beta: at least 0.
    """

    name: ClassVar[str] = "smooth_l1"

    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("beta", 0.0)

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        difference = output - labels
        if not self.beta:
            return self.reduced(b, b.Abs(difference))
        return self.reduced(b, _huber(b, difference, self.beta) * (1.0 / self.beta))


def _huber(b: Builder, d: ir.Value, delta: float) -> ir.Value:
    """c (d - c / 2) with c = d clipped to +-delta, in one expression on both sides; its slope is c."""
    c = b.op("Clip", d, b.scalar_like(-delta, d), b.scalar_like(delta, d))
    return b.Mul(c, d - c * 0.5)


@dataclass(frozen=True, kw_only=True)
class BCEWithLogits(Loss):
    """torch.nn.BCEWithLogitsLoss: -w (p y log sigmoid(x) + (1 - y) log(1 - sigmoid(x))), y from 0 to 1.

    Written as w ((1 - y) softplus(x) + p y softplus(-x)), which cancels nowhere.

    Attributes:
        weight: w, one number for each place along `axis`, or one for all.
        pos_weight: p, likewise; above 1 it favours recall.
        axis: what `weight` and `pos_weight` lie along: the last, as torch, or 1 for scores [batch, classes, ...].
    """

    name: ClassVar[str] = "bce_with_logits"
    wants: ClassVar[str] = "logits"

    weight: Numbers = ()
    pos_weight: Numbers = ()
    axis: int = -1

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        positive = labels * self._factor(b, "pos_weight", output) if self.pos_weight else labels
        losses = b.Add((1.0 - labels) * softplus(b, output), positive * softplus(b, -output))
        return self.reduced(b, losses * self._factor(b, "weight", output) if self.weight else losses)

    def _factor(self, b: Builder, option: str, output: ir.Value) -> ir.Value:
        numbers: Numbers = getattr(self, option)
        if len(numbers) == 1:
            return b.scalar_like(numbers[0], output)
        return along(self, b, option, output, axis_of(self, output, self.axis))


def softplus(b: Builder, x: ir.Value) -> ir.Value:
    """log(1 + exp x). The runtime has no Softplus of doubles: max(x, 0) + log(1 + exp(-|x|)), slopes 1/2 and 0 at 0."""
    if x.dtype != ir.DataType.DOUBLE:
        return b.Softplus(x)
    above = b.op("Max", x, b.scalar_like(0.0, x), shape=x.shape)
    return b.Add(above, b.Log(b.Exp(-b.Abs(x)) + 1.0))


@dataclass(frozen=True, kw_only=True)
class KLDiv(Loss):
    """torch.nn.KLDivLoss: y (log y - x), x log-probabilities and y probabilities; 0 where y is 0, whatever x is.

    Attributes:
        log_target: the labels are log-probabilities too: exp(y) (y - x).
        reduction: ``mean`` over every element, as torch has it by default; ``batchmean``, the sum over the rows of the
            batch, is what the divergence is.
    """

    name: ClassVar[str] = "kl_div"
    wants: ClassVar[str] = "log-probabilities"
    reductions: ClassVar[tuple[str, ...]] = ("mean", "sum", "batchmean")

    log_target: bool = False

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        nothing = b.scalar_like(0.0, labels)
        p = b.Exp(labels) if self.log_target else labels
        absent = b.Equal(p, nothing)
        log_p = labels if self.log_target else b.Log(b.Where(absent, b.scalar_like(1.0, p), p))
        losses = b.Where(absent, nothing, p * (log_p - output))
        if self.reduction != "batchmean":
            return self.reduced(b, losses)
        total = b.op("ReduceSum", losses, keepdims=0, shape=ir.Shape([]))
        rows = b.op("Squeeze", b.dim(output, 0), b.ints([0]), shape=ir.Shape([]))
        return b.op("Div", total, b.Cast(rows, to=output.dtype), shape=ir.Shape([]))

    def facts(self, output: ir.Value) -> dict[str, Any]:
        if self.reduction == "batchmean":
            rank_of(self, output)
            return {"reduction": "mean", "over": "rows"}
        return super().facts(output)


@dataclass(frozen=True, kw_only=True)
class _OnAngles(Loss):
    """Losses of the cosine between output and labels, with the norms of torch.nn.functional.cosine_similarity.

    Attributes:
        axis: of the vectors' components.
        eps: the least that a norm counts for.
    """

    axis: int = -1
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("eps", 0.0, strict=True)

    def facts(self, output: ir.Value) -> dict[str, Any]:
        return {"axis": axis_of(self, output, self.axis), "reduction": self.reduction, "over": "vectors"}

    def cosine(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        axes = b.ints([axis_of(self, output, self.axis)])
        return b.op("ReduceSum", self._unit(b, output, axes) * self._unit(b, labels, axes), axes, keepdims=0)

    def _unit(self, b: Builder, x: ir.Value, axes: ir.Value) -> ir.Value:
        norm = b.op("ReduceL2", x, axes, keepdims=1)
        return b.Div(x, b.op("Max", norm, b.scalar_like(self.eps, norm), shape=norm.shape))


@dataclass(frozen=True, kw_only=True)
class Cosine(_OnAngles):
    """1 - the cosine of the angle between output and labels along an axis, averaged over the vectors.

    torch.nn.CosineEmbeddingLoss where its y is 1, with the norms of torch.nn.functional.cosine_similarity.
    """

    name: ClassVar[str] = "cosine"

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        return self.reduced(b, 1.0 - self.cosine(b, output, labels))


@dataclass(frozen=True, kw_only=True)
class NegCosine(_OnAngles):
    """Minus the mean cosine between output and labels, as torch.nn.functional.cosine_similarity has it.

    D of Chen & He, *Exploring Simple Siamese Representation Learning*, CVPR 2021.
    """

    name: ClassVar[str] = "neg_cosine"

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        return b.Neg(self.reduced(b, self.cosine(b, output, labels)))
