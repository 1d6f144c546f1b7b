"""The weights of the classes in a loss: their derivative against torch's autograd of the page's formula."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

import gradcut
from gradcut.runtime.widen import runtime
from tests.rules.sample import build, ints, normal, positive, sample

LABELS = ints(0, 3, 1, 2, 2, -100, 0, 1).reshape(2, 4)
SCORES, WEIGHTS = normal(2, 5, 4), positive(5)


def formula(scores: torch.Tensor, weights: torch.Tensor, reduction: str) -> torch.Tensor:
    labels = torch.from_numpy(LABELS)
    kept = labels != -100
    safe = torch.where(kept, labels, 0)
    weight = weights[safe] * kept
    losses = -weight * torch.log_softmax(scores, 1).gather(1, safe[:, None])[:, 0]
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / weight.sum()}[reduction]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_the_derivative_by_the_weights_of_classes(reduction: str) -> None:
    options = {"reduction": reduction, "ignore_index": -100, "runtime": "labels"}
    built = build(sample("SoftmaxCrossEntropyLoss", "torch", SCORES, LABELS, WEIGHTS, **options))
    scores, weights = (torch.tensor(array, requires_grad=True) for array in (SCORES, WEIGHTS))
    loss = formula(scores, weights, reduction)
    cotangent = torch.arange(1.0, loss.numel() + 1.0).reshape(loss.shape)
    loss.backward(cotangent)
    proto = gradcut.vjp(built.model, ["scores", "weights"], ["y0"])
    found = runtime(proto)({**built.feeds, "y0_grad": cotangent.numpy()})
    for mine, tensor in zip(found[1:], (scores, weights), strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(mine, tensor.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [12, 13, 22])
def test_the_weights_of_classes_are_no_parameter(opset: int) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]>'
        "g (float[n, 4] x, int64[n] labels) => (float loss) "
        "<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6}, float[3] classes = {0.5, 1.0, 2.0}> {"
        " scores = MatMul (x, w) loss = SoftmaxCrossEntropyLoss (scores, labels, classes) }"
    )
    assert list(gradcut.TrainingSession(gradcut.compile(model)).parameters()) == ["w"]
    gradient = gradcut.vjp(model, ["classes"], ["loss"])
    feeds = {"x": normal(3, 4), "labels": ints(0, 2, 2), "loss_grad": np.ones((), np.float32)}
    assert np.abs(runtime(gradient)(feeds)[1]).max() > 0


def test_many_labels_of_a_half_are_counted_in_single_precision() -> None:
    """70,000 rows: their number is beyond the largest half."""
    data, target = np.zeros((70000, 2), np.float16), np.zeros(70000, np.int64)
    built = build(sample("NegativeLogLikelihoodLoss", "many", data, target, runtime="target"))
    feeds = {**built.feeds, "y0_grad": np.asarray(700, np.float16)}
    found = runtime(gradcut.vjp(built.model, ["input"], ["y0"]))(feeds)[1]
    np.testing.assert_allclose(found[:, 0], -0.01, rtol=1e-3)
