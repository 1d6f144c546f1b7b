"""Heads behind an encoder, as models of their own: Linear, BatchNormalization and ReLU, drawn as torch.nn draws them.

Parameters are named as those of a torch.nn.Sequential under the head's name: ``projector.0.weight`` [out, in], ...
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.parameters import KIND
from gradcut.passes.importing.convert import TARGET

Array = np.ndarray[Any, Any]
#: What a weight is, as torch's exporter says it.
PARAMETER, CONSTANT = "InputKind.PARAMETER", "InputKind.BUFFER"

#: torch.nn.BatchNorm1d's defaults; ONNX's momentum is 1 - torch's.
_EPSILON, _MOMENTUM = 1e-5, 0.9


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b, W [out, in]; W and b uniform in +-1/sqrt(in), as torch.nn.Linear."""

    out: int
    bias: bool = True


@dataclass(frozen=True)
class Norm:
    """BatchNormalization on batch statistics, its running ones beside; `affine`: with scale and bias, 1 and 0."""

    affine: bool = True


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""


@dataclass(frozen=True)
class Gelu:
    """x Phi(x)."""


@dataclass(frozen=True)
class Unit:
    """x / |x| along each row, as torch.nn.functional.normalize."""


@dataclass(frozen=True)
class Directions:
    """y = x V^T, V the rows of W [out, in] at length 1: torch's weight_norm whose g stays 1."""

    out: int


Layer = Linear | Norm | Relu | Gelu | Unit | Directions
#: The least that a norm counts for, as in torch.nn.functional.normalize.
_EPS = 1e-12


def unit(b: Builder, x: ir.Value) -> ir.Value:
    """x / |x| along its rows, as torch.nn.functional.normalize."""
    norm = b.op("ReduceL2", x, b.ints([1]), keepdims=1)
    return b.Div(x, b.op("Max", norm, b.scalar_like(_EPS, norm), shape=norm.shape))


def head(name: str, layers: Sequence[Layer], like: ir.Value, seed: int) -> ir.Model:
    """A head [N, d] -> [N, out].

    Args:
        like: what it reads: d, dtype and the name of the batch dimension are taken from it.
        seed: what its weights are drawn from, together with its name.
    """
    made = _Head(name, like, np.random.default_rng([seed % 2**64, zlib.crc32(name.encode())]))
    for layer in layers:
        made.add(layer)
    return made.model()


class _Head:
    def __init__(self, name: str, like: ir.Value, draw: np.random.Generator) -> None:
        assert like.shape is not None and like.dtype is not None
        self.name, self.draw, self.dtype = name, draw, like.dtype
        self.batch, self.width = like.shape[0], int(like.shape[1])  # type: ignore[arg-type]
        self.b = Builder(Names())
        self.input = self.value = ir.Value(name="x", type=like.type, shape=like.shape)
        self.weights: list[ir.Value] = []
        self.layers = 0

    def add(self, layer: Layer) -> None:
        self.b.prefix = f"{self.name}/{self.layers}/"
        match layer:
            case Linear():
                self._linear(layer)
            case Norm():
                self._norm(layer)
            case Directions():
                self._directions(layer)
            case Unit():
                self.value = unit(self.b, self.value)
            case Relu() | Gelu():
                self.value = self.b.op(type(layer).__name__, self.value, dtype=self.dtype, shape=self._shape())
        self.layers += 1

    def model(self) -> ir.Model:
        graph = ir.Graph(
            [self.input],
            [self.value],
            nodes=self.b.nodes,
            initializers=self.weights,
            opset_imports={"": TARGET},
            name=self.name,
        )
        return ir.Model(graph, ir_version=10)

    def _linear(self, layer: Linear) -> None:
        bound = 1 / np.sqrt(self.width)
        weight = self._weight("weight", self.draw.uniform(-bound, bound, (layer.out, self.width)))
        bias = self._weight("bias", self.draw.uniform(-bound, bound, layer.out)) if layer.bias else None
        operands = [self.value, weight, *([bias] if bias is not None else [])]
        self.width = layer.out
        self.value = self.b.op("Gemm", *operands, transB=1, dtype=self.dtype, shape=self._shape())

    def _directions(self, layer: Directions) -> None:
        bound = 1 / np.sqrt(self.width)
        weight = self._weight("weight", self.draw.uniform(-bound, bound, (layer.out, self.width)))
        rows = unit(self.b, weight)
        self.width = layer.out
        self.value = self.b.op("Gemm", self.value, rows, transB=1, dtype=self.dtype, shape=self._shape())

    def _norm(self, layer: Norm) -> None:
        ones, zeros = np.ones(self.width), np.zeros(self.width)
        names = ("weight", "bias") if layer.affine else ("scale", "shift")
        operands = [self._weight(name, array, layer.affine) for name, array in zip(names, (ones, zeros), strict=True)]
        operands += [self._weight("running_mean", zeros, False), self._weight("running_var", ones, False)]
        node = self.b.node(
            "BatchNormalization",
            *(self.value, *operands),
            outputs=3,
            epsilon=_EPSILON,
            momentum=_MOMENTUM,
            training_mode=1,
            dtype=self.dtype,
            shape=self._shape(),
        )
        for moved, statistic in zip(node.outputs[1:], operands[2:], strict=True):
            moved.type, moved.shape = statistic.type, statistic.shape
        self.value = node.outputs[0]

    def _shape(self) -> ir.Shape:
        return ir.Shape([self.batch, self.width])

    def _weight(self, name: str, array: Array, trained: bool = True) -> ir.Value:
        name = f"{self.name}.{self.layers}.{name}"
        tensor = ir.Tensor(array.astype(self.dtype.numpy()), dtype=self.dtype, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(self.dtype), shape=ir.Shape(list(array.shape)), const_value=tensor
        )
        value.metadata_props[KIND] = PARAMETER if trained else CONSTANT
        self.weights.append(value)
        return value


def mlp(hidden: Sequence[int], out: int, norm: bool = True, last_norm: Norm | None = None) -> list[Layer]:
    """Hidden layers Linear, (Norm,) ReLU, then Linear, and a norm behind it: a Linear before a norm has no bias."""
    layers: list[Layer] = []
    for width in hidden:
        layers += [Linear(width, bias=not norm), *([Norm()] if norm else []), Relu()]
    return [*layers, Linear(out, bias=last_norm is None), *([last_norm] if last_norm else [])]
