"""Losses that are ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("SoftmaxCrossEntropyLoss", "scores")
def softmax_cross_entropy(op: Adjoint) -> Cotangents:
    """loss = reduce(-w[label] log_prob[label]); dscores = (softmax - onehot) w dloss / sum of w.

    Through log_prob as well: dscores += dlog_prob - softmax sum(dlog_prob).
    """
    b = op.b
    log_prob = op.out("log_prob")
    log_prob.type, log_prob.shape = op["scores"].type, op["scores"].shape
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
    safe, factor = _factors(op, "scores", "labels", "weights")
    probabilities = op.wide(b.Exp(log_prob))
    minus_one = b.Expand(b.scalar_like(-1.0, probabilities), b.Shape(safe))
    picked = b.op("ScatterElements", probabilities, safe, minus_one, axis=1, reduction="add")
    picked.shape = log_prob.shape
    return b.Cast(picked * op.wide(factor), to=log_prob.dtype)


@rule("NegativeLogLikelihoodLoss", "input")
def negative_log_likelihood(op: Adjoint) -> Cotangents:
    """loss = reduce(-w[target] input[target]): dinput is -w dloss / sum of w at the target, 0 elsewhere."""
    b, data = op.b, op["input"]
    safe, factor = _factors(op, "input", "target", "weight")
    share = b.Expand(-factor, b.Shape(safe))
    yield "input", b.op("ScatterElements", b.zeros_like(data), safe, share, axis=1, shape=data.shape)


def _factors(op: Adjoint, data: str, target: str, by_class: str) -> tuple[ir.Value, ir.Value]:
    """Labels with ignored ones set to 0, and the cotangent of each row's negative log likelihood: both [N, 1, ...]."""
    b, scores = op.b, op[data]
    labels = b.Unsqueeze(b.Cast(op[target], to=ir.DataType.INT64), b.ints([1]))
    ignore = op.attr("ignore_index")
    weight = b.op("Expand", b.scalar_like(1.0, scores), b.Shape(labels))
    safe = labels
    if ignore is not None:
        kept = b.Not(b.Equal(labels, b.constant(ignore, ir.DataType.INT64)))
        safe = b.Where(kept, labels, b.constant(0, ir.DataType.INT64))
        weight = b.Cast(kept, to=scores.dtype)
    if op.get(by_class) is not None:
        weight = weight * b.op("Gather", op[by_class], safe, axis=0)
    reduction, dloss = op.attr("reduction", "mean"), op.cotangent()
    assert dloss is not None
    if reduction == "none":
        return safe, weight * b.Unsqueeze(dloss, b.ints([1]))
    if reduction == "mean":
        total = b.ReduceSum(weight, keepdims=0)
        dloss = dloss / b.Where(b.Equal(total, 0.0), b.scalar_like(1.0, total), total)  # no label counts: no gradient
    return safe, weight * dloss
