"""Optimizers whose rate follows the norms of each tensor: LARS and LAMB.

What the papers call a layer is here one tensor. Where a norm that a trust ratio is made of is 0 (a bias that starts at
zeros, a gradient of zeros) the ratio is 1, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.optimizers.adam import corrections, moments, require_betas
from gradcut.optimizers.base import Optimizer, Scalars, Updated, descent, norm, require_positive


def _ratio(b: Builder, above: ir.Value, below: ir.Value, measured: tuple[ir.Value, ir.Value]) -> ir.Value:
    """above / below, and 1 where one of the `measured` norms is 0."""
    there = b.And(*(b.Greater(each, b.scalar_like(0.0, each)) for each in measured))
    return b.Where(there, above / below, b.scalar_like(1.0, above))


@dataclass(frozen=True)
class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv:1708.03888, eq. 6 and algorithm 1).

    Attributes:
        momentum: m. weight_decay: beta.
        trust_coefficient: eta; 0 leaves a tensor out of the scaling: its ratio is 1.
        eps: added to the ratio's denominator; the paper has none.
    """

    name: ClassVar[str] = "lars"

    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust_coefficient: float = 1e-3
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "momentum", "weight_decay", "trust_coefficient", "eps")

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        return Scalars(b, {"lr": b.Cast(lr, to=ir.DataType.DOUBLE)})

    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """ratio = eta |p| / (|g| + wd |p|);  v' = m v + lr ratio (g + wd p);  p' = p - v'.

        4 full-size operators and two reductions; with decay 6, without momentum 2 fewer. The rate is within v, as in
        algorithm 1: after a change of the rate, what was gathered at the old one runs on.
        """
        rate = prepared.like("lr", p)
        if self.trust_coefficient:
            weights, gradients = norm(b, p), norm(b, g)
            below = descent(gradients, weights, self.weight_decay) + self.eps
            rate = rate * _ratio(b, weights * self.trust_coefficient, below, (weights, gradients))
        moved = descent(g, p, self.weight_decay) * rate
        if not self.momentum:
            return p - moved, {}
        buffer = slots["momentum_buffer"] * self.momentum + moved
        return p - buffer, {"momentum_buffer": buffer}


@dataclass(frozen=True)
class LAMB(Optimizer):
    """Layer-wise adaptive moments (You et al. 2019, arXiv:1904.00962, algorithm 2 with phi the identity)."""

    name: ClassVar[str] = "lamb"

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "eps", "weight_decay")
        require_betas(self, self.betas)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        """root = sqrt(1 - b2^t);  scale = root / (1 - b1^t);  eps = eps root."""
        with b.arithmetic():
            first, root = corrections(b, self.betas, step)
            values = {"lr": b.Cast(lr, to=ir.DataType.DOUBLE), "scale": root / first, "eps": root * self.eps}
        return Scalars(b, values)

    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """u = scale m' / (sqrt(v') + eps) + wd p;  p' = p - lr |p| / |u| u: 15 full-size operators, two reductions."""
        m, v = moments(self.betas, g, slots)
        u = m * prepared.like("scale", p) / (b.Sqrt(v) + prepared.like("eps", p))
        if self.weight_decay:
            u = u + p * self.weight_decay
        weights, step = norm(b, p), norm(b, u)
        rate = prepared.like("lr", p) * _ratio(b, weights, step, (weights, step))
        return p - u * rate, {"exp_avg": m, "exp_avg_sq": v}
