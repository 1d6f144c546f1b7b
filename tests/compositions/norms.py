"""Makers of norms, softmaxes, reductions and losses."""

from __future__ import annotations

import numpy as np

from tests.compositions.makers import makes
from tests.compositions.windows import image
from tests.compositions.writer import Unfit, Writer


def axis_of(w: Writer, x: str) -> int:
    rank = w.rank(x)
    if not rank:
        raise Unfit
    return w.rng.randint(-rank, rank - 1)


@makes("Softmax LogSoftmax Hardmax")
def softmax(w: Writer, op: str) -> None:
    x = w.ranked(1)
    w.op(op, x, axis=axis_of(w, x))


@makes("LpNormalization")
def lp_normalization(w: Writer, op: str) -> None:
    x = w.ranked(1)
    w.op(op, w.nonzero(x), axis=axis_of(w, x), p=w.rng.choice((1, 2)))


@makes("BatchNormalization")
def batch_normalization(w: Writer, op: str) -> None:
    x = image(w) if w.rng.random() < 0.7 else w.ranked(2, 2)
    channels = (w.shape(x)[1],)
    if w.known[x].numel() // channels[0] < 2:
        raise Unfit
    operands = [x, w.like(channels), w.like(channels), w.like(channels), w.positive(w.like(channels))]
    epsilon = {"epsilon": 0.01} if w.rng.random() < 0.5 else {}
    if w.opset >= 14 and w.rng.random() < 0.4:
        w.many(op, *operands, outputs=3, training_mode=1, momentum=round(w.rng.uniform(0.1, 0.9), 2), **epsilon)
    else:
        w.op(op, *operands, **epsilon)


@makes("InstanceNormalization")
def instance_normalization(w: Writer, op: str) -> None:
    x = image(w)
    channels = (w.shape(x)[1],)
    w.op(op, x, w.like(channels), w.like(channels), epsilon=0.02)


@makes("GroupNormalization")
def group_normalization(w: Writer, op: str) -> None:
    x = image(w)
    channels = w.shape(x)[1]
    groups = w.rng.choice([g for g in (1, 2, channels) if channels % g == 0])
    size = (channels if w.opset >= 21 else groups,)
    w.op(op, x, w.like(size), w.like(size), num_groups=groups, epsilon=0.02)


@makes("LayerNormalization RMSNormalization")
def layer_normalization(w: Writer, op: str) -> None:
    x = w.ranked(1)
    axis = axis_of(w, x)
    shape = w.shape(x)[axis % w.rank(x) :]
    bias = w.like(shape) if op == "LayerNormalization" and w.rng.random() < 0.6 else ""
    outputs = 3 if op == "LayerNormalization" and w.rng.random() < 0.3 else 1
    w.many(op, x, w.like(shape), bias, outputs=outputs, axis=axis, epsilon=0.02)


@makes("MeanVarianceNormalization")
def mean_variance(w: Writer, op: str) -> None:
    x = w.ranked(2, 4)
    axes = w.rng.sample(range(w.rank(x)), w.rng.randint(1, w.rank(x)))
    if float(w.known[x].var(axes, unbiased=False).min()) < 1e-2:
        raise Unfit
    w.op(op, x, axes=sorted(axes))


@makes("LRN")
def lrn(w: Writer, op: str) -> None:
    x = w.like((w.rng.randint(1, 2), w.rng.randint(1, 4), *w.random_shape(2, 2)))
    w.op(op, x, size=w.rng.choice((1, 3, 5)), alpha=0.3, beta=0.6, bias=1.5)


@makes(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
def reduction(w: Writer, op: str) -> None:
    """Over some axes, none said, or by `noop_with_empty_axes` none at all."""
    x = w.pick()
    if op == "ReduceLogSum":
        x = w.positive(x)
    rank = w.rank(x)
    axes = [a - rank * w.rng.randint(0, 1) for a in w.rng.sample(range(rank), w.rng.randint(1, rank))] if rank else []
    keep = {"keepdims": w.rng.randint(0, 1)}
    by_operand = w.opset >= (13 if op == "ReduceSum" else 18)
    if not axes or w.rng.random() < 0.15:
        noop = {"noop_with_empty_axes": 1} if by_operand and op == "ReduceSum" and w.rng.random() < 0.4 else {}
        w.op(op, x, **keep, **noop)
    elif by_operand:
        w.op(op, x, w.ints(axes), **keep)
    else:
        w.op(op, x, axes=axes, **keep)


@makes("CumSum")
def cum_sum(w: Writer, op: str) -> None:
    x = w.ranked(1)
    w.op(op, x, w.ints(axis_of(w, x)), exclusive=w.rng.randint(0, 1), reverse=w.rng.randint(0, 1))


@makes("SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss")
def loss(w: Writer, op: str) -> None:
    """With weights, a reduction and a label that does not count, or without."""
    classes, rng = w.rng.randint(1, 4), w.rng
    shape = (rng.randint(1, 3), classes, *w.random_shape(0, 2))
    labels = w.numbers.integers(0, classes, (shape[0], *shape[2:]))
    weight = w.positive(w.like((classes,))) if rng.random() < 0.4 else ""
    ignored = {"ignore_index": rng.randint(0, classes - 1)} if classes > 1 and rng.random() < 0.3 else {}
    if ignored and np.all(labels == ignored["ignore_index"]):
        raise Unfit
    outputs = 2 if op == "SoftmaxCrossEntropyLoss" and rng.random() < 0.4 else 1
    how = rng.choice(("none", "mean", "sum"))
    w.many(op, w.like(shape), w.constant(labels), weight, outputs=outputs, reduction=how, **ignored)
