"""Losses that are ONNX operators.

A row is a label with its log probability; a loss of N x D1 x ... labels has as many. No gradient flows where no label
counts; torch and ONNX's own mean are 0 / 0 there.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("SoftmaxCrossEntropyLoss", "scores weights", outputs=lambda node: {"log_prob": "scores"})
def softmax_cross_entropy(op: Adjoint) -> Cotangents:
    """loss = reduce(-w[label] log_prob[label]); dscores = (softmax - onehot) w dloss / sum of w.

    Through log_prob as well: dscores += dlog_prob - softmax sum(dlog_prob). dweights: see `_by_class`.
    """
    log_prob, loss = op.out("log_prob"), op.cotangent("output")
    log_prob.type, log_prob.shape = op["scores"].type, op["scores"].shape
    rows = None if loss is None else _rows(op, "labels", "weights", log_prob)
    if op.wants("scores"):
        parts = [] if rows is None else [_through_loss(op, log_prob, rows)]
        if op.cotangent("log_prob") is not None:
            parts.append(_through_log_prob(op, log_prob))
        yield "scores", parts[0] if len(parts) == 1 else op.b.Add(*parts)
    if op.wants("weights"):
        assert rows is not None
        yield "weights", _by_class(op, "weights", log_prob, rows)


@rule("NegativeLogLikelihoodLoss", "input weight")
def negative_log_likelihood(op: Adjoint) -> Cotangents:
    """loss = reduce(-w[target] input[target]): dinput is -w dloss / sum of w at the target, 0 elsewhere."""
    b, data = op.b, op["input"]
    rows = _rows(op, "target", "weight", data)
    if op.wants("input"):
        share = b.Expand(b.Cast(-(rows.weight * rows.share), to=data.dtype), b.Shape(rows.labels))
        yield "input", b.op("ScatterElements", b.zeros_like(data), rows.labels, share, axis=1, shape=data.shape)
    if op.wants("weight"):
        yield "weight", _by_class(op, "weight", data, rows)


@dataclass(frozen=True)
class _Rows:
    """Per label, [N, 1, D1, ...]; halves are float32, for they are summed.

    Attributes:
        labels: INT64, 0 for an ignored one. kept: whether it is not ignored; None: all are.
        weight: that of its class, 0 for an ignored one.
        share: the cotangent of each weighted negative log likelihood; a scalar where all have the same.
    """

    labels: ir.Value
    kept: ir.Value | None
    weight: ir.Value
    share: ir.Value


def _rows(op: Adjoint, target: str, by_class: str, log_prob: ir.Value) -> _Rows:
    b, ignored = op.b, op.attr("ignore_index")
    labels, kept = b.Unsqueeze(b.Cast(op[target], to=ir.DataType.INT64), b.ints([1])), None
    if ignored is not None:
        kept = b.Not(b.Equal(labels, b.constant(ignored, ir.DataType.INT64)))
        labels = b.Where(kept, labels, b.constant(0, ir.DataType.INT64))
    kind = ir.DataType.DOUBLE if log_prob.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    weight = b.Expand(b.constant(1.0, kind), b.Shape(labels)) if kept is None else b.Cast(kept, to=kind)
    if op.get(by_class) is not None:
        weight = weight * op.wide(b.op("Gather", op[by_class], labels, axis=0))
    reduction, dloss = op.attr("reduction", "mean"), op.cotangent()
    assert dloss is not None
    share = op.wide(dloss)
    if reduction == "none":
        share = b.Unsqueeze(share, b.ints([1]))
    elif reduction == "mean":
        total = b.ReduceSum(weight, keepdims=0)
        share = share / b.Where(b.Equal(total, 0.0), b.scalar_like(1.0, total), total)
    return _Rows(labels, kept, weight, share)


def _through_loss(op: Adjoint, log_prob: ir.Value, rows: _Rows) -> ir.Value:
    """The picked class's log probability has the cotangent -weight share, the softmax spreads it back."""
    b = op.b
    probabilities = op.wide(b.Exp(log_prob))
    minus_one = b.Expand(b.scalar_like(-1.0, probabilities), b.Shape(rows.labels))
    picked = b.op("ScatterElements", probabilities, rows.labels, minus_one, axis=1, reduction="add")
    picked.shape = log_prob.shape
    return b.Cast(picked * (rows.weight * rows.share), to=log_prob.dtype)


def _through_log_prob(op: Adjoint, log_prob: ir.Value) -> ir.Value:
    shared = {"domain": "gradcut", "dtype": log_prob.dtype, "shape": log_prob.shape}
    return op.b.op("LogSoftmaxGrad", op.cotangent("log_prob"), log_prob, axis=1, **shared)


def _by_class(op: Adjoint, by_class: str, log_prob: ir.Value, rows: _Rows) -> ir.Value:
    """Each class's weight: the sum of -share log_prob[label] over its rows; of a mean, of (-log_prob[label] - loss)."""
    b, weights = op.b, op[by_class]
    terms = -op.wide(b.GatherElements(log_prob, rows.labels, axis=1))
    if op.attr("reduction", "mean") == "mean":
        terms = terms - op.wide(op.out())
    terms = terms * rows.share
    if rows.kept is not None:
        terms = b.Where(rows.kept, terms, b.scalar_like(0.0, terms))
    shared = {"domain": "gradcut", "dtype": terms.dtype, "shape": weights.shape}
    return b.Cast(b.op("GatherGrad", terms, rows.labels, b.shape_of(weights), axis=0, **shared), to=weights.dtype)
