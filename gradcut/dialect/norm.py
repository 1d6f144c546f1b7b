"""Adjoints of normalisations and of softmax, in the forms that need the fewest passes over the data."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import AttributeType

from gradcut.dialect.core import dialect_op
from gradcut.ops import AttrRef, Builder


@dialect_op("dXhat Xhat InvStdDev axes")
def normalization_grad(b: Builder, dXhat: ir.Value, Xhat: ir.Value, InvStdDev: ir.Value, axes: ir.Value) -> ir.Value:
    """dX of Xhat = (X - mean) * InvStdDev, both statistics taken over `axes`.

    dX = InvStdDev * (dXhat - mean(dXhat) - Xhat * mean(dXhat * Xhat)); Ba et al. 2016 (layer), Ioffe and Szegedy
    2015 (batch).
    """
    mean = b.ReduceMean(dXhat, axes, keepdims=1)
    projection = b.ReduceMean(dXhat * Xhat, axes, keepdims=1)
    return b.Mul(dXhat - mean - Xhat * projection, InvStdDev)


@dialect_op("dY Y", axis=AttributeType.INT)
def softmax_grad(b: Builder, dY: ir.Value, Y: ir.Value, *, axis: int | AttrRef) -> ir.Value:
    """dX = Y * (dY - sum(dY * Y)) along `axis`."""
    weighted = dY * Y
    return b.Sub(weighted, Y * b.ReduceSum(weighted, _axis(b, axis), keepdims=1))


@dialect_op("dY Y", axis=AttributeType.INT)
def log_softmax_grad(b: Builder, dY: ir.Value, Y: ir.Value, *, axis: int | AttrRef) -> ir.Value:
    """dX = dY - exp(Y) * sum(dY) along `axis`."""
    return b.Sub(dY, b.Exp(Y) * b.ReduceSum(dY, _axis(b, axis), keepdims=1))


def _axis(b: Builder, axis: int | AttrRef) -> ir.Value:
    if not isinstance(axis, AttrRef):
        return b.ints([axis])
    return b.Reshape(b.op("Constant", value_int=axis, dtype=ir.DataType.INT64), b.ints([1]))
