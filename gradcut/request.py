"""One compilation as it was asked for, in one form, and the pipelines that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradcut.errors import SpecError
from gradcut.optimizers import AdamW, Optimizer, UpdateRequest, parse_optimizer
from gradcut.passes import (
    Differentiate,
    Emit,
    Fold,
    Lower,
    Pass,
    Pipeline,
    Propagate,
    Simplify,
    Specialize,
    StopGradient,
)


@dataclass(frozen=True)
class Request:
    """One compilation, with everything said in one form.

    Attributes:
        step: its name among several over one set of parameters; empty: it is the only one.
        beside: what all steps together train.
        narrow: it is one of several players: it computes what it needs alone, and moves no other's statistics.
        outputs: of such a step, the model's outputs that it gives, see `gradcut.passes.Narrow`.
    """

    loss: str
    train: tuple[str, ...]
    freeze: tuple[str, ...]
    stop_at: tuple[str, ...]
    update: UpdateRequest
    target: str
    strict: bool
    batch_norm: str
    dropout: str
    seed: int
    step: str = ""
    narrow: bool = False
    beside: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def chosen(self, state: Sequence[str] = ()) -> tuple[Pass, ...]:
        """From the imported model to before the loss; `state` is declared."""
        choose = StopGradient(
            at=self.stop_at, train=self.train, freeze=self.freeze, choose=True, state=tuple(state), lift=self.beside
        )
        return choose, Fold()

    def tail(self, has_loss: bool) -> Pipeline:
        return Pipeline((*self.backward(has_loss).passes, *self.emission().passes))

    def backward(self, has_loss: bool) -> Pipeline:
        return Pipeline(
            (
                Propagate(),
                Specialize(batch_norm=self.batch_norm, dropout=self.dropout, own=self.narrow),
                Differentiate(seed="one" if has_loss else "input", keep=True, unreached="drop"),
                Simplify(),
            )
        )

    def emission(self) -> Pipeline:
        return Pipeline((Lower(target=self.target), Emit()))


def as_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not -(2**63) <= seed < 2**63:
        raise SpecError(f"seed is an integer of 64 bits, not {seed!r}")
    return int(seed)


def as_optimizer(optimizer: Optimizer | str | None) -> Optimizer:
    if isinstance(optimizer, str):
        return parse_optimizer(optimizer)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise SpecError(
            f"an optimizer is gradcut.SGD(...), gradcut.AdamW(...) or text such as 'adamw:lr=1e-3', not {optimizer!r}"
        )
    return optimizer if optimizer is not None else AdamW()
