"""Whole models against torch: gradients against float64, losses and running statistics over five steps.

A case trains a part of a model; batch norms whose scale or bias is asked to train are in training mode on both sides.
"""

from __future__ import annotations

import copy

import pytest
import torch

import gradcut
from tests.against_torch import (
    Case,
    check_frozen,
    check_gradients,
    check_statistics,
    compiled,
    feeds,
    torch_gradients,
    torch_loss,
    torch_model,
)

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


@every_case
def test_each_gradient_is_as_near_to_float64_as_torch_float32_is(model: str, case: str) -> None:
    exact, single = (torch_gradients(model, CASES[model][case], kind) for kind in (torch.float64, torch.float32))
    session = gradcut.TrainingSession(compiled(model, CASES[model][case]), threads=1)
    actual = session.gradients(feeds(model, 0))
    check_gradients(actual, exact, single)


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
