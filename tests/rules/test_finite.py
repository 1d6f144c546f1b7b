"""Masks that are factors where the cotangent is finite, and selections where it may not be."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import gradcut
from tests.exported import text

HEAD = "g (float[n, 4] x, float[4, 4] w) => (float loss) { h = MatMul (x, w) m = Relu (h) "
CLIPPED = (
    "g (float[n, 4] x, float[4, 4] w) => (float loss) { low = Constant <value = float {-0.5}> () "
    "high = Constant <value = float {1.0}> () h = MatMul (x, w) m = Clip (h, low, high) "
)
TAME = "s = Mul (m, m) loss = ReduceMean <keepdims = 0> (s) }"
WILD = "s = Sqrt (m) loss = ReduceMean <keepdims = 0> (s) }"


def trained(source: str) -> onnx.ModelProto:
    """The graph with `w` as a parameter."""
    model = text(source)
    weights = np.random.default_rng(3).standard_normal((4, 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    del model.graph.input[1]
    return model


def gradient(model: onnx.ModelProto, x: np.ndarray) -> tuple[set[str], np.ndarray]:
    """Operators of the emitted graph, and the gradient by `w`."""
    artifacts = gradcut.compile(model, train=["w"])
    ops = {node.op_type for node in artifacts.training_model.graph}
    return ops, gradcut.TrainingSession(artifacts).gradients({"x": x})["w"]


def by_torch(model: onnx.ModelProto, x: np.ndarray, clip: bool, root: bool) -> np.ndarray:
    w = torch.tensor(onnx.numpy_helper.to_array(model.graph.initializer[0]).copy(), requires_grad=True)
    h = torch.from_numpy(x) @ w
    m = torch.clamp(h, -0.5, 1.0) if clip else torch.relu(h)
    (m.sqrt() if root else m * m).mean().backward()
    assert w.grad is not None
    return w.grad.numpy()


@pytest.mark.parametrize("clip", [False, True], ids=["relu", "clip"])
def test_a_finite_cotangent_is_multiplied(clip: bool) -> None:
    model = trained((CLIPPED if clip else HEAD) + TAME)
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    ops, found = gradient(model, x)
    assert "Where" not in ops and "Cast" in ops
    np.testing.assert_allclose(found, by_torch(model, x, clip, root=False), rtol=1e-5, atol=1e-6)


def test_nothing_arrives_where_a_slope_behind_the_mask_is_infinite() -> None:
    """sqrt(relu(h)): the slope of the root at 0 is infinite, and what the mask lets through of it is nothing."""
    model = trained(HEAD + WILD)
    x = np.abs(np.random.default_rng(0).standard_normal((6, 4))).astype(np.float32)
    ops, found = gradient(model, x)
    assert "Where" in ops
    expected = by_torch(model, x, clip=False, root=True)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


SAFE_DIVISION = (
    "g (float[3] x, float[3] c) => (float loss) <float[3] w = {1.0, 1.0, 1.0}> { "
    "zero = Constant <value_float = 0.0> () z = Mul (x, w) m = Relu (z) "
    "q = Div (m, c) there = Greater (c, zero) s = Where (there, q, zero) loss = ReduceSum <keepdims = 0> (s) }"
)


def test_a_division_by_zero_that_nobody_reads_stays_behind_the_mask() -> None:
    """where(c > 0, relu(z) / c, 0): 0 / 0 is thrown away, and so is its slope where relu is flat."""
    x, c = np.array([-1, -1, 1], np.float32), np.array([0, 2, 2], np.float32)
    found = gradcut.TrainingSession(gradcut.compile(text(SAFE_DIVISION), train=["w"])).gradients({"x": x, "c": c})
    w, below = torch.ones(3, requires_grad=True), torch.from_numpy(c)
    torch.where(below > 0, torch.relu(torch.from_numpy(x) * w) / below, torch.zeros(())).sum().backward()
    assert w.grad is not None
    np.testing.assert_array_equal(found["w"], w.grad.numpy())


@pytest.mark.parametrize(("divisor", "selects"), [("2.0", False), ("0.0", True)])
def test_a_known_divisor_decides(divisor: str, selects: bool) -> None:
    divided = f"c = Constant <value_float = {divisor}> () q = Div (m, c) loss = ReduceMean <keepdims = 0> (q) }}"
    ops = {node.op_type for node in gradcut.compile(trained(HEAD + divided), train=["w"]).training_model.graph}
    assert ("Where" in ops) == selects


def test_cotangents_from_outside_are_selected() -> None:
    graph = gradcut.vjp(text("g (float[2] x) => (float[2] y) { y = Relu (x) }"), wrt=["x"], of=["y"])
    run = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": np.array([-1, 1], np.float32), "y_grad": np.array([np.inf, 2], np.float32)}
    np.testing.assert_array_equal(run.run(None, feeds)[1], [0, 2])


def test_clip_at_its_bounds_and_beyond() -> None:
    source = (
        "g (float[6] x) => (float[6] y) { low = Constant <value = float {0.0}> () "
        "high = Constant <value = float {6.0}> () y = Clip (x, low, high) }"
    )
    graph = gradcut.vjp(text(source), wrt=["x"], of=["y"])
    run = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([-1, 0, 3, 6, 7, np.nan], np.float32)
    (_, found) = run.run(None, {"x": x, "y_grad": np.ones(6, np.float32)})
    tensor = torch.tensor(x, requires_grad=True)
    torch.clamp(tensor, 0, 6).sum().backward()
    assert tensor.grad is not None
    np.testing.assert_array_equal(found, tensor.grad.numpy())
