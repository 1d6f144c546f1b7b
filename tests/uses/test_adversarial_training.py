"""Adversarial training: the example is made from the input's gradient, and is data to the model's update.

Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015 (FGSM); Miyato et al., 2017 (the l2 step).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradcut
from tests.uses.common import backward, close, export, leaves, normal, outputs, seeded, torch_gradients
from tests.uses.composed import add, call, constant, fix, keep_outputs

EPSILON = 0.1


class Classifier(nn.Module):
    """The mean cross entropy of x [n,4] against labels [n]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        layers = [nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)] if hidden else [nn.Linear(4, 3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.layers(x), labels)


BATCH = {"x": normal(0, 9, 4), "labels": np.arange(9) % 3}
TENSORS = {name: torch.tensor(array) for name, array in BATCH.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("adversarial")
    return {hidden: export(seeded(Classifier, hidden), BATCH, folder / f"{hidden}.onnx", ["loss"]) for hidden in (0, 8)}


def test_the_example_equals_the_closed_form(files: dict[int, Path]) -> None:
    """Of softmax regression, dL/dx = (p - onehot) W / n."""
    derived = gradcut.vjp(files[0], wrt=["x"], of=["loss"])
    dx = outputs(derived, {**BATCH, "loss_grad": 1})["x_grad"]
    linear = seeded(Classifier, 0).layers[0]
    W, b = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    scores = np.exp(BATCH["x"] @ W.T + b)
    expected = (scores / scores.sum(1, keepdims=True) - np.eye(3)[BATCH["labels"]]) @ W / 9
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(np.sign(dx), np.sign(expected))


def test_only_the_input_gets_a_gradient(files: dict[int, Path]) -> None:
    found = backward(gradcut.vjp(files[8], wrt=["x"], of=["loss"]))
    assert found["node_linear"] == found["node_linear_1"] == {"A"}


def trained_on_examples(file: Path, step: str) -> onnx.ModelProto:
    """The loss of the model on examples that the graph makes itself, `x_bad`; `step` is fgsm or l2."""
    model = gradcut.vjp(file, wrt=["x"], of=["loss"])
    fix(model, "loss_grad", 1)
    constant(model, "epsilon", EPSILON)
    if step == "fgsm":
        add(model, "Sign", "x_grad", "direction")
    else:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "features"))
        add(model, "ReduceL2", "x_grad features", "length", keepdims=1)
        add(model, "Div", "x_grad length", "direction")
    add(model, "Mul", "epsilon direction", "away")
    add(model, "Add", "x away", "x_bad")
    call(model, onnx.load(file), "bad_", {"x": "x_bad", "labels": "labels"})
    keep_outputs(model, "bad_loss")
    model.graph.output.add(name="x_bad").type.CopyFrom(model.graph.input[0].type)
    onnx.checker.check_model(model, full_check=True)
    return model


def example(module: nn.Module, step: str, create_graph: bool = False) -> torch.Tensor:
    x = TENSORS["x"].clone().requires_grad_()
    (dx,) = torch.autograd.grad(module(x, TENSORS["labels"]), x, create_graph=create_graph)
    return TENSORS["x"] + EPSILON * (dx.sign() if step == "fgsm" else dx / dx.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("step", ["fgsm", "l2"])
def test_the_models_update_treats_the_example_as_data(step: str, files: dict[int, Path]) -> None:
    module = seeded(Classifier, 8)
    bad = example(module, step)
    expected = torch_gradients(module, module(bad.detach(), TENSORS["labels"]))
    session = gradcut.TrainingSession(gradcut.compile(trained_on_examples(files[8], step), stop_at="x_bad"))
    np.testing.assert_allclose(session.evaluate(BATCH).outputs["x_bad"], bad.detach(), atol=1e-6)
    close(session.gradients(BATCH), expected)
    built = backward(session.artifacts.training_model)
    assert built and all(node.startswith("bad_") for node in built)


def test_without_the_mark_how_it_was_made_has_a_gradient_too(files: dict[int, Path]) -> None:
    """The l2 step is a smooth function of the weights; the sign's derivative is zero either way."""
    module = seeded(Classifier, 8)
    whole = torch_gradients(module, module(example(module, "l2", create_graph=True), TENSORS["labels"]))
    found = gradcut.TrainingSession(gradcut.compile(trained_on_examples(files[8], "l2"))).gradients(BATCH)
    close(found, whole, rtol=1e-3, atol=1e-6)
    held = gradcut.TrainingSession(gradcut.compile(trained_on_examples(files[8], "l2"), stop_at="x_bad"))
    assert np.abs(held.gradients(BATCH)["layers.0.weight"] / found["layers.0.weight"] - 1).max() > 0.01


def test_training_on_them_lowers_the_loss_under_attack(files: dict[int, Path]) -> None:
    session = gradcut.TrainingSession(
        gradcut.compile(trained_on_examples(files[8], "fgsm"), stop_at="x_bad", optimizer="adam:lr=2e-2")
    )
    losses = [session.step(BATCH).loss for _ in range(150)]
    assert losses[-1] < 0.5 * losses[0]
    assert session.parameters().keys() == leaves(seeded(Classifier, 8)).keys()  # one set of weights, called twice
