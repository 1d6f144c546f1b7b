"""`light/*`: nine architectures of opset 9, their weights left out, at 224 x 224. Here each gets random weights.

Gradients are held against torch in float64 (`tests/in_torch`): by the last layer's parameters alone, and by all.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper

import gradcut
from tests import in_torch
from tests.written import session

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
NAMES = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip
_WEIGHTS = {"Conv": (1, 2), "Gemm": (1, 2), "BatchNormalization": (1, 2)}
_POSITIVE = {"BatchNormalization": (4,)}
_SHIFTS = {"Conv": (2,), "Gemm": (2,), "BatchNormalization": (2, 3)}


def light(name: str) -> ModelProto:
    """The file with random initializers in place of the Constants of one number that its weights are."""
    model = onnx.load(DATA / "light" / f"light_{name}.onnx")
    graph, rng = model.graph, np.random.default_rng(0)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {n.output[0]: known[n.input[0]] for n in graph.node if n.op_type == "ConstantOfShape"}
    shapes = {**{n: array.shape for n, array in known.items()}, **{n: tuple(shape) for n, shape in made.items()}}
    drawn = {name: _drawn(rng, shapes[name], role) for name, role in _roles(model).items() if name in shapes}
    nodes = [n for n in graph.node if n.output[0] not in drawn]
    kept = [tensor for tensor in graph.initializer if tensor.name not in drawn]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *(numpy_helper.from_array(array, name) for name, array in drawn.items())])
    return model


def _roles(model: ModelProto) -> dict[str, str]:
    """What each operand of a layer is: positive, a shift, or a factor."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        for role, table in (("factor", _WEIGHTS), ("shift", _SHIFTS), ("positive", _POSITIVE)):
            found |= {node.input[i]: role for i in table.get(node.op_type, ()) if i < len(node.input)}
    return found


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], role: str) -> np.ndarray:
    if role == "positive":  # large, so that sums of many branches do not grow until the softmax is all or nothing
        return rng.uniform(3.0, 6.0, shape).astype(np.float32)
    if role == "shift":
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 1:
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    return (rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))).astype(np.float32)


def parameters(model: ModelProto) -> list[str]:
    """Every weight of a layer, in the order of the file."""
    have = {tensor.name for tensor in model.graph.initializer}
    names = [n.input[i] for n in model.graph.node for i in _WEIGHTS.get(n.op_type, ()) if i < len(n.input)]
    return [name for name in dict.fromkeys(names) if name in have]


class Expected:
    """Output and gradients by torch, for one random input and cotangent."""

    def __init__(self, model: ModelProto) -> None:
        torch.set_num_threads(2)
        rng, weights = np.random.default_rng(1), in_torch.weights(model)
        inner = {name: weights[name].requires_grad_(False) for name in weights}
        self.names = parameters(model)
        for name in self.names:
            inner[name].requires_grad_(True)
        (x,) = [v for v in model.graph.input if v.name not in inner]
        shape = [dim.dim_value for dim in x.type.tensor_type.shape.dim]
        self.feeds = {x.name: rng.standard_normal(shape).astype(np.float32)}
        self.output = model.graph.output[0].name
        y = in_torch.values(model, self.feeds, inner)[self.output]
        self.cotangent = rng.standard_normal(tuple(y.shape)).astype(np.float32)
        self.y = y.detach().numpy()
        (y * in_torch.tensor(self.cotangent)).sum().backward()
        self.gradients = {name: inner[name].grad.numpy() for name in self.names}


def errors(model: ModelProto, expected: Expected, wrt: list[str]) -> dict[str, float]:
    """How far each gradient is from torch's, relative to its norm; the output's under its own name."""
    derived = gradcut.vjp(model, wrt=wrt, of=[expected.output])
    feeds = {**expected.feeds, derived.graph.input[-1].name: expected.cotangent}
    results = session(derived).run(None, feeds)
    theirs = {expected.output: expected.y, **{name: expected.gradients[name] for name in wrt}}
    return {name: _apart(mine, theirs[name]) for name, mine in zip((expected.output, *wrt), results, strict=True)}


def _apart(mine: np.ndarray, theirs: np.ndarray) -> float:
    assert mine.shape == theirs.shape
    return float(np.linalg.norm(mine - theirs) / max(np.linalg.norm(theirs), 1e-12))
