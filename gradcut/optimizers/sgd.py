"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.ops import Builder
from gradcut.optimizers.base import Optimizer, Scalars, Updated, descent, require_positive


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Sutskever et al. 2013), as torch.optim.SGD."""

    name: ClassVar[str] = "sgd"

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "momentum", "weight_decay")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise SpecError("sgd: nesterov=true needs momentum above 0 and dampening=0")

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        """The new gradient's share in the buffer is 1 in the first step, then 1 - dampening, as torch's."""
        values = {"lr": b.Cast(lr, to=ir.DataType.DOUBLE)}
        if self.momentum and self.dampening:
            one, rest = (b.constant(value, ir.DataType.DOUBLE) for value in (1.0, 1.0 - self.dampening))
            values["share"] = b.Where(b.Equal(step, 0), one, rest)
        return Scalars(b, values)

    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """d = g + wd p;  buf' = momentum buf + share d;  p' = p - lr (buf', Nesterov: d + momentum buf')."""
        lr = prepared.like("lr", p)
        d = descent(g, p, self.weight_decay, self.maximize)
        if not self.momentum:
            return p - d * lr, {}
        buffer = slots["momentum_buffer"] * self.momentum + (d * prepared.like("share", p) if self.dampening else d)
        direction = d + buffer * self.momentum if self.nesterov else buffer
        return p - direction * lr, {"momentum_buffer": buffer}
