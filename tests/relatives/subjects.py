"""A small network in ONNX text and in torch, with a place between its layers where a gradient can be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

import gradcut
from tests.written import parse, session

NET = """g ({dtype}[n, 3] x, {dtype}[3, 4] w, {dtype}[4, 2] v) => ({dtype}[n, 2] y) {{
    h = MatMul (x, w)  t = Tanh (h)  [second] p = MatMul (t, v)  y = Sin (p) }}"""
#: numpy's name of each dtype that ONNX text has.
DTYPES = {"float": np.float32, "double": np.float64, "float16": np.float16}
TOLERANCE = {np.dtype("float32"): 2e-6, np.dtype("float64"): 1e-12, np.dtype("float16"): 4e-3}
Hook = Callable[[torch.Tensor], torch.Tensor]


def net(dtype: str = "float") -> onnx.ModelProto:
    return parse(NET.format(dtype=dtype))


def feeds(dtype: str = "float", seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (5, 3), "w": (3, 4), "v": (4, 2), "y_grad": (5, 2)}
    return {name: rng.standard_normal(shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}


def by_torch(given: Mapping[str, np.ndarray], hook: Hook) -> list[np.ndarray]:
    """The gradients of `NET` by x, w and v where `hook` changes that of its value t, in float64."""
    x, w, v = (torch.tensor(given[name].astype(np.float64), requires_grad=True) for name in "xwv")
    t = torch.tanh(x @ w)
    t.register_hook(hook)
    torch.sin(t @ v).backward(torch.tensor(given["y_grad"].astype(np.float64)))
    return [value.grad.numpy() for value in (x, w, v)]


def gradients(
    model: ir.Model, given: Mapping[str, np.ndarray], wrt: tuple[str, ...] = ("x", "w", "v")
) -> list[np.ndarray]:
    proto = gradcut.vjp(model, wrt=wrt, of=["y"])
    return session(proto).run(None, dict(given))[1:]


def check(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(actual, expected, strict=True):
        scale = max(1.0, float(np.abs(other).max(initial=0)))
        np.testing.assert_allclose(one.astype(np.float64), other, rtol=0, atol=TOLERANCE[one.dtype] * 4 * scale)


def operators(model: onnx.ModelProto | ir.Model) -> list[str]:
    """Of the main graph, in order, Constants aside; with their domain where they have one."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    nodes = (node for node in proto.graph.node if node.op_type != "Constant")
    return [f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes]


def optimised(model: ir.Model | onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 4
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")
