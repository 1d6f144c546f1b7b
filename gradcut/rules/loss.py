"""Losses that are ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("SoftmaxCrossEntropyLoss", "scores", outputs={"log_prob": "scores"})
def softmax_cross_entropy(op: Adjoint) -> Cotangents:
    """loss = reduce(-w[label] log_prob[label]); dscores = (softmax - onehot) w dloss / sum of w.

    Through log_prob as well: dscores += dlog_prob - softmax sum(dlog_prob).
    """
    b = op.b
    log_prob = op.out("log_prob")
    log_prob.dtype, log_prob.shape = op["scores"].dtype, op["scores"].shape
    parts = []
    if op.cotangent("output") is not None:
        parts.append(_through_loss(op, log_prob))
    if op.cotangent("log_prob") is not None:
        parts.append(
            b.op(
                "LogSoftmaxGrad",
                *(op.cotangent("log_prob"), log_prob),
                axis=1,
                domain="gradcut",
                dtype=log_prob.dtype,
                shape=log_prob.shape,
            )
        )
    yield "scores", parts[0] if len(parts) == 1 else b.Add(*parts)


def _through_loss(op: Adjoint, log_prob: ir.Value) -> ir.Value:
    """The picked class's log probability has the cotangent -factor [N, 1, ...], the softmax spreads it back."""
    b = op.b
    safe, factor = _factors(op)
    picked = b.op("ScatterElements", b.Exp(log_prob), safe, _minus_one(op, safe), axis=1, reduction="add")
    picked.shape = log_prob.shape
    return picked * factor


def _minus_one(op: Adjoint, like: ir.Value) -> ir.Value:
    return op.b.op("Expand", op.b.scalar_like(-1.0, op["scores"]), op.b.Shape(like))


def _factors(op: Adjoint) -> tuple[ir.Value, ir.Value]:
    """Labels with ignored ones set to 0, and the cotangent of each row's negative log likelihood: both [N, 1, ...]."""
    b, scores = op.b, op["scores"]
    labels = b.Unsqueeze(b.Cast(op["labels"], to=ir.DataType.INT64), b.ints([1]))
    ignore = op.attr("ignore_index")
    weight = b.op("Expand", b.scalar_like(1.0, scores), b.Shape(labels))
    safe = labels
    if ignore is not None:
        kept = b.Not(b.Equal(labels, b.constant(ignore, ir.DataType.INT64)))
        safe = b.Where(kept, labels, b.constant(0, ir.DataType.INT64))
        weight = b.Cast(kept, to=scores.dtype)
    if op.get("weights") is not None:
        weight = weight * b.op("Gather", op["weights"], safe, axis=0)
    reduction = op.attr("reduction", "mean")
    dloss = op.cotangent("output")
    assert dloss is not None
    if reduction == "none":
        return safe, weight * b.Unsqueeze(dloss, b.ints([1]))
    if reduction == "mean":
        dloss = dloss / b.ReduceSum(weight, keepdims=0)
    return safe, weight * dloss
