"""Work that a constant mask saves: what is taken out of a product's result is taken out of its operands instead.

A `TakeKept` that alone reads the result of an operation gives way to the operation on less:

1. Elementwise operations: out of each operand that is as long along the axis; broadcast ones stay.
2. MatMul and Gemm: rows out of the first operand, columns out of the second, batches out of both.
3. Transpose, Squeeze, Unsqueeze, ReduceSum: along the axis that it comes from.
4. ConvWeightGrad: output channels out of dY, input channels out of X; of a depthwise convolution both, with its groups.
   ConvInputGrad: images out of dY, channels out of W.
5. GatherGrad: along the axes that are not gathered.

What is taken out of an operand then goes on into what makes that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.dialect import DOMAIN
from gradcut.dialect.kept import is_take, take
from gradcut.ops import Builder, Names
from gradcut.parameters import constant_tensor

_ELEMENTWISE = frozenset(
    """Add Sub Mul Div Pow Max Min Where Neg Abs Exp Log Sqrt Reciprocal Sigmoid Tanh Erf Sign Sin Cos Cast Identity Not
    And Or Equal Greater Less GreaterOrEqual LessOrEqual ReluGrad FiniteReluGrad GeluGrad GeluTanhGrad Relu
    Softplus""".split()
)


def sink_takes(model: ir.Model) -> None:
    """Move every `TakeKept` as far towards the operands as it goes."""
    names = Names.of(model)
    for graph in model.graphs():
        pending = deque(node for node in graph if is_take(node))
        while pending:  # one that reads another comes after it
            pending += _sunk(graph, pending.popleft(), names)


def _sunk(graph: ir.Graph, node: ir.Node, names: Names) -> list[ir.Node]:
    """The new ones in place of one that could be moved."""
    value, output = node.inputs[0], node.outputs[0]
    producer = None if value is None else value.producer()
    if value is None or producer is None or producer.graph is not graph or output.is_graph_output():
        return []
    if value.is_graph_output() or len(value.uses()) != 1 or len(producer.outputs) != 1:
        return []
    b = Builder(names, prefix=f"{output.name}_")
    b.tag = {**producer.metadata_props}
    call = _Take(b, producer, node)
    inputs = call.operands()
    if inputs is None:
        for made in b.nodes:
            made.resize_inputs(0)  # or it would count among the uses
        return []
    smaller = b.node(producer.op_type, *inputs, domain=producer.domain, dtype=output.dtype, shape=output.shape)
    for attribute in (*producer.attributes.values(), *call.changed):
        smaller.attributes.add(attribute)
    graph.insert_before(node, b.nodes)
    ir.convenience.replace_all_uses_with(output, smaller.outputs[0])
    graph.remove([node, producer], safe=True)
    return [one for one in b.nodes if is_take(one)]


@dataclass
class _Take:
    """One `TakeKept`, `taken`, behind the node that makes what it reads.

    Attributes:
        changed: attributes that the node has on less.
    """

    b: Builder
    node: ir.Node
    taken: ir.Node

    def __post_init__(self) -> None:
        self.changed: list[ir.Attr] = []
        self.axis = self.taken.attributes["axis"].as_int()

    @property
    def indices(self) -> ir.Value:
        value = self.taken.inputs[1]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    def operands(self) -> list[ir.Value | None] | None:
        """The node's operands on less; None where it cannot be."""
        if self.output.shape is None or self._count() is None or self.node.domain not in ("", DOMAIN):
            return None
        if self.node.op_type in _ELEMENTWISE:
            return self._broadcast(list(self.node.inputs), self.axis - len(self.output.shape))
        into = _INTO.get(self.node.op_type)
        return None if into is None else into(self)

    def out_of(self, index: int, axis: int) -> ir.Value:
        value = self.node.inputs[index]
        assert value is not None
        return take(self.b, value, self.indices, axis if value.shape is None else axis % len(value.shape))

    def _broadcast(self, values: Sequence[ir.Value | None], behind: int) -> list[ir.Value | None] | None:
        """Values that broadcast, with the axis taken out; it is counted from the end."""
        size, found = (self.output.shape or ())[self.axis], list[ir.Value | None]()
        for value in values:
            if value is None:
                found.append(None)
                continue
            if value.shape is None:
                return None
            dims = list(value.shape)
            dim = dims[behind] if -behind <= len(dims) else 1
            if dim == 1 and size != 1:
                found.append(value)
            elif dim == size:
                found.append(take(self.b, value, self.indices, behind % len(value.shape)))
            else:
                return None
        return found

    # --- by operator -----------------------------------------------------------------------------------------

    def mat_mul(self) -> list[ir.Value | None] | None:
        a, c = self.node.inputs
        if a is None or c is None or a.shape is None or c.shape is None or min(len(a.shape), len(c.shape)) < 2:
            return None
        behind = self.axis - len(self.output.shape or ())
        if behind == -1:
            return [a, self.out_of(1, -1)]
        if behind == -2:
            return [self.out_of(0, -2), c]
        return self._broadcast([a, c], behind)

    def gemm(self) -> list[ir.Value | None] | None:
        swapped = [self._flag(name) for name in ("transA", "transB")]
        if self.axis == 0:
            operands = [self.out_of(0, swapped[0]), self.node.inputs[1]]
        else:
            operands = [self.node.inputs[0], self.out_of(1, 1 - swapped[1])]
        rest = self._broadcast(self.node.inputs[2:], self.axis - 2)
        return None if rest is None else [*operands, *rest]

    def _flag(self, name: str) -> int:
        return self.node.attributes[name].as_int() if name in self.node.attributes else 0

    def transpose(self) -> list[ir.Value | None] | None:
        value = self.node.inputs[0]
        if value is None or value.shape is None or "perm" not in self.node.attributes:
            return None
        return [self.out_of(0, self.node.attributes["perm"].as_ints()[self.axis])]

    def reduced(self) -> list[ir.Value | None] | None:
        """ReduceSum and Squeeze: the axes that are gone, or of one element, are another's."""
        axes, value = self._axes(self.node.inputs[0]), self.node.inputs[0]
        if axes is None or value is None or value.shape is None:
            return None
        kept = self.node.op_type == "ReduceSum" and self._flag_or("keepdims", 1)
        left = [at for at in range(len(value.shape)) if kept or at not in axes]
        source = left[self.axis]
        return None if source in axes else [self.out_of(0, source), *self.node.inputs[1:]]

    def unsqueezed(self) -> list[ir.Value | None] | None:
        axes, value = self._axes(self.output), self.node.inputs[0]
        if axes is None or value is None or value.shape is None or self.axis in axes:
            return None
        source = [at for at in range(len(self.output.shape or ())) if at not in axes].index(self.axis)
        return [self.out_of(0, source), *self.node.inputs[1:]]

    def _flag_or(self, name: str, default: int) -> int:
        return self.node.attributes[name].as_int() if name in self.node.attributes else default

    def _axes(self, of: ir.Value | None) -> set[int] | None:
        """The axes operand, where it is known, of something of known rank."""
        axes = self.node.inputs[1] if len(self.node.inputs) > 1 else None
        tensor = None if axes is None else constant_tensor(axes)
        if tensor is None or of is None or of.shape is None or not tensor.size:
            return None
        return {int(axis) % len(of.shape) for axis in tensor.numpy().reshape(-1)}

    def conv_weight_grad(self) -> list[ir.Value | None] | None:
        dY, X, shape = self.node.inputs
        group, sides = self.node.attributes["group"].as_int(), list(self.output.shape or ())
        if dY is None or X is None or shape is None or dY.shape is None or X.shape is None or self.axis > 1:
            return None
        if group == 1:
            operands = [self.out_of(0, 1), X] if self.axis == 0 else [dY, self.out_of(1, 1)]
        elif self.axis == 0 and sides[0] == group and X.shape[1] == group and self._count() is not None:
            operands = [self.out_of(0, 1), self.out_of(1, 1)]
            self.changed.append(ir.AttrInt64("group", self._count() or 0))
        else:
            return None
        return [*operands, self._shape(shape)]

    def conv_input_grad(self) -> list[ir.Value | None] | None:
        dY, W, shape = self.node.inputs
        if dY is None or W is None or shape is None or dY.shape is None or W.shape is None:
            return None
        if self.axis == 0:
            return [self.out_of(0, 0), W, self._shape(shape)]
        if self.axis == 1 and self.node.attributes["group"].as_int() == 1:
            return [dY, self.out_of(1, 1), self._shape(shape)]
        return None

    def gather_grad(self) -> list[ir.Value | None] | None:
        dY, indices, shape = self.node.inputs
        gathered = self.node.attributes["axis"].as_int() % len(self.output.shape or ())
        if dY is None or indices is None or shape is None or dY.shape is None or indices.shape is None:
            return None
        if self.axis == gathered:
            return None
        source = self.axis if self.axis < gathered else self.axis + len(indices.shape) - 1
        return [self.out_of(0, source), indices, self._shape(shape)]

    def _count(self) -> int | None:
        size = None if self.indices.shape is None else self.indices.shape[0]
        return size if isinstance(size, int) else None

    def _shape(self, shape: ir.Value) -> ir.Value:
        """A shape operand, shorter along the axis."""
        b, count = self.b, self._count() or 0
        tensor = constant_tensor(shape)
        if tensor is not None:
            return b.ints(count if at == self.axis else int(dim) for at, dim in enumerate(tensor.numpy()))
        before = b.Slice(shape, b.ints([0]), b.ints([self.axis]), b.ints([0]))
        after = b.Slice(shape, b.ints([self.axis + 1]), b.ints([2**62]), b.ints([0]))
        return b.op("Concat", before, b.ints([count]), after, axis=0, dtype=ir.DataType.INT64)


_INTO: dict[str, Callable[[_Take], list[ir.Value | None] | None]] = {
    "MatMul": _Take.mat_mul,
    "Gemm": _Take.gemm,
    "Transpose": _Take.transpose,
    "ReduceSum": _Take.reduced,
    "Squeeze": _Take.reduced,
    "Unsqueeze": _Take.unsqueezed,
    "ConvWeightGrad": _Take.conv_weight_grad,
    "ConvInputGrad": _Take.conv_input_grad,
    "GatherGrad": _Take.gather_grad,
}
