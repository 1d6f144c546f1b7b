"""Whole models against torch: gradients against float64, losses and running statistics over five steps.

A case trains a part of a model; batch norms whose scale or bias is asked to train are in training mode on both sides.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradcut
from models import zoo
from tests.exported import exported

torch.set_num_threads(1)
#: ResNet's last stage is 1x1: batch norm over few rows is chaotic in float32, torch against itself too.
BATCH = {"resnet18_small": 32}


@dataclass(frozen=True)
class Case:
    """What trains: `train` and `freeze` as gradcut's patterns, `stop` as module scopes whose output is detached."""

    train: Sequence[str] | None = None
    freeze: Sequence[str] = ()
    stop: Sequence[str] = ()


BERT = "bert.encoder.layer"
CASES: dict[str, dict[str, Case]] = {
    "digits": {
        "full": Case(),
        "last block": Case(["encoder.conv3", "encoder.bn3", "head"]),
        "head only": Case(["head.*"]),
        "bias only": Case(["*.bias"]),
        "one frozen": Case(freeze=["encoder.conv2.weight"]),
        "two marks": Case(stop=["encoder.relu1", "encoder.pool2"]),
    },
    "mlp": {
        "full": Case(),
        "last block": Case(["body.2", "head"]),
        "head only": Case(["head.*"]),
        "bias only": Case(["*.bias"]),
        "one frozen": Case(freeze=["body.2.weight"]),
        "two marks": Case(stop=["body.0", "body.1"]),
    },
    "bert_tiny": {
        "full": Case(),
        "last block": Case([f"{BERT}.1.*", "bert.pooler", "classifier"]),
        "head only": Case(["classifier.*"]),
        "bias only": Case(["*.bias"]),
        "one frozen": Case(freeze=[f"{BERT}.1.attention.self.key.weight"]),
        "two marks": Case(stop=[f"{BERT}.0.attention.self.query", f"{BERT}.1.output.dense"]),
    },
    "resnet18_small": {
        "full": Case(),
        "last block": Case(["layer4.1.*", "fc"]),
        "head only": Case(["fc.*"]),
        "bias only": Case(["*.bias"]),
        "one frozen": Case(freeze=["layer2.1.conv1.weight"]),
        "two marks": Case(stop=["layer2.0.downsample", "layer3.1.bn2"]),
    },
}
IDS = [(model, case) for model, cases in CASES.items() for case in cases]
every_case = pytest.mark.parametrize(("model", "case"), IDS, ids=[f"{m}-{c}" for m, c in IDS])


def selected(case: Case, names: Sequence[str]) -> set[str]:
    """The parameters that a case asks to train; written anew, for names of torch's."""
    hit = lambda pattern, name: (
        name.endswith(pattern[1:]) if pattern[0] == "*" else name.startswith(pattern.rstrip("*").rstrip(".") + ".")
    )
    train = [name for name in names if case.train is None or any(hit(p, name) for p in case.train)]
    return set(train) - set(case.freeze)


def torch_model(model: str, case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The zoo's module with the case's freezes, modes and detached outputs."""
    module = zoo.torch_module(model).to(dtype)
    chosen = selected(case, [name for name, _ in module.named_parameters()])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(layer.weight.requires_grad or layer.bias.requires_grad)
    for name in case.stop:
        module.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output.detach())
    return module


def batch(model: str, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    size = BATCH.get(model, 8)
    return zoo.example_inputs(model, size, seed), zoo.example_labels(model, size, seed)


def torch_loss(module: nn.Module, model: str, seed: int) -> torch.Tensor:
    inputs, labels = batch(model, seed)
    dtype = next(module.parameters()).dtype
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return cross_entropy(module(**tensors), torch.from_numpy(labels))


def torch_gradients(model: str, case: Case, dtype: torch.dtype) -> dict[str, np.ndarray]:
    module = torch_model(model, case, dtype)
    torch_loss(module, model, 0).backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}


def compiled(model: str, case: Case, optimizer: gradcut.SGD | None = None) -> gradcut.TrainingArtifacts:
    return gradcut.compile(
        exported(model), "cross_entropy", case.train, case.freeze, case.stop, optimizer or gradcut.SGD(lr=0.01)
    )


def feeds(model: str, seed: int) -> dict[str, np.ndarray]:
    inputs, labels = batch(model, seed)
    return {**inputs, "labels": labels}


@every_case
def test_each_gradient_is_as_near_to_float64_as_torch_float32_is(model: str, case: str) -> None:
    exact, single = (torch_gradients(model, CASES[model][case], kind) for kind in (torch.float64, torch.float32))
    session = gradcut.TrainingSession(compiled(model, CASES[model][case]), threads=1)
    actual = session.gradients(feeds(model, 0))
    assert actual.keys() == exact.keys()  # a parameter behind a mark has none, on both sides
    norm = np.linalg.norm
    largest = max(norm(g) for g in exact.values())
    for name, g in exact.items():
        own_error = norm(single[name] - g) / max(norm(g), 1e-30)
        bound = max(1e-4, min(1e-2, 10 * own_error)) * max(norm(g), 1e-4 * largest)
        assert norm(actual[name] - g) <= bound, f"{name}: {norm(actual[name] - g):.3g} > {bound:.3g}"


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["plain", "momentum"])
@every_case
def test_five_sgd_steps_follow_torch(model: str, case: str, momentum: float) -> None:
    module = torch_model(model, CASES[model][case])
    given = copy.deepcopy(module.state_dict())
    moving = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.01, momentum=momentum)
    session = gradcut.TrainingSession(
        compiled(model, CASES[model][case], gradcut.SGD(lr=0.01, momentum=momentum)), threads=1
    )
    for seed in range(5):
        optimizer.zero_grad()
        loss = torch_loss(module, model, seed)
        loss.backward()
        optimizer.step()
        assert session.step(feeds(model, seed)).loss == pytest.approx(loss.item(), abs=1e-4)
    check_statistics(session, module)
    check_frozen(session, given)


def check_statistics(session: gradcut.TrainingSession, module: nn.Module) -> None:
    """Running means and variances are torch's; those of a batch norm in inference mode are no state at all."""
    training = {
        f"{name}.{kind}"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
        for kind in ("running_mean", "running_var")
    }
    assert set(session.manifest["state"]) == training
    saved = statistics(session)
    for name in training:
        np.testing.assert_allclose(saved[name], module.state_dict()[name].numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


def statistics(session: gradcut.TrainingSession) -> dict[str, np.ndarray]:
    return {name: session._slots[name].numpy() for name in session.manifest["state"]}


def check_frozen(session: gradcut.TrainingSession, given: dict[str, torch.Tensor]) -> None:
    trained = set(session.artifacts.trainable)
    for name, array in session.parameters().items():
        assert (name in trained) or array.tobytes() == given[name].numpy().tobytes(), name
