"""Samples of normalisations, softmax and losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.sample import Sample, ints, normal, positive, sample


def samples() -> Iterator[Sample]:
    yield from _softmax()
    yield from _layer_normalization()
    yield from _batch_normalization()
    yield from _cross_entropy()
    yield from _negative_log_likelihood()


def _softmax() -> Iterator[Sample]:
    for op in ("Softmax", "LogSoftmax"):
        yield sample(op, "last", normal(3, 4))
        yield sample(op, "first", normal(3, 4), axis=0)
        yield sample(op, "middle", normal(2, 3, 4), axis=1)
        yield sample(op, "negative", normal(2, 3, 4), axis=-2)


def _layer_normalization() -> Iterator[Sample]:
    op, given = "LayerNormalization", {"needs_rank": True}
    yield sample(op, "last", normal(3, 5), positive(5), normal(5), **given)
    yield sample(op, "three", normal(2, 3, 5), positive(5), normal(5), epsilon=1e-2, **given)
    yield sample(op, "no_bias", normal(2, 3, 5), positive(5), **given)
    yield sample(op, "axis_1", normal(2, 3, 4), positive(3, 4), normal(3, 4), axis=1, **given)
    yield sample(op, "axis_0", normal(3, 4), positive(3, 4), axis=0, **given)
    yield sample(op, "negative_axis", normal(2, 3, 4), positive(3, 4), normal(3, 4), axis=-2, **given)
    yield sample(op, "narrow_scale", normal(2, 3, 4), positive(4), normal(3, 1), axis=1, **given)
    yield sample(op, "wide_scale", normal(2, 3, 4), positive(2, 1, 4), normal(1, 3, 4), **given)
    yield sample(op, "statistics", normal(3, 5), positive(5), normal(5), outputs=3, **given)
    yield sample(op, "mean", normal(2, 3, 4), positive(3, 4), axis=1, outputs=2, **given)


def _batch_normalization() -> Iterator[Sample]:
    for name, shape in {"flat": (4, 3), "line": (2, 3, 4), "image": (2, 3, 2, 3)}.items():
        yield _batch_norm(name, shape)
        yield _batch_norm(f"{name}_training", shape, training_mode=1, outputs=3)
    yield _batch_norm("epsilon", (3, 2, 2), epsilon=0.1)
    yield _batch_norm("training_no_momentum", (3, 2, 2), training_mode=1, outputs=3, momentum=0.0)
    yield _batch_norm("training_momentum", (3, 2, 2), training_mode=1, outputs=3, momentum=0.3, epsilon=0.01)


def _batch_norm(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    c = shape[1]
    operands = (normal(*shape), positive(c), normal(c), normal(c), positive(c))
    return sample("BatchNormalization", name, *operands, needs_rank=True, **options)


def _cross_entropy() -> Iterator[Sample]:
    labels = ints(2, 0, 1, 2)
    weights = np.array([0.5, 1.5, 0.7], np.float32)
    for reduction in ("mean", "sum", "none"):
        yield _loss(f"{reduction}", normal(4, 3), labels, reduction=reduction)
        yield _loss(f"{reduction}_weights", normal(4, 3), labels, weights, reduction=reduction)
        yield _loss(f"{reduction}_constant", normal(4, 3), labels, weights, constant="weights", reduction=reduction)
        yield _loss(f"{reduction}_ignore", normal(4, 3), labels, reduction=reduction, ignore_index=2)
        both = {"reduction": reduction, "ignore_index": -100, "outputs": 2}
        yield _loss(f"{reduction}_both", normal(4, 3), ints(2, -100, 1, 0), weights, **both)
    pixels = ints(0, 1, 2, 1, 2, 0).reshape(1, 2, 3)
    yield _loss("image", normal(1, 3, 2, 3), pixels, outputs=2)
    yield _loss("image_weights", normal(1, 3, 2, 3), pixels, weights, reduction="none", ignore_index=1)
    yield _loss("line_sum", normal(2, 3, 2), ints(0, 1, 2, 1).reshape(2, 2), weights, reduction="sum")
    volume = ints(0, 3, 1, 2, 0, 0, 2, 0).reshape(1, 2, 2, 2)
    yield _loss("volume", normal(1, 3, 2, 2, 2), volume, weights, ignore_index=3, outputs=2)
    yield _loss("none_counts", normal(2, 3), ints(5, 5), reduction="sum", ignore_index=5)
    yield _loss("one_class", normal(2, 1), ints(0, 0), positive(1))
    yield _loss("int32_labels", normal(4, 3), labels.astype(np.int32))
    yield _loss("log_prob", normal(4, 3), labels, outputs=2)


def _negative_log_likelihood() -> Iterator[Sample]:
    op, labels = "NegativeLogLikelihoodLoss", ints(2, 0, 1, 2)
    weights = np.array([0.5, 1.5, 0.7], np.float32)
    for reduction in ("mean", "sum", "none"):
        shared = {"reduction": reduction, "runtime": "target"}
        yield sample(op, reduction, normal(4, 3), labels, **shared)
        yield sample(op, f"{reduction}_weights", normal(4, 3), labels, weights, **shared)
        yield sample(op, f"{reduction}_constant", normal(4, 3), labels, weights, constant="weight", **shared)
        both = {"ignore_index": -100, **shared}
        yield sample(op, f"{reduction}_both", normal(4, 3), ints(2, -100, 2, 0), weights, **both)
        yield sample(op, f"{reduction}_ignore", normal(4, 3), ints(2, -1, 1, 0), ignore_index=-1, **shared)
    pixels = ints(0, 1, 2, 1, 2, 0).reshape(1, 2, 3)
    yield sample(op, "image", normal(1, 3, 2, 3), pixels, weights, runtime="target")


def _loss(name: str, *operands: np.ndarray, **options: Any) -> Sample:
    return sample("SoftmaxCrossEntropyLoss", name, *operands, runtime="labels", **options)
