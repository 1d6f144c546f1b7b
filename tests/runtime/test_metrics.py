"""Metrics over batches against scikit-learn over everything at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from gradcut.errors import FeedError, SpecError
from gradcut.runtime.metrics import (
    METRICS,
    accuracy,
    check_metrics,
    default_metrics,
    hits_and_count,
    maker,
    rises,
    term_of,
)

CLASSES: dict[str, Any] = {"kind": "cross_entropy", "axis": 1, "ignore_index": -100}
BINARY: dict[str, Any] = {"kind": "bce_with_logits"}
VALUES: dict[str, Any] = {"kind": "mse"}
SEEDS = range(5)


def over_batches(name: str, loss: dict[str, Any], output: np.ndarray, labels: np.ndarray, size: int) -> float | None:
    metric = maker(name, loss)()
    for start in range(0, len(output), size):
        metric.add(output[start : start + size], labels[start : start + size])
    return metric.value()


# --- against scikit-learn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["accuracy", "precision", "recall", "f1", "top1", "top3"])
def test_classes(name: str, seed: int) -> None:
    """Seven classes, of which some do not occur, are never predicted, or both; a batch at a time."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(57, 7)).astype(np.float32), rng.integers(0, 5, 57)
    logits[:, 6] -= 100
    chosen = logits.argmax(1)
    expected = {
        "accuracy": lambda: reference.accuracy_score(labels, chosen),
        "precision": lambda: reference.precision_score(labels, chosen, average="macro", zero_division=0),
        "recall": lambda: reference.recall_score(labels, chosen, average="macro", zero_division=0),
        "f1": lambda: reference.f1_score(labels, chosen, average="macro", zero_division=0),
        "top1": lambda: reference.top_k_accuracy_score(labels, logits, k=1, labels=range(7)),
        "top3": lambda: reference.top_k_accuracy_score(labels, logits, k=3, labels=range(7)),
    }[name]()
    for size in (1, 8, 57):
        assert over_batches(name, CLASSES, logits, labels, size) == pytest.approx(expected, rel=1e-12), f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["accuracy", "f1", "top2"])
def test_classes_along_another_axis_and_ignored_labels(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(9, 4, 6)), rng.integers(0, 6, (9, 4))
    labels[rng.random(labels.shape) < 0.3] = 9
    kept = labels != 9
    flat, known = logits[kept], labels[kept]
    expected = {
        "accuracy": lambda: reference.accuracy_score(known, flat.argmax(-1)),
        "f1": lambda: reference.f1_score(known, flat.argmax(-1), average="macro", zero_division=0),
        "top2": lambda: reference.top_k_accuracy_score(known, flat, k=2, labels=range(6)),
    }[name]()
    loss = {"kind": "cross_entropy", "axis": 2, "ignore_index": 9}
    assert over_batches(name, loss, logits, labels, 2) == pytest.approx(expected, rel=1e-12), f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_one_binary_label(shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=shape).astype(np.float32), rng.integers(0, 2, shape).astype(np.float32)
    known, chosen = labels.ravel() > 0.5, logits.ravel() > 0
    for name, score in {
        "accuracy": reference.accuracy_score,
        "precision": reference.precision_score,
        "recall": reference.recall_score,
        "f1": reference.f1_score,
    }.items():
        assert over_batches(name, BINARY, logits, labels, 7) == pytest.approx(score(known, chosen)), f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_several_binary_labels(seed: int) -> None:
    """scikit-learn's label indicator; its accuracy is of whole rows, ours of elements."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(40, 5)), rng.integers(0, 2, (40, 5)).astype(np.float64)
    labels[:, 3] = 0
    known, chosen = labels > 0.5, logits > 0
    for name, score in {
        "precision": reference.precision_score,
        "recall": reference.recall_score,
        "f1": reference.f1_score,
    }.items():
        expected = score(known, chosen, average="macro", zero_division=0)
        assert over_batches(name, BINARY, logits, labels, 7) == pytest.approx(expected), f"seed {seed}"
    assert over_batches("accuracy", BINARY, logits, labels, 7) == pytest.approx(
        reference.accuracy_score(known.ravel(), chosen.ravel())
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(31,), (31, 1), (31, 4), (31, 2, 3)])
def test_values(shape: tuple[int, ...], seed: int) -> None:
    """Labels far from 0, where sums of squares about 0 lose all digits; one column does not vary."""
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=shape) + 1e6
    output = labels + rng.normal(size=shape)
    if len(shape) > 1 and shape[1] == 4:
        labels[:, 2] = 3.0
    flat, known = output.reshape(31, -1), labels.reshape(31, -1)
    for name, score in {
        "mse": reference.mean_squared_error,
        "mae": reference.mean_absolute_error,
        "r2": reference.r2_score,
    }.items():
        expected = score(known, flat)
        near = pytest.approx(expected, rel=1e-9, abs=1e6 * np.finfo(float).eps * 100)
        assert over_batches(name, VALUES, output, labels, 6) == near, f"seed {seed}"


def test_r2_of_what_does_not_vary_and_of_one_row() -> None:
    same = np.full((4, 1), 2.0)
    assert over_batches("r2", VALUES, same, same, 2) == reference.r2_score(same, same) == 1.0
    assert over_batches("r2", VALUES, same[:1], same[:1], 2) is None


# --- edges ---------------------------------------------------------------------------------------------------


def test_of_equal_scores_the_lower_class_is_the_larger() -> None:
    logits, labels = np.zeros((4, 4)), np.arange(4)
    assert over_batches("top1", CLASSES, logits, labels, 4) == over_batches("accuracy", CLASSES, logits, labels, 4)
    assert over_batches("top3", CLASSES, logits, labels, 2) == 0.75


def test_nothing_counted_is_no_figure() -> None:
    for name in ("accuracy", "f1", "top5"):
        assert over_batches(name, CLASSES, np.zeros((2, 3)), np.full(2, -100), 2) is None
    assert over_batches("mse", VALUES, np.zeros((0, 2)), np.zeros((0, 2)), 1) is None


def test_accuracy() -> None:
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert accuracy(logits, np.array([1, 1, 1])) == pytest.approx(2 / 3)
    assert accuracy(logits, np.array([1, 1, -100])) == 0.5
    assert hits_and_count(logits, np.array([1, 1, 7]), ignore_index=7) == (1, 2)
    assert math.isnan(accuracy(logits, np.full(3, -100)))


def test_accuracy_along_an_axis() -> None:
    logits = np.zeros((2, 3, 4))
    logits[:, :, 2] = 1
    logits[0, 1, :] = 2
    assert accuracy(logits, np.full((2, 3), 2), axis=-1) == pytest.approx(5 / 6)
    assert accuracy(logits, np.full((2, 4), 1), axis=1) == 0.5


def test_accuracy_refuses() -> None:
    with pytest.raises(SpecError, match="rank 3 need axis="):
        accuracy(np.zeros((2, 3, 4)), np.zeros((2, 4)))
    with pytest.raises(FeedError, match=r"labels of shape \(2, 1\)"):
        accuracy(np.zeros((2, 3)), np.zeros((2, 1)))


# --- names ---------------------------------------------------------------------------------------------------


def test_names() -> None:
    check_metrics(["accuracy", "top5", "top12", "loss"])
    with pytest.raises(
        SpecError, match=r"--metric: 'acuracy' is no metric. Nearest: accuracy. There are accuracy, prec"
    ):
        check_metrics(["acuracy"])
    with pytest.raises(SpecError, match="'top0' is no metric"):
        check_metrics(["top0"])


@pytest.mark.parametrize(
    ("name", "loss", "fitting"),
    [
        ("mse", CLASSES, "accuracy, precision, recall, f1, top<k>, loss"),
        ("top5", BINARY, "accuracy, precision, recall, f1, loss"),
        ("f1", VALUES, "mse, mae, r2, loss"),
        ("accuracy", {"kind": "graph"}, "loss"),
    ],
)
def test_a_metric_that_does_not_fit_the_loss(name: str, loss: dict[str, Any], fitting: str) -> None:
    line = f"--metric {name} does not fit the loss {loss['kind']}; what does: {fitting}"
    with pytest.raises(SpecError) as caught:
        term_of(name, [loss])
    assert str(caught.value) == line


def test_of_several_terms_the_first_that_fits_is_judged() -> None:
    terms = [{"kind": "graph"}, VALUES, {**CLASSES, "output": "a"}, {**CLASSES, "output": "b"}]
    assert term_of("f1", terms) is terms[2] and term_of("mae", terms) is VALUES
    with pytest.raises(SpecError, match=r"--metric f1 does not fit the loss mse \+ mse; what does: mse, mae, r2, loss"):
        term_of("f1", [VALUES, VALUES])


def test_directions_and_defaults() -> None:
    assert [name for name in (*METRICS, "top5", "loss") if not rises(name)] == ["mse", "mae", "loss"]
    assert default_metrics([VALUES, CLASSES]) == default_metrics([BINARY]) == ("accuracy",)
    assert default_metrics([VALUES]) == default_metrics([{"kind": "graph"}]) == ()
