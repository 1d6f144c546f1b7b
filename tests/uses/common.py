"""What the examples share: a module exported as its user would, a graph run, the backward nodes of what was emitted."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from tests.written import run

Array = np.ndarray


def export(
    module: nn.Module, inputs: Mapping[str, Array], path: Path, outputs: Sequence[str] = ("y",), fixed: str = ""
) -> Path:
    """The file that a user of torch writes: every parameter by its name, the first axes dynamic but that of `fixed`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        module.eval(),
        kwargs={name: torch.from_numpy(array) for name, array in inputs.items()},
        f=path,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes={name: {} if name == fixed else {0: batch} for name in inputs},
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    return path


def seeded(build: type[nn.Module], *args: object, seed: int = 0) -> nn.Module:
    """A module whose weights are drawn from `seed`."""
    torch.manual_seed(seed)
    return build(*args)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outputs(model: onnx.ModelProto | ir.Model, feeds: Mapping[str, object]) -> dict[str, Array]:
    """What a graph gives, by name."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return dict(zip([value.name for value in proto.graph.output], run(proto, feeds), strict=True))


def backward(model: onnx.ModelProto | ir.Model) -> dict[str, set[str]]:
    """The forward nodes that have a backward in what was emitted, each with the operands that get a cotangent."""
    model = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    found: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.all_nodes():
        for label in node.metadata_props.get("gradcut.adjoint", "").split():
            forward, _, operand = label.rpartition(":")
            found[forward].add(operand)
    return dict(found)


def operators(model: onnx.ModelProto | ir.Model) -> list[str]:
    """The operators of a graph, those in its bodies included, in order."""
    model = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    return [node.op_type for node in model.graph.all_nodes()]


def leaves(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())


def torch_gradients(module: nn.Module, loss: torch.Tensor) -> dict[str, Array]:
    """torch's gradients of the parameters that the loss reaches."""
    module.zero_grad()
    loss.backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}


def close(actual: Mapping[str, Array], expected: Mapping[str, Array], rtol: float = 2e-4, atol: float = 1e-6) -> None:
    """The same names, and for each the same array to the tolerance of float32."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=rtol, atol=atol, err_msg=name)
