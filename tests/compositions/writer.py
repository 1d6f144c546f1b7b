"""Writes a random graph node by node, and runs it in torch as it grows: shapes, bounds and signs are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx.defs
import torch
from onnx import NodeProto, helper
from torch import Tensor

from tests import in_torch

Shape = tuple[int, ...]
#: Larger values are brought back, and larger tensors are left out.
BOUND, LARGEST = 4.0, 160


class Unfit(Exception):
    """Nothing there is of use to the operator; the graph goes on without it."""


class Writer:
    """A graph that grows.

    Attributes:
        inputs, weights: floats that a gradient may be asked for. constants: all other initializers.
        known: every value, in float64. floats: names of float values that may be read.
    """

    def __init__(self, rng: random.Random, opset: int) -> None:
        self.rng, self.opset = rng, opset
        self.numbers = np.random.default_rng(rng.getrandbits(32))
        self.nodes: list[NodeProto] = []
        self.inputs: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.known: dict[str, Tensor] = {}
        self.floats: list[str] = []

    # --- trying ----------------------------------------------------------------------------------------------

    def attempt(self, make: Callable[[Writer], None]) -> bool:
        """Let a maker write; nothing of it stays where it is unfit."""
        places = ("nodes", "inputs", "weights", "constants", "known", "floats")
        before = {place: getattr(self, place).copy() for place in places}
        try:
            make(self)
        except Unfit:
            self.__dict__.update(before)
            return False
        return True

    def has(self, op: str) -> bool:
        """Whether the graph's opset has an operator."""
        try:
            return not onnx.defs.get_schema(op, self.opset).deprecated
        except onnx.defs.SchemaError:
            return op == "StopGradient"

    # --- operands --------------------------------------------------------------------------------------------

    def shape(self, name: str) -> Shape:
        return tuple(self.known[name].shape)

    def rank(self, name: str) -> int:
        return self.known[name].ndim

    def random_shape(self, lowest: int = 0, highest: int = 4) -> Shape:
        return tuple(self.rng.choice((1, 2, 2, 3, 3, 4)) for _ in range(self.rng.randint(lowest, highest)))

    def pick(self, fits: Callable[[Shape], bool] = lambda shape: True) -> str:
        """A float value whose shape fits, the later the likelier."""
        found = [name for name in self.floats if fits(self.shape(name))]
        if not found:
            raise Unfit
        return self.rng.choice(found[-5:] if self.rng.random() < 0.7 else found)

    def ranked(self, lowest: int, highest: int = 5) -> str:
        """A float value of some rank; made where there is none, and now and then where there is."""
        if self.rng.random() < 0.8:
            try:
                return self.pick(lambda shape: lowest <= len(shape) <= highest)
            except Unfit:
                pass
        return self.like(self.random_shape(lowest, min(highest, max(lowest, 3))))

    def like(self, shape: Shape) -> str:
        """A float value of exactly this shape: one that is there, a new one, or what is there brought to it."""
        if math.prod(shape) > LARGEST:
            raise Unfit
        chance = self.rng.random()
        same = [name for name in self.floats if self.shape(name) == shape]
        if same and chance < 0.5:
            return self.rng.choice(same)
        if chance < 0.75 or not self.floats:
            return self.leaf(shape)
        return self.brought(self.pick(), shape)

    def brought(self, name: str, shape: Shape) -> str:
        """As many elements of a value as a shape holds, in it."""
        have, want = self.known[name].numel(), math.prod(shape)
        flat = self.op("Reshape", name, self.ints([-1]))
        if have < want:
            flat = self.op("Tile", flat, self.ints([-(-want // have)]))
        if self.known[flat].numel() > want:
            flat = self.op("Slice", flat, self.ints([0]), self.ints([want]), self.ints([0]))
        return self.op("Reshape", flat, self.ints(shape))

    def broadcasting(self, shape: Shape) -> str:
        """A float value that broadcasts with a shape, to it or beyond it."""
        dims = [1 if self.rng.random() < 0.3 else size for size in shape]
        dims = dims[self.rng.randint(0, len(dims)) :] if self.rng.random() < 0.3 else dims
        return self.like(tuple(dims))

    def leaf(self, shape: Shape) -> str:
        """A new input or weight."""
        place, letter = (self.inputs, "x") if self.rng.random() < 0.4 else (self.weights, "w")
        name = f"{letter}{len(place)}"
        place[name] = np.asarray(self.numbers.normal(size=shape), np.float32)
        self.known[name] = in_torch.tensor(place[name])
        self.floats.append(name)
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        self.known[name] = in_torch.tensor(array)
        return name

    def ints(self, numbers: Sequence[int] | int) -> str:
        return self.constant(np.asarray(numbers, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.asarray(value, np.float32))

    def below(self, limit: int, shape: Shape, negative: bool = True) -> str:
        """Constant indices into `limit` places, some of them counted from the end."""
        low = -limit if negative and self.rng.random() < 0.3 else 0
        return self.constant(self.numbers.integers(low, limit, shape))

    # --- operands in a range ---------------------------------------------------------------------------------

    def positive(self, name: str) -> str:
        """At least 0.2."""
        op = self.rng.choice(("Softplus", "Sigmoid", "Exp", "Abs"))
        return self.op("Add", self.op(op, name), self.number(0.2))

    def nonzero(self, name: str) -> str:
        far = self.positive(name)
        return far if self.rng.random() < 0.5 else self.op("Neg", far)

    def inside(self, name: str) -> str:
        """Between -0.9 and 0.9."""
        return self.op("Mul", self.op(self.rng.choice(("Tanh", "Sin", "Softsign")), name), self.number(0.9))

    # --- nodes -----------------------------------------------------------------------------------------------

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        """A node of one output."""
        return self.many(op, *inputs, outputs=1, **attributes)[0]

    def many(self, op: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        """A node; its float outputs may be read from now on, brought back where they are large."""
        domain = "gradcut" if op == "StopGradient" else ""
        count = len(self.nodes)
        names = [f"v{count}" + (f"_{i}" if i else "") for i in range(outputs)]
        given = [*inputs]
        while given and not given[-1]:
            given.pop()
        node = helper.make_node(op, given, names, f"n{count}_{op}", domain=domain, **attributes)
        results = in_torch.run(node, [self.known[name] if name else None for name in given], self.opset)
        if any(r.numel() > LARGEST or not r.numel() for r in results[:outputs]):
            raise Unfit
        if any(r.is_floating_point() and not torch.isfinite(r).all() for r in results[:outputs]):
            raise Unfit
        self.nodes.append(node)
        self.known |= dict(zip(names, results, strict=False))
        return [self._readable(name) for name in names]

    def _readable(self, name: str) -> str:
        value = self.known[name]
        if not value.is_floating_point():
            return name
        largest = float(value.abs().max())
        if largest > BOUND:
            if self.rng.random() < 0.5:
                return self.op("Tanh", self.op("Mul", name, self.number(round(2 / largest, 6))))
            return self.op("Mul", name, self.number(round(3 / largest, 6)))
        self.floats.append(name)
        return name

    def condition(self, shape: Shape) -> str:
        """A boolean value that broadcasts with a shape."""
        op = self.rng.choice(("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"))
        one = self.op(op, self.broadcasting(shape), self.broadcasting(shape))
        if self.rng.random() < 0.3:
            one = self.op(
                self.rng.choice(("And", "Or", "Xor")), one, self.op("Less", self.broadcasting(shape), self.number(0.1))
            )
        return self.op("Not", one) if self.rng.random() < 0.3 else one
