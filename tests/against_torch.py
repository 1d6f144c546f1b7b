"""The zoo's models with a part of them training: torch's side, the compiled side, and what both must agree in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradcut
from models import zoo
from tests.exported import exported

torch.set_num_threads(1)
#: Eight rows otherwise. ResNet's last stage is 1x1: batch norm over few rows is chaotic in float32, torch against
#: itself too.
BATCH = {"resnet18_small": 32, "gpt2_tiny": 3, "t5_tiny": 3, "unet_tiny": 3}
Gradients = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """What trains: `train` and `freeze` as gradcut's patterns, `stop` as module scopes whose output is detached."""

    train: Sequence[str] | None = None
    freeze: Sequence[str] = ()
    stop: Sequence[str] = ()


def selected(case: Case, names: Sequence[str]) -> set[str]:
    """The parameters that a case asks to train; written anew, for names of torch's."""
    hit = lambda pattern, name: (
        name.endswith(pattern[1:])
        if pattern[0] == "*"
        else f"{name}.".startswith(pattern.rstrip("*").rstrip(".") + ".")
    )
    train = [name for name in names if case.train is None or any(hit(p, name) for p in case.train)]
    return set(train) - {name for name in names if any(hit(p, name) for p in case.freeze)}


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Each parameter once, by the name that the exporter gives it: of tied ones the last."""
    names = {parameter: name for name, parameter in module.named_parameters(remove_duplicate=False)}
    return {name: parameter for parameter, name in names.items()}


def torch_model(model: str, case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The zoo's module with the case's freezes, modes and detached outputs."""
    module = zoo.torch_module(model).to(dtype)
    named = parameters(module)
    chosen = selected(case, list(named))
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(layer.weight.requires_grad or layer.bias.requires_grad)
    for name in case.stop:
        module.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output.detach())
    return module


def batch(model: str, seed: int, **sizes: int) -> tuple[zoo.Inputs, np.ndarray]:
    rows = BATCH.get(model, 8)
    return zoo.example_inputs(model, rows, seed, **sizes), zoo.example_labels(model, rows, seed, **sizes)


def feeds(model: str, seed: int, **sizes: int) -> dict[str, np.ndarray]:
    inputs, labels = batch(model, seed, **sizes)
    return {**inputs, "labels": labels}


def torch_loss(module: nn.Module, model: str, seed: int, **sizes: int) -> torch.Tensor:
    inputs, labels = batch(model, seed, **sizes)
    dtype = next(module.parameters()).dtype
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    logits = module(**tensors).movedim(zoo.ZOO[model].axis, 1)
    return cross_entropy(logits, torch.from_numpy(labels))


def torch_gradients(model: str, case: Case, dtype: torch.dtype, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    module = torch_model(model, case, dtype)
    torch_loss(module, model, seed, **sizes).backward()
    return {name: p.grad.numpy() for name, p in parameters(module).items() if p.grad is not None}


def compiled(model: str, case: Case, optimizer: gradcut.SGD | None = None) -> gradcut.TrainingArtifacts:
    return gradcut.compile(
        exported(model), zoo.ZOO[model].loss, case.train, case.freeze, case.stop, optimizer or gradcut.SGD(lr=0.01)
    )


def check_gradients(actual: Gradients, exact: Gradients, single: Gradients) -> None:
    """Each is as near to float64 as torch's float32 is, within a factor of ten; none is missing.

    Args:
        exact, single: torch's in float64 and in float32, whose own error bounds ours from 1e-4 up to 1e-2, and twice
            that error where it is larger.
    """
    assert actual.keys() == exact.keys()  # a parameter behind a mark has none, on both sides
    norm = np.linalg.norm
    largest = max(norm(g) for g in exact.values())
    errors = {}
    for name, g in exact.items():
        own_error = norm(single[name] - g) / max(norm(g), 1e-30)
        scale = max(norm(g), 1e-4 * largest)
        errors[name] = (norm(actual[name] - g) / scale, max(1e-4, min(1e-2, 10 * own_error), 2 * own_error))
    worst = max(errors, key=lambda name: errors[name][0] / errors[name][1])
    error, bound = errors[worst]
    assert error <= bound, f"{worst}: relative error {error:.3g} > {bound:.3g}"


def check_statistics(session: gradcut.TrainingSession, module: nn.Module) -> None:
    """Running means and variances are torch's; those of a batch norm in inference mode are no state at all."""
    training = {
        f"{name}.{kind}"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
        for kind in ("running_mean", "running_var")
    }
    assert set(session.manifest["state"]) == training
    saved = {name: session._slots[name].numpy() for name in session.manifest["state"]}
    for name in training:
        np.testing.assert_allclose(saved[name], module.state_dict()[name].numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


def check_frozen(session: gradcut.TrainingSession, given: Mapping[str, torch.Tensor]) -> None:
    trained = set(session.artifacts.trainable)
    for name, array in session.parameters().items():
        assert (name in trained) or array.tobytes() == given[name].numpy().tobytes(), name
