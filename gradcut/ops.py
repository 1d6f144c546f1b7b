"""A typed builder of ONNX nodes.

Nodes are collected in `Builder.nodes` and appended to a graph once (appending in a loop is where compile time goes).
Every value gets a name and, where it can be told without inference, a dtype and a shape. The same code builds a
function body, where neither is known, and a piece of the main graph, where shapes become constants.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.dims import same_dim, same_shape, static_dims
from gradcut.results import result_dtype, result_shape

Operand = ir.Value | float | int | None


class Names:
    """Hands out names that are not taken: ``w_grad``, then ``w_grad_2``, ``w_grad_3``."""

    def __init__(self, taken: Iterable[str | None] = ()) -> None:
        self._taken = {name for name in taken if name}
        self._next: dict[str, int] = {}

    @classmethod
    def of(cls, model: ir.Model) -> Names:
        """The names of every value and node of a model, those of inner graphs included."""
        names = cls()
        for graph in model.graphs():
            names.take(value.name for value in (*graph.inputs, *graph.initializers.values()))
            for node in graph:
                names.take((node.name, *(value.name for value in node.outputs)))
        return names

    def take(self, names: Iterable[str | None]) -> None:
        self._taken.update(name for name in names if name)

    @property
    def taken(self) -> frozenset[str]:
        return frozenset(self._taken)

    def fresh(self, base: str) -> str:
        if base not in self._taken:
            self._taken.add(base)
            return base
        number = self._next.get(base, 2)
        while f"{base}_{number}" in self._taken:
            number += 1
        self._next[base] = number + 1
        name = f"{base}_{number}"
        self._taken.add(name)
        return name


class AttrRef:
    """In a function body: the attribute `name` of the call."""

    def __init__(self, name: str, kind: ir.AttributeType) -> None:
        self.name, self.kind = name, kind


class Builder:
    """Makes nodes; ``b.Mul(x, 2.0)`` or, inside `arithmetic`, ``x * 2.0``.

    Args:
        names: where new names come from.
        prefix: what new names begin with.
        tag: metadata that each new node carries, read when the node is made.
    """

    def __init__(self, names: Names, prefix: str = "") -> None:
        self.names, self.prefix = names, prefix
        self.nodes: list[ir.Node] = []
        self.tag: dict[str, str] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.op(op_type, *inputs, **attributes)

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[Builder]:
        """Within it, ``+ - * /`` and unary ``-`` on `ir.Value` build nodes here."""
        before = ir.set_value_magic_handler(self)
        try:
            yield self
        finally:
            ir.set_value_magic_handler(before)

    def op(self, op_type: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        """One node with one output, see `node`."""
        return self.node(op_type, *inputs, **attributes).outputs[0]

    def node(
        self,
        op_type: str,
        *inputs: Operand,
        domain: str = "",
        outputs: int = 1,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
        name: str | None = None,
        **attributes: Any,
    ) -> ir.Node:
        """Append a node. A Python number among the inputs becomes a constant of the other operands' dtype.

        Args:
            dtype: of the first output; without it, told from the operator and its operands.
            shape: of the first output; without it, told for elementwise operators, products and reductions.
            name: of the first output; the next free name is taken.
        """
        like = next((value for value in inputs if isinstance(value, ir.Value)), None)
        values = [self._lift(value, like) for value in inputs]
        base = name or f"{self.prefix}{op_type.lower()}"
        node = ir.Node(
            domain,
            op_type,
            values,
            attributes=[_attribute(key, value) for key, value in attributes.items() if value is not None],
            outputs=[ir.Value(name=self.names.fresh(base if i == 0 else f"{base}_{i}")) for i in range(outputs)],
            name=self.names.fresh(f"{base}_node"),
            metadata_props=dict(self.tag),
        )
        _set_type(node.outputs[0], op_type, values, attributes, dtype, shape)
        self.nodes.append(node)
        return node

    def _lift(self, value: Operand, like: ir.Value | None) -> ir.Value | None:
        if value is None or isinstance(value, ir.Value):
            return value
        if like is None:
            raise TypeError("an operator of numbers alone has no dtype")
        return self.scalar_like(value, like)

    # --- graphs inside a node ---------------------------------------------------------------------------------

    def body(self, like: Iterable[ir.Value], build: Callable[..., Sequence[ir.Value]], name: str = "body") -> ir.Graph:
        """A graph for an attribute of If, Loop or Scan.

        Args:
            like: the graph's inputs: their names, types and shapes are taken, the values are new.
            build: called with a builder and the inputs; arithmetic works in it, and it may read values from outside.
                It returns the graph's outputs.
        """
        inner = Builder(self.names, prefix=self.prefix)
        inner.tag = dict(self.tag)
        inputs = [ir.Value(name=self.names.fresh(v.name or "x"), type=v.type, shape=v.shape) for v in like]
        with inner.arithmetic():
            results = build(inner, *inputs)
        own, outputs = set(inner.nodes), dict[ir.Value, None]()
        for value in results:
            if value.producer() not in own or value in outputs:  # an output is a value of the graph's own, and only one
                value = inner.op("Identity", value, dtype=value.dtype, shape=value.shape)
            outputs[value] = None
        return ir.Graph(inputs, list(outputs), nodes=inner.nodes, name=self.names.fresh(f"{self.prefix}{name}"))

    # --- sequences --------------------------------------------------------------------------------------------

    def empty_sequence(self, like: ir.Value) -> ir.Value:
        """A sequence without elements, of the type of `like`."""
        node = self.node("SequenceEmpty")
        node.attributes.add(ir.AttrInt64("dtype", int(like.dtype or ir.DataType.FLOAT)))
        node.outputs[0].type = like.type
        return node.outputs[0]

    def at(self, sequence: ir.Value, place: ir.Value | int) -> ir.Value:
        """One element."""
        where = self.constant(place, ir.DataType.INT64) if isinstance(place, int) else place
        return self.op("SequenceAt", sequence, where, dtype=sequence.dtype)

    def each(self, sequence: ir.Value, build: Callable[[Builder, ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """The sequence of what `build` makes of each element: called with a builder, the place and the element."""
        place = ir.Value(name="place", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        going = ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        done = ir.Value(name="done", type=sequence.type)

        def turn(b: Builder, place: ir.Value, going: ir.Value, done: ir.Value) -> list[ir.Value]:
            longer = b.op("SequenceInsert", done, build(b, place, b.at(sequence, place)))
            longer.type = sequence.type
            return [going, longer]

        body = self.body([place, going, done], turn, "each")
        length = self.op("SequenceLength", sequence, dtype=ir.DataType.INT64, shape=ir.Shape([]))
        result = self.op("Loop", length, self.constant(True), self.empty_sequence(sequence), body=body)
        result.type = sequence.type
        return result

    def plus(self, a: ir.Value, c: ir.Value) -> ir.Value:
        """The sum of two values of one type, shape and length; `a` says which."""
        if isinstance(a.type, ir.SequenceType):
            return self.each(a, lambda b, place, element: b.op("Add", element, b.at(c, place), dtype=a.dtype))
        return self.op("Add", a, c, dtype=a.dtype, shape=a.shape)

    # --- arithmetic on ir.Value, called by onnx_ir's operators -----------------------------------------------

    def Add(self, a: Operand, b: Operand) -> ir.Value:
        return self.op("Add", a, b)

    def Sub(self, a: Operand, b: Operand) -> ir.Value:
        return self.op("Sub", a, b)

    def Mul(self, a: Operand, b: Operand) -> ir.Value:
        return self.op("Mul", a, b)

    def Div(self, a: Operand, b: Operand) -> ir.Value:
        return self.op("Div", a, b)

    def Neg(self, a: Operand) -> ir.Value:
        return self.op("Neg", a)

    def Cast(self, x: ir.Value, *, to: ir.DataType | None) -> ir.Value:
        """`x` itself where it has that dtype."""
        return x if to is None or x.dtype == to else self.op("Cast", x, to=int(to), dtype=to)

    # --- constants -------------------------------------------------------------------------------------------

    def constant(self, value: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """A Constant node holding `value`; equal constants are one."""
        array = np.asarray(value)
        kind = dtype or ir.DataType.from_numpy(array.dtype)
        array = array.astype(kind.numpy())
        key = (kind, array.shape, array.tobytes())
        if key not in self._constants:
            tag, self.tag = self.tag, {}
            self._constants[key] = self.op(
                "Constant", value=ir.Tensor(array, dtype=kind), dtype=kind, shape=ir.Shape(array.shape)
            )
            self.tag = tag
        return self._constants[key]

    def ints(self, values: Iterable[int]) -> ir.Value:
        """A 1-D INT64 constant."""
        return self.constant(np.asarray(list(values), dtype=np.int64))

    def attribute_ints(self, values: Sequence[int] | AttrRef) -> ir.Value:
        """An INTS attribute as a 1-D INT64 value, by reference inside a function body."""
        if isinstance(values, AttrRef):
            return self.op("Constant", value_ints=values, dtype=ir.DataType.INT64)
        return self.ints(values)

    def scalar_like(self, value: float | int, like: ir.Value) -> ir.Value:
        """A rank-0 constant of `like`'s dtype, by CastLike where that is known only at run time."""
        if like.dtype is not None:
            return self.constant(value, like.dtype)
        return self.op("CastLike", self.constant(value, ir.DataType.FLOAT), like)

    # --- shapes ----------------------------------------------------------------------------------------------

    def shape_of(self, x: ir.Value) -> ir.Value:
        """The shape of `x` as INT64 [rank]: a constant where it is static."""
        dims = static_dims(x.shape)
        return self.ints(dims) if dims is not None else self.op("Shape", x)

    def dim(self, x: ir.Value, axis: int) -> ir.Value:
        """One dimension of `x` as INT64 [1]."""
        if x.shape is not None and isinstance(x.shape[axis], int):
            return self.ints([int(x.shape[axis])])  # type: ignore[arg-type]
        end = axis + 1 if axis != -1 else None
        return self.op("Shape", x, start=axis, end=end, shape=ir.Shape([1]))

    def per_channel(self, x: ir.Value, channels: ir.Value, dtype: ir.DataType) -> ir.Value:
        """How many elements of `x` [N, C, *D] each of its `channels` [C] has, as a scalar or [1]."""
        spatial = static_dims(None if x.shape is None else ir.Shape(list(x.shape)[2:]))
        if spatial is None:
            count = self.op("Div", self.op("Size", x), self.op("Size", channels))
            count.shape = ir.Shape([])
            return self.Cast(count, to=dtype)
        images = self.Cast(self.dim(x, 0), to=dtype)
        return images if math.prod(spatial) == 1 else self.Mul(images, float(math.prod(spatial)))

    def dims(self, *parts: int | ir.Value) -> ir.Value:
        """A shape put together from numbers and INT64 [1] or [n] values."""
        if all(isinstance(part, int) for part in parts):
            return self.ints(parts)  # type: ignore[arg-type]
        values = [self.ints([part]) if isinstance(part, int) else part for part in parts]
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=0)

    def zeros_like(self, x: ir.Value) -> ir.Value:
        """Zeros of the run-time shape and the dtype of `x`; of a sequence, for each of its elements."""
        if isinstance(x.type, ir.SequenceType):
            return self.each(x, lambda b, place, element: b.zeros_like(element))
        return self.zeros(self.shape_of(x), x.dtype or ir.DataType.FLOAT, x.shape)

    def zeros(self, shape: ir.Value, dtype: ir.DataType, known: ir.Shape | None = None) -> ir.Value:
        zero = ir.Tensor(np.zeros([1], dtype.numpy()), dtype=dtype)
        return self.op("ConstantOfShape", shape, value=zero, dtype=dtype, shape=known)

    def transpose(self, x: ir.Value, rank: int | None = None) -> ir.Value:
        """Swap the last two axes of `x`."""
        count = rank if rank is not None else len(x.shape or ())
        return self.op("Transpose", x, perm=[*range(count - 2), count - 1, count - 2])

    def sum_to(self, x: ir.Value, target: ir.Value) -> ir.Value:
        """The adjoint of broadcasting `target` to the shape of `x`: `x` summed to the shape of `target`."""
        if same_shape(x.shape, target.shape):
            return x
        axes = _reduced_axes(x.shape, target.shape)
        if axes is None:
            return self.op("SumToShape", x, self.shape_of(target), domain="gradcut", dtype=x.dtype, shape=target.shape)
        if not axes:
            return x
        leading = len(x.shape or ()) - len(target.shape or ())
        if axes == list(range(leading)):
            return self.op("ReduceSum", x, self.ints(axes), keepdims=0, shape=target.shape)
        summed = self.op("ReduceSum", x, self.ints(axes), keepdims=1)
        if not leading:
            summed.shape = target.shape
            return summed
        return self.op("Squeeze", summed, self.ints(range(leading)), shape=target.shape)


def _reduced_axes(shape: ir.Shape | None, target: ir.Shape | None) -> list[int] | None:
    """The axes to sum over, or None where only run time can tell."""
    if shape is None or target is None:
        return None
    leading = len(shape) - len(target)
    axes = list(range(leading))
    for axis, (wide, narrow) in enumerate(zip(list(shape)[leading:], target, strict=True), start=leading):
        if same_dim(wide, narrow):
            continue
        if not (isinstance(narrow, int) and narrow == 1):
            return None
        axes.append(axis)
    return axes


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, AttrRef):
        return ir.RefAttr(name, value.name, value.kind)
    if isinstance(value, ir.Attr):
        return ir.Attr(name, value.type, value.value)
    if isinstance(value, (list, tuple)) and not value:
        return ir.AttrInt64s(name, [])
    return ir.convenience.convert_attribute(name, value)


def _set_type(
    output: ir.Value,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any],
    dtype: ir.DataType | None,
    shape: ir.Shape | None,
) -> None:
    kind = dtype if dtype is not None else result_dtype(op_type, inputs)
    if kind is not None:
        output.dtype = kind
    output.shape = shape if shape is not None else result_shape(op_type, inputs, attributes)
