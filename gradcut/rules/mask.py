"""The mask of a gradient: what is not kept is zero; where the mask is constant, it is not computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.dialect import DOMAIN
from gradcut.dialect.kept import place, take
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule
from gradcut.rules.relatives import cotangent

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@rule("GradientMask", "X", operands="X mask", domain=DOMAIN)
def gradient_mask(op: Adjoint) -> Cotangents:
    """dX = dY where the mask is true, else 0.

    Of a constant mask the smallest product of index sets that holds all it keeps is taken out of dY, axis by axis; what
    the mask leaves out of that product is selected there; and all is put back into zeros.
    """
    mask = None if op["mask"].is_initializer() else op.constant("mask")
    if mask is None or op["X"].shape is None:
        yield "X", _selected(op, cotangent(op), op["mask"])
    else:
        yield "X", _kept(op, _fitted(op, mask))


def _selected(op: Adjoint, dY: ir.Value, mask: ir.Value) -> ir.Value:
    return op.b.op("Where", mask, dY, op.b.scalar_like(0.0, dY), dtype=dY.dtype, shape=dY.shape)


def _fitted(op: Adjoint, mask: Mask) -> Mask:
    """The mask with as many axes as X has."""
    rank = op.rank("X")
    if mask.ndim > rank:
        op.refuse(f"its mask has {mask.ndim} axes, and what it masks {rank}")
    wide = mask.astype(bool).reshape([1] * (rank - mask.ndim) + list(mask.shape))
    for axis, (size, dim) in enumerate(zip(wide.shape, op["X"].shape or (), strict=True)):
        if size != 1 and size != dim:
            op.refuse(f"its mask is {size} long along axis {axis}, and what it masks {dim}")
    return wide


def _kept(op: Adjoint, mask: Mask) -> ir.Value:
    kept = [np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)]
    cut = [axis for axis in range(mask.ndim) if len(kept[axis]) < mask.shape[axis]]
    inside, indices = mask[np.ix_(*kept)], {axis: op.b.ints(kept[axis]) for axis in cut}
    part = cotangent(op)
    if part.shape is None:
        part.shape = op["X"].shape
    for axis in cut:
        part = take(op.b, part, indices[axis], axis)
    if not inside.all():
        part = _selected(op, part, op.b.constant(inside, ir.DataType.BOOL))
    for axis in reversed(cut):
        part = place(op.b, part, indices[axis], axis, mask.shape[axis])
    return part
