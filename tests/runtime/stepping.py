"""A small model with one of everything that moves, and its session, for the tests of sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

import gradcut
from tests.exported import text

# One model with everything: a batch norm, a dropout, a weight that two layers read, and a frozen one.
MODEL = text("""
g (float[n, 4] x) => (float[n, 3] logits)
<float[4] scale = {1.0, 1.0, 1.0, 1.0}, float[4] bias = {0.0, 0.0, 0.0, 0.0}, float[4] mean = {0.0, 0.0, 0.0, 0.0},
 float[4] var = {1.0, 1.0, 1.0, 1.0}, float ratio = {0.25}, bool on = {1},
 float[4, 4] tied = {0.5, -0.3, 0.2, 0.1, 0.4, 0.6, -0.2, 0.3, -0.5, 0.1, 0.7, 0.2, 0.3, -0.4, 0.1, 0.6},
 float[4, 3] frozen = {0.3, -0.2, 0.5, 0.1, 0.4, -0.3, -0.6, 0.2, 0.1, 0.5, -0.1, 0.3}, float[3] b = {0.1, 0.2, 0.3}>
{
    first = MatMul (x, tied)
    normal, rm, rv = BatchNormalization <training_mode = 1> (first, scale, bias, mean, var)
    active = Tanh (normal)
    dropped = Dropout (active, ratio, on)
    second = MatMul (dropped, tied)
    product = MatMul (second, frozen)
    logits = Add (product, b)
}""")

FED = text(
    """
g (float[1, 8] x) => (float[8] p, float[4, 8] q, float[1, 8] r)
<float[8] a = {1.0, -2.0, 0.5, 3.0, -0.1, 0.0, 1e-3, 10.0}, float[4, 8] c = {CS}, float[1, 8] e = {ES}>
{
    flat = Squeeze (x)
    p = Add (a, flat)
    q = Add (c, x)
    r = Add (e, x)
}""".replace("CS", ", ".join(f"{i / 16 - 1:.4f}" for i in range(32))).replace("ES", ", ".join("12345678"))
)


def feeds(rows: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {"x": generator.normal(size=(rows, 4)).astype(np.float32), "labels": generator.integers(0, 3, rows)}


def compiled(optimizer: Any = None, **options: Any) -> gradcut.TrainingArtifacts:
    options = {"freeze": ["frozen"], **options}
    return gradcut.compile(MODEL, "cross_entropy", optimizer=optimizer or gradcut.AdamW(lr=0.01), **options)


def session(optimizer: Any = None, backend: str = "auto", **options: Any) -> gradcut.TrainingSession:
    return gradcut.TrainingSession(compiled(optimizer, **options), threads=1, optimizer_backend=backend)


def state(running: gradcut.TrainingSession) -> dict[str, bytes]:
    """Every tensor that may move, bit for bit, and the step."""
    held = {name: slot.numpy().tobytes() for name, slot in running._slots.items()}
    return {**held, "step": str(running.steps).encode()}


def typed(dtype: str) -> onnx.ModelProto:
    w, b = np.full((4, 3), 0.25, dtype), np.array([0.0, 0.5, 1.0], dtype)
    kind = onnx.helper.np_dtype_to_tensor_dtype(w.dtype)
    value = lambda name, *dims: onnx.helper.make_tensor_value_info(name, kind, dims)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w"], ["product"]),
            onnx.helper.make_node("Add", ["product", "b"], ["y"]),
        ],
        "typed",
        [value("x", "n", 4)],
        [value("y", "n", 3)],
        [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(b, "b")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
