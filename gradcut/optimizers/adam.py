"""Adam, with weight decay in the gradient or beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.optimizers.base import Optimizer, Scalars, Updated, descent, require, require_positive


def corrections(b: Builder, betas: tuple[float, float], step: ir.Value) -> tuple[ir.Value, ir.Value]:
    """1 - b1^t and the root of 1 - b2^t, DOUBLE scalars, for t = step + 1; within ``b.arithmetic()``."""
    t = b.Cast(step, to=ir.DataType.DOUBLE) + 1.0
    first, second = (1.0 - b.Pow(b.constant(beta, ir.DataType.DOUBLE), t) for beta in betas)
    return first, b.Sqrt(second)


def moments(
    betas: tuple[float, float], g: ir.Value, slots: Mapping[str, ir.Value], sign: float = 1.0
) -> tuple[ir.Value, ir.Value]:
    """m' = b1 m + (1 - b1) sign g;  v' = b2 v + (1 - b2) g g."""
    beta1, beta2 = betas
    m = slots["exp_avg"] * beta1 + g * (sign * (1.0 - beta1))
    return m, slots["exp_avg_sq"] * beta2 + g * g * (1.0 - beta2)


def require_betas(optimizer: Optimizer, betas: tuple[float, float]) -> None:
    require(all(0 <= beta < 1 for beta in betas), optimizer, "betas", "from 0 to below 1")


@dataclass(frozen=True)
class AdamLike(Optimizer):
    """What Adam and AdamW share; `decoupled`: weight decay shrinks the parameter, and is not in the gradient."""

    decoupled: ClassVar[bool]

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "eps", "weight_decay")
        require_betas(self, self.betas)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.amsgrad else ()))

    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        """root = sqrt(1 - b2^t);  scale = lr root / (1 - b1^t);  eps = eps root;  decay = 1 - lr wd."""
        rate = b.Cast(lr, to=ir.DataType.DOUBLE)
        with b.arithmetic():
            first, root = corrections(b, self.betas, step)
            values = {"scale": rate * root / first, "eps": root * self.eps}
            if self.weight_decay and self.decoupled:
                values["decay"] = 1.0 - rate * self.weight_decay
        return Scalars(b, values)

    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """m' = b1 m + (1 - b1) g;  v' = b2 v + (1 - b2) g g;  p' = decay p - scale m' / (sqrt(v') + eps).

        13 full-size operators (12 without decay). Torch writes lr / (1 - b1^t) m' / (sqrt(v') / root + eps);
        numerator and denominator times root are one operator less. To divide them by scale instead would save
        no further one, and break at lr = 0. Decay within the gradient, g + wd p, costs two, and then -g none.
        """
        sign = -1.0 if self.maximize else 1.0
        if self.weight_decay and not self.decoupled:
            g, sign = descent(g, p, self.weight_decay, self.maximize), 1.0
        m, v = moments(self.betas, g, slots, sign)
        state = {"exp_avg": m, "exp_avg_sq": v}
        if self.amsgrad:
            v = state["max_exp_avg_sq"] = b.Max(slots["max_exp_avg_sq"], v)
        moved = m * prepared.like("scale", p) / (b.Sqrt(v) + prepared.like("eps", p))
        kept = p * prepared.like("decay", p) if self.weight_decay and self.decoupled else p
        return kept - moved, state


@dataclass(frozen=True)
class AdamW(AdamLike):
    """Adam (Kingma, Ba 2015), decoupled weight decay (Loshchilov, Hutter 2019), as torch.optim.AdamW."""

    name: ClassVar[str] = "adamw"
    decoupled: ClassVar[bool] = True

    weight_decay: float = 1e-2


@dataclass(frozen=True)
class Adam(AdamLike):
    """Adam (Kingma, Ba 2015) as torch.optim.Adam: weight decay is wd p in the gradient."""

    name: ClassVar[str] = "adam"
    decoupled: ClassVar[bool] = False
