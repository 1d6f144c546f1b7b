"""Gathering, and the choices of Dropout and TopK."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule
from gradcut.rules.shape import put_back


@rule("Gather", "data", weights="data")
def gather(op: Adjoint) -> Cotangents:
    """Rows of the cotangent added up at their indices."""
    data, axis = op["data"], op.attr("axis", 0)
    if 0 in (op.static("data") or ()):  # the runtime's ScatterElements takes nothing of the kind
        yield "data", op.b.zeros_like(data)
        return
    if axis < 0 and data.shape is None:
        yield "data", put_back(op, "data", lambda numbers: op.b.Gather(numbers, op["indices"], axis=axis))
        return
    if axis < 0:
        axis += op.rank("data")
    rows = op.wide(op.dY)
    operands = rows, op["indices"], op.b.shape_of(data)
    added = op.b.op("GatherGrad", *operands, axis=axis, domain="gradcut", dtype=rows.dtype, shape=data.shape)
    yield "data", op.b.Cast(added, to=data.dtype)


@rule("GatherElements", "data")
def gather_elements(op: Adjoint) -> Cotangents:
    """Elements of the cotangent added up at their indices."""
    b, data, dY = op.b, op["data"], op.wide(op.dY)
    operands = b.zeros(b.shape_of(data), dY.dtype or ir.DataType.FLOAT, data.shape), op["indices"], dY
    added = b.op("ScatterElements", *operands, axis=op.attr("axis", 0), reduction="add", shape=data.shape)
    yield "data", b.Cast(added, to=data.dtype)


@rule("GatherND", "data")
def gather_nd(op: Adjoint) -> Cotangents:
    """Slices of the cotangent added up at their indices."""
    batch_dims = op.attr("batch_dims", 0)

    def gather(numbers: ir.Value) -> ir.Value:
        return op.b.op("GatherND", numbers, op["indices"], batch_dims=batch_dims)

    yield "data", put_back(op, "data", gather)


@rule("Dropout", "data", constant="ratio")
def dropout(op: Adjoint) -> Cotangents:
    """output = data * mask / (1 - ratio); the mask is the forward's own draw. In inference the identity."""
    b = op.b
    training = op.constant("training_mode")
    if op.get("training_mode") is None or (training is not None and not bool(training)):
        yield "data", op.dY
        return
    ratio = op.get("ratio") or b.constant(0.5, ir.DataType.FLOAT)
    keep = b.Cast(1.0 - ratio, to=op.dY.dtype)
    if training is None:
        keep = b.Where(op["training_mode"], keep, b.scalar_like(1.0, keep))
    scale = b.Where(b.Equal(keep, 0.0), b.scalar_like(0.0, keep), b.Reciprocal(keep))
    yield "data", b.Where(op.out("mask"), op.dY * scale, b.scalar_like(0.0, op.dY))


@rule("TopK", "X")
def top_k(op: Adjoint) -> Cotangents:
    """Each cotangent back to where its value came from, by the forward's Indices."""
    b, X = op.b, op["X"]
    dY, indices = op.dY, op.out("Indices")
    yield "X", b.op("ScatterElements", b.zeros_like(X), indices, dY, axis=op.attr("axis", -1), shape=X.shape)
