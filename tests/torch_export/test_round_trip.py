"""A torch module, exported, compiled: what it computes, its gradients and its training are torch's own."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch

import gradcut
from tests.torch_export.exported import (
    ROWS,
    check_gradients,
    compiled,
    exported,
    feeds,
    loss_of,
    outputs,
    run,
    torch_gradients,
)
from tests.torch_export.subjects import SUBJECTS

#: Norms, convolutions, attention, recurrence, marks; torch writes some in another way at 23 than at 18.
AT_OTHER_OPSETS = [
    ("convnet train", 18),
    ("recurrent", 18),
    ("attention", 18),
    ("simsiam", 19),
    ("vq-vae", 20),
    ("convnet train", 22),
    ("simsiam", 23),
    ("attention", 23),
    ("recurrent", 23),
]
STEPS = ("convnet train", "simsiam", "byol", "actor-critic", "recurrent", "tied", "frozen backbone")


@pytest.mark.parametrize("name", SUBJECTS)
def test_gradients_are_those_of_torch(name: str) -> None:
    module = SUBJECTS[name].module()
    expected = torch_gradients(module, loss_of(name, module, seed=1))
    check_gradients(gradcut.TrainingSession(compiled(name), threads=1).gradients(feeds(name, seed=1)), expected)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_file_runs_as_it_is(name: str) -> None:
    """Another batch than the example's, in stock ONNX Runtime."""
    inputs = SUBJECTS[name].inputs(ROWS, seed=2)
    expected = outputs(SUBJECTS[name].module()(**inputs))
    found = run(exported(name), inputs)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["convnet train", "simsiam", "byol", "actor-critic", "recurrent", "tied", "frozen backbone"]
)
def test_five_steps_follow_torch(name: str) -> None:
    """Parameters and running statistics after five steps of SGD with momentum."""
    module = SUBJECTS[name].module()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    session = gradcut.TrainingSession(compiled(name), threads=1)
    for seed in range(5):
        loss = loss_of(name, module, seed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert session.step(feeds(name, seed)).loss == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    found = session.parameters()
    for parameter_name, parameter in module.named_parameters():
        np.testing.assert_allclose(
            found[parameter_name], parameter.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=parameter_name
        )
    check_statistics(session, module)


def check_statistics(session: gradcut.TrainingSession, module: torch.nn.Module) -> None:
    norms = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    training = {f"{n}.running_{kind}" for n, m in norms.items() if m.training for kind in ("mean", "var")}
    assert set(session.manifest["state"]) == training
    for name in training:
        found = session._slots[name].numpy()
        np.testing.assert_allclose(found, module.get_buffer(name).numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("name", "opset"), AT_OTHER_OPSETS)
def test_at_other_opsets(name: str, opset: int) -> None:
    path = exported(name, opset)
    assert {one.domain: one.version for one in onnx.load(path).opset_import}[""] == opset
    module = SUBJECTS[name].module()
    inputs = SUBJECTS[name].inputs(ROWS, seed=1)
    for found, one in zip(run(path, inputs), outputs(copy.deepcopy(module)(**inputs)), strict=True):
        np.testing.assert_allclose(found, one.detach().numpy(), rtol=1e-4, atol=1e-5)
    expected = torch_gradients(module, loss_of(name, module, seed=1))
    session = gradcut.TrainingSession(compiled(name, opset), threads=1)
    check_gradients(session.gradients(feeds(name, seed=1)), expected)
