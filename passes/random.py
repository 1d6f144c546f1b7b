"""Randomness as a pure function of (seed, step, node, element), so that a resumed run repeats it.

The runtime's own random operators keep a hidden state that starts over with a session. Here a 32-bit integer hash of
the element's number, keyed by seed, step and node, decides each element (the two-multiplication mixer of the "hash
prospector" search, constants 0x7feb352d and 0x846ca68b, bias 0.17 of 2^-32).
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.passes.base import write_json

DRAWS = "gradcut.draws"
_STRIDE = 0x9E3779B9 - 2**32  # the golden ratio's odd multiplier, as a signed number


class Draws:
    """Rewrites random nodes of a model; adds the inputs ``seed`` and ``step`` where there is one."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.names = model, Names.of(model)
        self.inputs: dict[str, ir.Value] = {}
        self.count = 0

    def dropout(self, node: ir.Node) -> None:
        """output = data / (1 - ratio) where drawn, 0 elsewhere; mask is the draw."""
        data = node.inputs[0]
        assert data is not None
        b = Builder(self.names, prefix=f"{node.name}_")
        ratio = node.inputs[1] if len(node.inputs) > 1 and node.inputs[1] is not None else b.constant(0.5, data.dtype)
        with b.arithmetic():
            mask = self._keep(b, data, ratio)
            keep = 1.0 - b.Cast(ratio, to=data.dtype)
            scale = b.Where(b.Greater(keep, 0.0), b.Reciprocal(keep), b.scalar_like(0.0, keep))
            result = b.Where(mask, data * scale, b.scalar_like(0.0, data))
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(node, b.nodes)
        for old, new in zip(node.outputs, (result, mask), strict=False):
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            new.type, new.shape = old.type or new.type, old.shape
            new.name, old.name = old.name, self.names.fresh("dropped")
        graph.remove(node, safe=True)

    def finish(self) -> None:
        """Put ``seed`` and ``step`` behind the inputs, and write down what they are called."""
        if self.inputs:
            self.model.graph.inputs.extend(self.inputs.values())
            write_json(self.model, DRAWS, {role: value.name for role, value in self.inputs.items()})

    def _keep(self, b: Builder, data: ir.Value, ratio: ir.Value) -> ir.Value:
        """True with probability 1 - ratio: the hash, an integer evenly spread over 32 bits, is above ratio's share."""
        int32 = ir.DataType.INT32
        size = b.Cast(b.Size(data), to=int32)
        number = b.Range(b.constant(0, int32), size, b.constant(1, int32), dtype=int32)
        drawn = b.Reshape(_mix(b, number * _STRIDE + self._key(b)), b.shape_of(data))
        share = b.Cast(ratio, to=ir.DataType.DOUBLE) * float(2**32) - float(2**31)
        mask = b.GreaterOrEqual(drawn, b.Cast(b.Floor(b.Min(share, float(2**31 - 1))), to=int32))
        mask.shape = data.shape
        return mask

    def _key(self, b: Builder) -> ir.Value:
        """One 32-bit key from seed, step and the number of the node."""
        self.count += 1
        key = _mix(b, b.Cast(self._input("seed"), to=ir.DataType.INT32) + self.count)
        return _mix(b, key + b.Cast(self._input("step"), to=ir.DataType.INT32) * _STRIDE)

    def _input(self, role: str) -> ir.Value:
        if role not in self.inputs:
            self.inputs[role] = ir.Value(
                name=self.names.fresh(role), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([])
            )
        return self.inputs[role]


def _mix(b: Builder, x: ir.Value) -> ir.Value:
    """A bijection of 32-bit integers that changes half of the bits for each bit changed."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, None)):
        bits = b.Cast(x, to=ir.DataType.UINT32)
        shifted = b.op("BitShift", bits, b.constant(shift, ir.DataType.UINT32), direction="RIGHT")
        x = b.Cast(b.BitwiseXor(bits, shifted), to=ir.DataType.INT32)
        x = x if factor is None else x * factor
    return x
