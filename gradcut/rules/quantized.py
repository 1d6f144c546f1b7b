"""Rounding that gradients pass straight through, see `gradcut.passes.importing.straight_through`."""

from __future__ import annotations

from gradcut.dialect import DOMAIN
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("StraightThrough", "X", operands="Y X inside", domain=DOMAIN)
def straight_through(op: Adjoint) -> Cotangents:
    """dX = dY inside the range that the integers represent, 0 outside: torch's fake quantisation."""
    yield "X", op.b.op("Where", op["inside"], op.dY, op.b.scalar_like(0.0, op.dY), shape=op["X"].shape)
