"""What an update of declared state is told of updates done: those of all steps and phases that move it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

import gradcut

K, DECAY = 12, 0.5
W = np.random.default_rng(3).standard_normal((3, 2)).astype(np.float32)
X = np.random.default_rng(4).standard_normal((4, 3)).astype(np.float32)


def model() -> onnx.ModelProto:
    graph = """<ir_version: 10, opset_import: ["" : 21]> agraph (float[n,3] x) => (float near, float far) {
        z = MatMul(x, w)
        k = MatMul(x, t)
        d = Sub(z, k)
        square = Mul(d, d)
        near = ReduceMean<keepdims=0>(square)
        far = ReduceMean<keepdims=0>(z)
    }"""
    proto = onnx.parser.parse_model(graph)
    for name, array in (("w", W), ("t", W + 1)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def by_steps() -> gradcut.TrainingArtifacts:
    steps = {"near": gradcut.Step(loss="near", outputs=[]), "far": gradcut.Step(loss="far", outputs=[])}
    average = gradcut.EMA({"t": "w"}, decay=DECAY, until=K)
    return gradcut.compile(model(), steps=steps, optimizer="sgd:lr=0.1", state=average)


@pytest.mark.parametrize("taken_up", [False, True])
def test_the_schedule_of_an_average_goes_on_from_step_to_step(taken_up: bool, tmp_path: Path) -> None:
    session = gradcut.TrainingSession(by_steps())
    expected = W.astype(np.float64) + 1
    for k, name in enumerate(["near", "near", "far", "near", "far", "far", "far"]):
        if taken_up and k == 4:
            session.save_checkpoint(tmp_path / "c")
            session = gradcut.TrainingSession(by_steps())
            session.load_checkpoint(tmp_path / "c")
        session.step(name, {"x": X})
        decay = 1 - (1 - DECAY) * (math.cos(math.pi * k / K) + 1) / 2
        expected = decay * expected + (1 - decay) * session.parameters()["w"]
        np.testing.assert_allclose(session.state()["t"], expected, rtol=1e-5, atol=1e-6, err_msg=f"update {k}")


def test_and_from_phase_to_phase() -> None:
    phases = ["epochs=1,train=w", "epochs=1,train=w,lr=0.01"]
    average = gradcut.EMA({"t": "w"}, decay=DECAY, until=K)
    asked = gradcut.compile(model(), loss="near", phases=phases, optimizer="sgd:lr=0.1", state=average)
    session = gradcut.TrainingSession(asked)
    expected = W.astype(np.float64) + 1
    for k in range(6):
        session.phase = "phase1" if k < 3 else "phase2"
        session.step({"x": X})
        decay = 1 - (1 - DECAY) * (math.cos(math.pi * k / K) + 1) / 2
        expected = decay * expected + (1 - decay) * session.parameters()["w"]
        np.testing.assert_allclose(session.state()["t"], expected, rtol=1e-5, atol=1e-6, err_msg=f"update {k}")
