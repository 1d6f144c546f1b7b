"""`light/*`: nine architectures of opset 9, their weights left out, at 224 x 224. Here each gets random weights.

Gradients are held against torch in float64 (`tests/in_torch`): by the last layer's parameters alone, and by all; those
of the emitted graph run by torch too, and those that ONNX Runtime gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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
    """Output and gradients by torch in float64, for one random input and cotangent.

    Args:
        roundings: at how many roundings from that input to see how far off torch itself is in float32.
    """

    def __init__(self, model: ModelProto, roundings: Iterable[int] = (0,)) -> None:
        torch.set_num_threads(2)
        rng = np.random.default_rng(1)
        self.model, self.names = model, parameters(model)
        weights = {tensor.name for tensor in model.graph.initializer}
        (x,) = [v for v in model.graph.input if v.name not in weights]
        shape = [dim.dim_value for dim in x.type.tensor_type.shape.dim]
        self.output, self.feeds = _scores(model), {x.name: rng.standard_normal(shape).astype(np.float32)}
        self.cotangent = np.zeros(0, np.float32)
        y = self._values(torch.float64, self.feeds)[0][self.output]
        self.cotangent = rng.standard_normal(tuple(y.shape)).astype(np.float32)
        self.values = self._gradients(torch.float64, self.feeds)
        self.noise = max(self._noise(by) for by in roundings)

    def _noise(self, by: int) -> float:
        factor = 1 + by * float(np.finfo(np.float32).eps)
        moved = {name: (array * factor).astype(np.float32) for name, array in self.feeds.items()}
        return max(_apart(self._gradients(torch.float32, moved), self.values).values())

    def _values(
        self, dtype: torch.dtype, feeds: dict[str, np.ndarray]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        weights = in_torch.weights(self.model, dtype)
        for name in weights:
            weights[name].requires_grad_(name in self.names)
        return in_torch.values(self.model, feeds, weights, dtype=dtype), weights

    def _gradients(self, dtype: torch.dtype, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values, weights = self._values(dtype, feeds)
        y = values[self.output]
        (y * in_torch.tensor(self.cotangent, dtype)).sum().backward()
        gradients = {name: weights[name].grad.numpy().astype(np.float64) for name in self.names}
        return {self.output: y.detach().numpy().astype(np.float64), **gradients}


def _scores(model: ModelProto) -> str:
    """What the last Softmax is given: with random weights it is all or nothing, and its gradient is rounding."""
    last = model.graph.node[-1]
    return last.input[0] if last.op_type == "Softmax" else last.output[0]


def errors(expected: Expected, wrt: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """How far each result is from torch's, relative to its norm; the output's under its own name.

    Returns:
        Of the emitted graph run by torch in float64, where a mistake has nothing to hide behind; and of ONNX Runtime in
        float32, where an element at a kink or of two almost equal ones in a window may go the other way.
    """
    derived = gradcut.vjp(expected.model, wrt=wrt, of=[expected.output])
    feeds = {**expected.feeds, derived.graph.input[-1].name: expected.cotangent}
    with torch.no_grad():
        exact = in_torch.values(derived, feeds, in_torch.weights(derived))
    names = (expected.output, *wrt)
    mine = {name: exact[value.name].numpy() for name, value in zip(names, derived.graph.output, strict=True)}
    results = dict(zip(names, session(derived).run(None, feeds), strict=True))
    return _apart(mine, expected.values), _apart(results, expected.values)


def _apart(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    assert all(array.shape == theirs[name].shape for name, array in mine.items())
    norms = {name: max(float(np.linalg.norm(theirs[name])), 1e-300) for name in mine}
    return {name: float(np.linalg.norm(array - theirs[name])) / norms[name] for name, array in mine.items()}
