"""Optimizers that divide by the root of what squared gradients have been: RMSprop and Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.optimizers.base import Optimizer, Scalars, Updated, descent, require, require_positive


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop (Hinton's lecture 6e, 2012), centered by Graves (arXiv:1308.0850), as torch.optim.RMSprop."""

    name: ClassVar[str] = "rmsprop"

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "eps", "weight_decay", "momentum")
        require(0 <= self.alpha < 1, self, "alpha", "from 0 to below 1")

    @property
    def slots(self) -> tuple[str, ...]:
        centered = ("grad_avg",) if self.centered else ()
        return ("square_avg", *centered, *(("momentum_buffer",) if self.momentum else ()))

    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        return Scalars(b, {"lr": b.Cast(lr, to=ir.DataType.DOUBLE)})

    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """d = g + wd p;  s' = alpha s + (1 - alpha) d d;  p' = p - lr d / (sqrt(s') + eps).

        Centered: a' = alpha a + (1 - alpha) d, and sqrt(s' - a' a'). Momentum: buf' = momentum buf + d / (...), and
        p' = p - lr buf'. 9 full-size operators; centered 14, momentum 11.
        """
        lr, rest = prepared.like("lr", p), 1.0 - self.alpha
        d = descent(g, p, self.weight_decay, self.maximize)
        square = spread = slots["square_avg"] * self.alpha + d * d * rest
        state = {"square_avg": square}
        if self.centered:
            mean = state["grad_avg"] = slots["grad_avg"] * self.alpha + d * rest
            spread = square - mean * mean
        root = b.Sqrt(spread) + self.eps
        if not self.momentum:
            return p - d * lr / root, state
        buffer = state["momentum_buffer"] = slots["momentum_buffer"] * self.momentum + d / root
        return p - buffer * lr, state


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan, Singer 2011) as torch.optim.Adagrad."""

    name: ClassVar[str] = "adagrad"

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    maximize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    @property
    def slots(self) -> tuple[str, ...]:
        return ("sum",)

    def initial(self, slot: str) -> float:
        return self.initial_accumulator_value

    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        """lr / (1 + lr_decay step)."""
        rate = b.Cast(lr, to=ir.DataType.DOUBLE)
        if self.lr_decay:
            with b.arithmetic():
                rate = rate / (b.Cast(step, to=ir.DataType.DOUBLE) * self.lr_decay + 1.0)
        return Scalars(b, {"lr": rate})

    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """d = g + wd p;  s' = s + d d;  p' = p - lr d / (sqrt(s') + eps): 7 full-size operators."""
        d = descent(g, p, self.weight_decay, self.maximize)
        total = slots["sum"] + d * d
        return p - d * prepared.like("lr", p) / (b.Sqrt(total) + self.eps), {"sum": total}
