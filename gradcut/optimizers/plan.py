"""How every trained parameter of a model is updated: its own optimizer, clipping over all of them, running averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradcut.errors import SpecError
from gradcut.optimizers.base import Optimizer, like_default
from gradcut.optimizers.parse import parse_optimizer

Array = np.ndarray[Any, Any]
#: The slot that holds a parameter's running average.
EMA = "ema"
#: torch.nn.utils.clip_grad_norm_ divides by the norm plus this.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class UpdatePlan:
    """What a step does to each parameter. Gradients are clipped by value first, then by their norm, then used.

    Attributes:
        base: the optimizer of every parameter that has none of its own; its lr is the base rate.
        own: optimizers of the base's kind, by parameter.
        clip_norm: the Euclidean norm of all gradients together is at most this: they are scaled by
            min(1, clip_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does.
        clip_value: no element of a gradient is further from 0, as torch.nn.utils.clip_grad_value_ has it.
        ema: d of the average e' = d e + (1 - d) p' that is kept of each parameter; it starts as the parameter.
        clocks: by parameter, the name of the count of updates that its optimizer goes by, where it is not the step's:
            of several phases, one that joins late starts at 0.
    """

    base: Optimizer
    own: Mapping[str, Optimizer] = field(default_factory=dict)
    clip_norm: float | None = None
    clip_value: float | None = None
    ema: float | None = None
    clocks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option in ("clip_norm", "clip_value", "ema"):
            if getattr(self, option) is not None:
                object.__setattr__(self, option, like_default(option, getattr(self, option), 0.0))
        for option in ("clip_norm", "clip_value"):
            value = getattr(self, option)
            if value is not None and not value > 0:
                raise SpecError(f"{option} must be above 0, or left out, and is {value!r}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise SpecError(f"ema must be from 0 to below 1, such as 0.999, and is {self.ema!r}")
        for optimizer in self.own.values():
            if not self.base.lr and optimizer.lr:
                raise SpecError(
                    f"a group has lr={optimizer.lr:g} and the optimizer lr=0: groups are multiples of the base rate, "
                    "so give the optimizer a rate above 0"
                )

    def of(self, parameter: str) -> Optimizer:
        """The optimizer of a parameter."""
        return self.own.get(parameter, self.base)

    def clock(self, parameter: str) -> str:
        """The name of a parameter's count of updates; empty: the step's own."""
        return self.clocks.get(parameter, "")

    def factor(self, optimizer: Optimizer) -> float:
        """What the base rate of a step is multiplied by for a parameter of this optimizer."""
        return optimizer.lr / self.base.lr if optimizer.lr != self.base.lr else 1.0

    def slots(self, parameter: str) -> tuple[str, ...]:
        """The names of the state tensors of a parameter."""
        return (*self.of(parameter).slots, *((EMA,) if self.ema is not None else ()))

    def initial(self, parameter: str, slot: str, value: Array, dtype: Any) -> Array:
        """A slot before the first step; `value` is the parameter's."""
        if slot == EMA:
            return value.astype(dtype)
        return np.full(value.shape, self.of(parameter).initial(slot), dtype)

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> UpdatePlan:
        """The plan that artifacts were compiled with."""
        said = manifest["optimizer"]
        own = {one["name"]: parse_optimizer(one["optimizer"]) for one in manifest["trainable"] if "optimizer" in one}
        clocks = {one["name"]: one["clock"] for one in manifest["trainable"] if one.get("clock")}
        clips = said.get("clip_norm"), said.get("clip_value")
        return cls(parse_optimizer(said["spec"]), own, *clips, said.get("ema"), clocks)
