"""The subjects as files, each written once per process, and torch's side of what is compared."""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradcut
from gradcut.errors import GradcutWarning
from tests.torch_export.subjects import SUBJECTS

torch.set_num_threads(1)
Arrays = dict[str, np.ndarray]
#: Rows of the example that is traced, and of the batches that are fed.
EXAMPLE, ROWS = 3, 5


@functools.cache
def folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="gradcut-torch-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def exported(name: str, opset: int = 21) -> Path:
    """The file of the subject `name`; do not write to it."""
    return _exported(name, opset)


@functools.cache
def _exported(name: str, opset: int) -> Path:
    subject = SUBJECTS[name]
    example = tuple(subject.inputs(EXAMPLE, 0).values())
    return gradcut.torch.export(
        subject.module(), example, folder() / f"{name.replace(' ', '_')}_{opset}.onnx", opset=opset
    )


def compiled(name: str, opset: int = 21) -> gradcut.TrainingArtifacts:
    """With SGD's momentum; what is trained starts from the file each time."""
    return _compiled(name, opset)


@functools.cache
def _compiled(name: str, opset: int) -> gradcut.TrainingArtifacts:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradcutWarning)
        return gradcut.compile(exported(name, opset), objective(name), optimizer=gradcut.SGD(lr=0.1, momentum=0.9))


def objective(name: str) -> str | None:
    return SUBJECTS[name].loss


def outputs(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result.values() if isinstance(result, dict) else result)


def loss_of(name: str, module: nn.Module, seed: int) -> Tensor:
    """The loss of a batch, in torch."""
    subject = SUBJECTS[name]
    first = outputs(module(**subject.inputs(ROWS, seed)))[0]
    return first if objective(name) is None else F.mse_loss(first, subject.targets(ROWS, seed))


def feeds(name: str, seed: int) -> Arrays:
    subject = SUBJECTS[name]
    fed = {key: value.numpy() for key, value in subject.inputs(ROWS, seed).items()}
    return fed if objective(name) is None else {**fed, "labels": subject.targets(ROWS, seed).numpy()}


def torch_gradients(module: nn.Module, loss: Tensor) -> Arrays:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.numpy().copy() for name, p in module.named_parameters() if p.grad is not None}


def check_gradients(found: Mapping[str, np.ndarray], expected: Arrays) -> None:
    """The same names, the same numbers; some are zeros but for rounding, as that of a bias before a norm."""
    assert found.keys() == expected.keys()
    largest = max(float(np.abs(one).max()) for one in expected.values())
    for name, one in expected.items():
        np.testing.assert_allclose(found[name], one, rtol=1e-4, atol=2e-6 * largest, err_msg=name)


def run(path: Path, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Stock ONNX Runtime, as it comes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def export(module: nn.Module, args: Any, path: Path, *rest: Any, **options: Any) -> Path:
    """As `gradcut.torch.export`, where a warning would be a mistake."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradcutWarning)
        return gradcut.torch.export(module, args, path, *rest, **options)


def gradients(path: Path, inputs: Mapping[str, Tensor], **options: Any) -> Arrays:
    """By gradcut, of the model's own loss."""
    session = gradcut.TrainingSession(gradcut.compile(path, **options), threads=1)
    return session.gradients({name: tensor.numpy() for name, tensor in inputs.items()})


def agrees(module: nn.Module, path: Path, inputs: Mapping[str, Tensor], **options: Any) -> Arrays:
    """Outputs and gradients of a module that returns its loss first; those gradients."""
    mine = copy.deepcopy(module)
    results = outputs(mine(**inputs))
    for found, one in zip(run(path, inputs), results, strict=True):
        np.testing.assert_allclose(found, one.detach().numpy(), rtol=1e-4, atol=1e-5)
    expected = torch_gradients(mine, results[0])
    check_gradients(gradients(path, inputs, **options), expected)
    return expected
