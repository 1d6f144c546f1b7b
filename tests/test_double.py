"""Activations of float64, of which ONNX Runtime has no kernel, run at every opset and are torch's in every digit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor

import gradcut
from tests.written import session

X = np.float64([-800.0, -3.0, -1.5, -1e-9, 0.0, 1e-9, 0.3, 1.0, 2.5, 3.0, 40.0, 800.0])
SLOPE = np.linspace(-0.5, 0.5, X.size)
CASES: dict[str, tuple[dict[str, float], Callable[..., Tensor]]] = {
    "Elu": ({"alpha": 0.5}, lambda x: F.elu(x, 0.5)),
    "Selu": ({}, F.selu),
    "LeakyRelu": ({"alpha": 0.25}, lambda x: F.leaky_relu(x, 0.25)),
    "PRelu": ({}, lambda x, slope: torch.where(x > 0, x, slope * x)),
    "ThresholdedRelu": ({"alpha": 1.0}, lambda x: F.threshold(x, 1.0, 0.0)),
    "HardSigmoid": ({"alpha": 0.25, "beta": 0.5}, lambda x: torch.clamp(x * 0.25 + 0.5, 0.0, 1.0)),
    "HardSwish": ({}, F.hardswish),
    "Softplus": ({}, lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": ({}, F.softsign),
    "Mish": ({}, F.mish),
}


@pytest.mark.parametrize("opset", [18, 21, 22])
@pytest.mark.parametrize("op", CASES)
def test_outputs_and_gradients_are_those_of_torch(op: str, opset: int) -> None:
    attributes, in_torch = CASES[op]
    feeds = {"x": X, "slope": SLOPE} if op == "PRelu" else {"x": X}
    declare = lambda name: helper.make_tensor_value_info(name, TensorProto.DOUBLE, [X.size])
    node = helper.make_node(op, list(feeds), ["y"], **attributes)
    graph = helper.make_graph([node], "g", [declare(name) for name in feeds], [declare("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    tensors = [torch.tensor(array, requires_grad=True) for array in feeds.values()]
    y = in_torch(*tensors)
    y.sum().backward()
    made = session(gradcut.vjp(model, list(feeds), ["y"])).run(None, {**feeds, "y_grad": np.ones_like(X)})
    expected = [y.detach(), *(tensor.grad for tensor in tensors)]
    for mine, theirs in zip(made, expected, strict=True):
        assert theirs is not None
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-6 if op == "Selu" else 1e-12, atol=1e-15)
