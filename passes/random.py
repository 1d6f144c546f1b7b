"""Randomness as a pure function of (seed, step, node, element), so that a resumed run repeats it.

The runtime's own random operators keep a hidden state that starts over with a session. Here a 32-bit integer hash of
the element's number decides each element. It is the two-multiplication mixer of the "hash prospector" search
(constants 0x7feb352d and 0x846ca68b, bias 0.17 of 2^-32), keyed twice: before it and in its middle. With one key, the
streams of two nodes or steps would be one sequence read from two places. Both keys come from (seed, step, node), once
for all nodes, as the vector ``keys``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.passes.base import write_json

DRAWS = "gradcut.draws"
_STRIDE = 0x9E3779B9 - 2**32  # the golden ratio's odd multiplier, as a signed number
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
_SALT = (0x243F6A88, 0x13198A2E)  # digits of pi: the two keys start apart
_INT, _FLOAT = ir.DataType.INT32, ir.DataType.FLOAT


#: Operators that draw a new value each run, beside Dropout.
GENERATORS = frozenset({"RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli"})


class Draws:
    """Rewrites random nodes of a model; adds the inputs ``seed`` and ``step`` where there is one.

    Attributes:
        turns: of a node in the body of a Loop or a Scan: the numbers of the turns that it is run in. Set before.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model, self.names = model, Names.of(model)
        self.keys = ir.Value(type=ir.TensorType(_INT))
        self.count = 0
        self.turns: Sequence[ir.Value] = ()

    def dropout(self, node: ir.Node, training: ir.Value | None = None) -> None:
        """output = data / (1 - ratio) where drawn, 0 elsewhere; mask is the draw.

        Args:
            training: a BOOL scalar that only a run knows; False: everything is kept.
        """
        data = node.inputs[0]
        assert data is not None
        b = Builder(self.names, prefix=f"{node.name}_")
        ratio = node.inputs[1] if len(node.inputs) > 1 and node.inputs[1] is not None else b.constant(0.5, data.dtype)
        with b.arithmetic():
            if training is not None:
                ratio = b.Where(training, ratio, b.scalar_like(0.0, ratio))
            mask = self._keep(b, data, ratio)
            keep = 1.0 - b.Cast(ratio, to=data.dtype)
            scale = b.Where(b.Greater(keep, 0.0), b.Reciprocal(keep), b.scalar_like(0.0, keep))
            result = b.Where(mask, data * scale, b.scalar_like(0.0, data))
        self._replace(node, b, [result, mask])

    def generator(self, node: ir.Node) -> None:
        """One of `GENERATORS`: uniform in [low, high), normal by Box and Muller (1958), or true with a probability."""
        b = Builder(self.names, prefix=f"{node.name}_")

        def option(name: str, default: float) -> float:
            return node.attributes[name].as_float() if name in node.attributes else default

        like = node.inputs[0] if node.inputs else None
        shape = b.ints(node.attributes["shape"].as_ints()) if like is None else b.shape_of(like)
        given = like.dtype if like is not None else ir.DataType.FLOAT
        dtype = ir.DataType(node.attributes["dtype"].as_int()) if "dtype" in node.attributes else given
        with b.arithmetic():
            uniform = self._uniform(b, shape)
            if node.op_type == "Bernoulli":
                assert like is not None
                result = b.Less(uniform, b.Cast(like, to=_FLOAT))
            elif node.op_type.startswith("RandomUniform"):
                low, high = option("low", 0.0), option("high", 1.0)
                result = uniform * (high - low) + low
            else:
                radius = b.Sqrt(b.Log(1.0 - uniform) * -2.0)
                result = radius * b.Cos(self._uniform(b, shape) * (2.0 * math.pi))
                result = result * option("scale", 1.0) + option("mean", 0.0)
        self._replace(node, b, [b.Cast(result, to=dtype)])

    def _replace(self, node: ir.Node, b: Builder, results: list[ir.Value]) -> None:
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(node, b.nodes)
        for old, new in zip(node.outputs, results, strict=False):
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            new.type, new.shape = old.type or new.type, old.shape
            new.name, old.name = old.name, self.names.fresh("drawn")
        graph.remove(node, safe=True)

    def finish(self) -> None:
        """Compute the keys first in the graph; ``seed`` and ``step`` go behind the inputs and are written down."""
        if not self.count:
            return
        graph = self.model.graph
        seed, step = (
            ir.Value(name=self.names.fresh(role), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
            for role in ("seed", "step")
        )
        b = Builder(self.names, prefix="draw_")
        with b.arithmetic():
            keys = self._keys(b, seed, step)
        keys.name = self.names.fresh("draw_keys")
        ir.convenience.replace_all_uses_with(self.keys, keys)
        graph.insert_before(graph[0], b.nodes)
        graph.inputs.extend([seed, step])
        write_json(self.model, DRAWS, {"seed": seed.name, "step": step.name})

    def finish_alone(self) -> None:
        """Compute the keys of what the graph itself draws."""
        if not self.count:
            return
        b = Builder(self.names, prefix="draw_")
        node = b.node("RandomUniform", low=-(2.0**31), high=2.0**31 - 256, dtype=_FLOAT)  # floats are 256 apart there
        node.attributes.add(ir.AttrInt64s("shape", [2 * self.count]))
        keys = b.Cast(node.outputs[0], to=_INT)
        ir.convenience.replace_all_uses_with(self.keys, keys)
        self.model.graph.insert_before(self.model.graph[0], b.nodes)

    def _keys(self, b: Builder, seed: ir.Value, step: ir.Value) -> ir.Value:
        """Two keys a node, [2 nodes]: salt, both halves of the seed, step and the node's number, mixed one by one."""
        high = b.op(
            "BitShift", b.Cast(seed, to=ir.DataType.UINT64), b.constant(32, ir.DataType.UINT64), direction="RIGHT"
        )
        numbers = np.repeat(np.arange(1, self.count + 1, dtype=np.int32), 2)
        keys = b.constant(np.asarray(_SALT, np.int32))
        for part in (seed, b.Cast(high, to=ir.DataType.INT64), step):
            keys = _mix(b, b.Add(keys, b.Cast(part, to=_INT) * _STRIDE))
        spread = b.op("Tile", keys, b.ints([self.count]))
        return _mix(b, b.Add(spread, b.constant(numbers) * _STRIDE))

    def _keep(self, b: Builder, data: ir.Value, ratio: ir.Value) -> ir.Value:
        """True with probability 1 - ratio: the hash, an integer evenly spread over 32 bits, is above ratio's share."""
        drawn = self._bits(b, b.shape_of(data))
        share = b.Cast(ratio, to=ir.DataType.DOUBLE) * float(2**32) - float(2**31)
        mask = b.GreaterOrEqual(drawn, b.Cast(b.Floor(b.Min(share, float(2**31 - 1))), to=_INT))
        mask.shape = data.shape
        return mask

    def _uniform(self, b: Builder, shape: ir.Value) -> ir.Value:
        """Multiples of 2^-24 in [0, 1)."""
        high = b.op(
            "BitShift",
            *(b.Cast(self._bits(b, shape), to=ir.DataType.UINT32), b.constant(8, ir.DataType.UINT32)),
            direction="RIGHT",
        )
        return b.Mul(b.Cast(b.Cast(high, to=_INT), to=_FLOAT), 2.0**-24)

    def _bits(self, b: Builder, shape: ir.Value) -> ir.Value:
        """INT32 of a shape: the hash of each element's number under two keys that no other call has."""
        number = b.Range(b.constant(0, _INT), b.Cast(b.ReduceProd(shape, keepdims=0), to=_INT), b.constant(1, _INT))
        number.dtype = _INT
        first, second = (b.op("Gather", self.keys, b.constant(2 * self.count + i), dtype=_INT) for i in (0, 1))
        self.count += 1
        for turn in self.turns:
            shift = b.Mul(b.Cast(turn, to=_INT), _STRIDE)
            first, second = (_mix(b, b.Add(key, shift)) for key in (first, second))
        return b.Reshape(_mix(b, b.Add(b.Mul(number, _STRIDE), first), second), shape)


def _mix(b: Builder, x: ir.Value, key: ir.Value | None = None) -> ir.Value:
    """A bijection of 32-bit integers that changes half of the bits for each bit changed; `key` chooses among many."""
    x = _shift(b, x, 16) * _MULTIPLIERS[0]
    x = x if key is None else x + key
    return _shift(b, _shift(b, x, 15) * _MULTIPLIERS[1], 16)


def _shift(b: Builder, x: ir.Value, places: int) -> ir.Value:
    """x ^ (x >> places), on the bits as they are."""
    bits = b.Cast(x, to=ir.DataType.UINT32)
    shifted = b.op("BitShift", bits, b.constant(places, ir.DataType.UINT32), direction="RIGHT")
    return b.Cast(b.BitwiseXor(bits, shifted), to=_INT)
