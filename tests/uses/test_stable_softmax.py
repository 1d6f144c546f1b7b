"""exp(x - stop(max x)) / sum: shifting by a constant changes no value and no gradient, so the max needs none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

import gradcut
from tests.uses.common import backward, operators, outputs
from tests.written import parse

STABLE = """g (float[n,5] x) => (float[n,5] y) <int64[1] last = {-1}> {
    m = ReduceMax <keepdims = 1> (x, last)
    stopped = %s (m)
    shifted = Sub (x, stopped)
    e = Exp (shifted)
    s = ReduceSum <keepdims = 1> (e, last)
    y = Div (e, s)
}"""
#: Ordinary rows, ties in the maximum, all equal, and values whose exp is no float32.
X = np.array([[1, -2, 0.5, 3, 0], [2, 2, -1, 2, 0], [0, 0, 0, 0, 0], [500, 499, 500, -700, 0]], np.float32)
V = np.linspace(-1, 1, X.size, dtype=np.float32).reshape(X.shape)


def gradient(model: onnx.ModelProto, x: np.ndarray = X) -> tuple[np.ndarray, np.ndarray]:
    found = outputs(gradcut.vjp(model, wrt=["x"], of=["y"]), {"x": x, "y_grad": V})
    return found["y"], found["x_grad"]


def test_it_equals_the_plain_softmax_with_ties_too() -> None:
    x = torch.tensor(X, requires_grad=True)
    y = torch.softmax(x, -1)
    y.backward(torch.tensor(V))
    actual, dx = gradient(parse(STABLE % "gradcut.StopGradient"))
    np.testing.assert_allclose(actual, y.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dx, x.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mark", ["gradcut.StopGradient", "Identity"])
def test_no_backward_node_for_the_max(mark: str) -> None:
    derived = gradcut.vjp(parse(STABLE % mark), wrt=["x"], of=["y"])
    marked = mark != "Identity"
    assert ("ReduceMax_m" not in backward(derived)) == marked
    assert ("Sub_shifted" not in backward(derived)) == marked  # to its A the cotangent passes as it is
    assert operators(derived).count("ReduceMax") == 1
    assert operators(derived).count("Equal") == (0 if marked else 1)


def test_the_mark_by_name_is_the_same() -> None:
    derived = gradcut.vjp(parse(STABLE % "Identity"), wrt=["x"], of=["y"], stop_at=["m"])
    found = outputs(derived, {"x": X, "y_grad": V})
    np.testing.assert_array_equal(found["x_grad"], gradient(parse(STABLE % "gradcut.StopGradient"))[1])
    assert "ReduceMax_m" not in backward(derived)


def test_the_second_derivative_is_the_plain_softmaxs() -> None:
    """d/dx of |d(v y)/dx|^2, against torch."""
    x = torch.tensor(X[:2], requires_grad=True)
    (first,) = torch.autograd.grad(torch.softmax(x, -1), x, torch.tensor(V[:2]), create_graph=True)
    (expected,) = torch.autograd.grad((first**2).sum(), x)
    once = gradcut.vjp(parse(STABLE % "gradcut.StopGradient"), wrt=["x"], of=["y"])
    twice = gradcut.vjp(once, wrt=["x"], of=["x_grad"])
    feeds = {"x": X[:2], "y_grad": V[:2], "x_grad_grad": 2 * first.detach().numpy()}
    np.testing.assert_allclose(outputs(twice, feeds)[twice.graph.output[-1].name], expected, rtol=1e-4, atol=1e-6)
