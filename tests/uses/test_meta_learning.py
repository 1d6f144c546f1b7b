"""MAML on sine regression: first-order where the inner gradient is a constant, full where it is not.

Finn, Abbeel and Levine, Model-Agnostic Meta-Learning, 2017. The inner gradient is `gradcut.vjp` of the loss; a step
with it gives the adapted weights, with which the same network is called again; the outer gradient differentiates all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.func import functional_call

import gradcut
from tests.uses.common import backward, close, export, leaves, outputs, seeded
from tests.uses.composed import add, call, constant, fix, keep_outputs

RATE = 0.05


class Regression(nn.Module):
    """The loss of a small network on one task."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.layers(x) - y).square().mean()


PARAMETERS = list(leaves(Regression()))


def task(rng: np.random.Generator, points: int = 10) -> dict[str, np.ndarray]:
    """A sine of random amplitude and phase: points to adapt to, and points to be judged by."""
    amplitude, phase = rng.uniform(0.5, 3), rng.uniform(0, np.pi)
    x, query = rng.uniform(-3, 3, (2, points, 1)).astype(np.float32)
    sine = lambda at: (amplitude * np.sin(at + phase)).astype(np.float32)
    return {"x": x, "y": sine(x), "query_x": query, "query_y": sine(query)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    feeds = task(np.random.default_rng(0))
    path = tmp_path_factory.mktemp("maml") / "regression.onnx"
    return export(seeded(Regression), {name: feeds[name] for name in ("x", "y")}, path, ["loss"])


def adapted(file: Path, steps: int = 1) -> onnx.ModelProto:
    """Inputs x, y, query_x, query_y; output query_loss, of the weights after gradient steps on (x, y)."""
    given = onnx.load(file)
    model = gradcut.vjp(file, wrt=PARAMETERS, of=["loss"])
    fix(model, "loss_grad", 1)
    constant(model, "rate", RATE)
    weights = {name: name for name in PARAMETERS}
    for step in range(steps):
        if step:
            again = gradcut.vjp(file, wrt=PARAMETERS, of=["loss"])
            inputs = {"x": "x", "y": "y", "loss_grad": "loss_grad"}
            call(model, again, f"step{step}_", {**inputs, **weights})
        gradient = "{}_grad" if step == 0 else f"step{step}_" + "{}_grad"
        for name in PARAMETERS:
            add(model, "Mul", f"rate {gradient.format(name)}", f"{name}_move{step}")
            weights[name] = add(model, "Sub", f"{weights[name]} {name}_move{step}", f"{name}_fast{step}")
    call(model, given, "query_", weights)
    keep_outputs(model, "query_loss")
    onnx.checker.check_model(model, full_check=True)
    return model


#: First-order: the inner gradients are data to the outer one.
FIRST_ORDER = "*.weight_grad", "*.bias_grad"


def torch_gradient(feeds: dict[str, np.ndarray], first_order: bool, steps: int = 1) -> dict[str, np.ndarray]:
    module = seeded(Regression)
    t = {name: torch.tensor(array) for name, array in feeds.items()}
    weights = dict(module.named_parameters())
    for _ in range(steps):
        loss = functional_call(module, weights, (t["x"], t["y"]))
        moves = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order, retain_graph=True)
        weights = {name: w - RATE * g for (name, w), g in zip(weights.items(), moves, strict=True)}
    outer = functional_call(module, weights, (t["query_x"], t["query_y"]))
    found = torch.autograd.grad(outer, list(module.parameters()))
    return dict(zip(PARAMETERS, (g.numpy() for g in found), strict=True))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [True, False], ids=["first order", "full"])
def test_the_outer_gradient_is_torchs(first_order: bool, steps: int, file: Path) -> None:
    feeds = task(np.random.default_rng(1))
    stop = FIRST_ORDER if first_order else ()
    session = gradcut.TrainingSession(gradcut.compile(adapted(file, steps), stop_at=stop))
    close(session.gradients(feeds), torch_gradient(feeds, first_order, steps), rtol=1e-3, atol=1e-5)


def test_first_order_equals_its_formula(file: Path) -> None:
    """The gradient of the query's loss, taken at the adapted weights, as if they had not come from anywhere."""
    feeds = task(np.random.default_rng(2))
    plain = gradcut.vjp(file, wrt=PARAMETERS, of=["loss"])
    start = {name: p.detach().numpy() for name, p in seeded(Regression).named_parameters()}
    inner = outputs(plain, {"x": feeds["x"], "y": feeds["y"], "loss_grad": 1})
    for weight in plain.graph.initializer:
        if weight.name in start:
            moved = start[weight.name] - RATE * inner[f"{weight.name}_grad"]
            weight.CopyFrom(onnx.numpy_helper.from_array(moved, weight.name))
    at_adapted = outputs(plain, {"x": feeds["query_x"], "y": feeds["query_y"], "loss_grad": 1})
    session = gradcut.TrainingSession(gradcut.compile(adapted(file), stop_at=FIRST_ORDER))
    close(session.gradients(feeds), {name: at_adapted[f"{name}_grad"] for name in PARAMETERS}, rtol=1e-4, atol=1e-6)


def test_the_two_differ_and_the_mark_spares_the_second_derivative(file: Path) -> None:
    feeds = task(np.random.default_rng(3))
    first, full = (gradcut.compile(adapted(file), stop_at=stop) for stop in (FIRST_ORDER, ()))
    a, b = (gradcut.TrainingSession(one).gradients(feeds)["layers.2.weight"] for one in (first, full))
    assert np.abs(a - b).max() > 1e-3
    of_the_query = lambda one: {node for node in backward(one.training_model) if not node.startswith("query_")}
    subtractions = {f"Sub_{name}_fast0" for name in PARAMETERS}
    assert of_the_query(first) <= subtractions
    assert of_the_query(full) > subtractions


def test_a_vjp_of_the_vjp_is_the_same_gradient(file: Path) -> None:
    feeds = task(np.random.default_rng(4))
    outer = gradcut.vjp(adapted(file), wrt=PARAMETERS, of=["query_loss"])
    found = outputs(outer, {**feeds, "query_loss_grad": 1})
    names = [port.name for port in outer.graph.output[1:]]
    close(dict(zip(PARAMETERS, (found[name] for name in names), strict=True)), torch_gradient(feeds, False), 1e-3, 1e-5)


@pytest.mark.parametrize("first_order", [True, False], ids=["first order", "full"])
def test_it_learns_to_adapt(first_order: bool, file: Path) -> None:
    """Loss on new tasks after one inner step, before and after meta-training on others; four tasks an update."""
    rng, judges = np.random.default_rng(5), [task(np.random.default_rng(seed)) for seed in range(100, 140)]
    stop = FIRST_ORDER if first_order else ()
    session = gradcut.TrainingSession(gradcut.compile(adapted(file), stop_at=stop, optimizer="adam:lr=5e-3"))
    judged = lambda: np.mean([session.evaluate(feeds).loss for feeds in judges])
    before = judged()
    for _ in range(400):
        session.step([task(rng) for _ in range(4)])
    assert judged() < 0.6 * before
