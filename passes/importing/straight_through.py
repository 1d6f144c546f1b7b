"""Quantised models whose rounding gradients may pass: a QuantizeLinear or a DynamicQuantizeLinear, and the
DequantizeLinear behind it.

A model says that they may by its metadata ``gradcut.quantized: straight-through``, which survives save and load;
`allow` writes it. The pair stays as it is, for the runtime, and behind it stands a `StraightThrough` of the dialect,
which the lowering takes away: the cotangent passes where the rounded number is one that the integers have, and stops
where it had to be clipped. Scales and zero points get none of it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gradcut.dialect import DOMAIN, declare, new_mark
from gradcut.dialect.straight import STRAIGHT, is_straight
from gradcut.errors import SpecError, UnsupportedModelError
from gradcut.ops import Builder, Names
from gradcut.parameters import constant_tensor
from gradcut.passes.importing.consistency import called
from gradcut.passes.importing.contrib_types import MICROSOFT

QUANTIZED, STRAIGHT_THROUGH = "gradcut.quantized", "straight-through"
CHOICES = ("refuse", STRAIGHT_THROUGH)
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")


def allow(model: ir.Model, quantized: str) -> None:
    """Write the choice into a model; ``refuse`` leaves what the model says.

    Raises:
        SpecError: there is no such choice.
    """
    if quantized not in CHOICES:
        raise SpecError(f"quantized is {' or '.join(map(repr, CHOICES))}, not {quantized!r}")
    if quantized == STRAIGHT_THROUGH:
        model.metadata_props[QUANTIZED] = quantized


def passes_rounding(model: ir.Model) -> bool:
    """Whether a model says that gradients may pass its rounding."""
    return model.metadata_props.get(QUANTIZED) == STRAIGHT_THROUGH


def is_quantize(node: ir.Node | None) -> bool:
    """Whether a node rounds floats to integers; ONNX Runtime's own does it as ONNX's does."""
    return node is not None and (
        (node.domain == "" and node.op_type in _ROUNDING)
        or (node.domain == MICROSOFT and node.op_type == "QuantizeLinear")
    )


def take_onnx_pairs(model: ir.Model) -> None:
    """ONNX's operators in place of ONNX Runtime's own, which had more types before opset 21 and are the same since."""
    for node in model.graph.all_nodes():
        if node.domain == MICROSOFT and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = ""


def pass_straight_through(model: ir.Model) -> None:
    """Put the estimator behind every pair, if the model says so. Types and shapes are to be known."""
    if not passes_rounding(model):
        return
    names = Names.of(model)
    for node in [node for node in model.graph.all_nodes() if is_quantize(node)]:
        readers = [reader for reader, _ in node.outputs[0].uses()]
        for reader in readers:
            _check_pair(node, reader)
        done = any(use.op_type == STRAIGHT for reader in readers for use, _ in reader.outputs[0].uses())
        if readers and not done:
            _estimate(node, readers, names)


def spell_out(model: ir.Model) -> None:
    """Put what an estimator means in its place: stop(Y) + (X - stop(X) where `inside`, else 0).

    Its value is Y and its derivative the estimator's, in differences too, which hold still what is marked.
    """
    names = Names.of(model)
    for node in [node for node in model.graph.all_nodes() if is_straight(node)]:
        graph, (y, x, inside), old = node.graph, node.inputs, node.outputs[0]
        assert isinstance(graph, ir.Graph) and y is not None and x is not None
        assert inside is not None
        marks = [new_mark(value, names) for value in (y, x, inside)]
        b = Builder(names, prefix=f"{old.name}_")
        with b.arithmetic():
            moved = b.Where(marks[2].outputs[0], x - marks[1].outputs[0], b.scalar_like(0.0, x))
            new = b.op("Add", marks[0].outputs[0], moved, dtype=old.dtype, shape=old.shape)
        graph.insert_before(node, [*marks, *b.nodes])
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        new.name = old.name
    declare(model)


def _check_pair(quantize: ir.Node, reader: ir.Node) -> None:
    if reader.op_type != "DequantizeLinear" or reader.domain:
        raise UnsupportedModelError(
            f"{called(quantize)} gives integers to {called(reader)}, which gradients do not pass; straight-through "
            "takes pairs of QuantizeLinear or DynamicQuantizeLinear and DequantizeLinear alone: quantise the model in "
            "the QDQ form"
        )
    for index, what in ((1, "scale"), (2, "zero point")):
        if not _same(_setting(quantize, index), _operand(reader, index)):
            raise UnsupportedModelError(
                f"{called(reader)} takes another {what} than {called(quantize)}, whose integers it reads; "
                "straight-through takes pairs that give back what went in"
            )


def _operand(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _setting(quantize: ir.Node, index: int) -> ir.Value | None:
    """The scale, 1, or the zero point, 2: given, or what a DynamicQuantizeLinear found."""
    return quantize.outputs[index] if quantize.op_type == "DynamicQuantizeLinear" else _operand(quantize, index)


def _same(one: ir.Value | None, other: ir.Value | None) -> bool:
    """One value, or equal constants; a zero point that is left out is 0."""
    if one is other:
        return True
    arrays = [np.zeros(()) if value is None else _numbers(value) for value in (one, other)]
    if any(array is None for array in arrays):
        return False
    first, second = arrays
    if one is None or other is None:
        return not np.any(first) and not np.any(second)
    return np.array_equal(first, second)  # type: ignore[arg-type]


def _numbers(value: ir.Value) -> np.ndarray | None:
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy().astype(np.float64)


def _estimate(quantize: ir.Node, readers: list[ir.Node], names: Names) -> None:
    x, graph = quantize.inputs[0], quantize.graph
    assert x is not None and isinstance(graph, ir.Graph)
    b = Builder(names, prefix=f"{quantize.outputs[0].name}_")
    with b.arithmetic():
        inside = _inside(b, quantize, x)
    graph.insert_after(quantize, b.nodes)
    for reader in readers:
        after, y = Builder(names, prefix=f"{reader.outputs[0].name}_"), reader.outputs[0]
        straight = after.op(STRAIGHT, y, x, inside, domain=DOMAIN, dtype=y.dtype, shape=y.shape or x.shape)
        where = reader.graph
        assert isinstance(where, ir.Graph)
        where.insert_after(reader, after.nodes)
        for user, index in [use for use in y.uses() if use[0] is not straight.producer()]:
            user.replace_input_with(index, straight)
        if y.is_graph_output():
            where.outputs[:] = [straight if output is y else output for output in where.outputs]
            y.name, straight.name = straight.name, y.name


def _inside(b: Builder, quantize: ir.Node, x: ir.Value) -> ir.Value:
    """Where X / scale, rounded and shifted, is a number that the integers have; BOOL, of the shape of X."""
    kind = quantize.outputs[0].dtype
    scale, zero = _setting(quantize, 1), _setting(quantize, 2)
    assert kind is not None and scale is not None
    float_ = ir.DataType.FLOAT
    ratio = b.Cast(x, to=float_) / _spread(b, quantize, b.Cast(scale, to=float_), x)
    level, low, high = ratio, float(kind.min), float(kind.max)
    if not kind.is_floating_point():
        level = b.Round(ratio)
        if zero is not None:
            level = level + _spread(b, quantize, b.Cast(zero, to=float_), x)
    inside = b.And(b.GreaterOrEqual(level, low), b.LessOrEqual(level, high))
    inside.shape = x.shape
    return inside


def _spread(b: Builder, quantize: ir.Node, value: ir.Value, x: ir.Value) -> ir.Value:
    """A scale or a zero point, of one number, of one for each place along an axis, or for each block of them, to
    broadcast against X."""
    shape, rank = value.shape, None if x.shape is None else len(x.shape)
    if shape is not None and len(shape) == 0:
        return value
    if shape is None or rank is None:
        raise UnsupportedModelError(f"{called(quantize)}: the ranks of X and its scale are unknown; give the graph's "
                                    "inputs their shapes")  # fmt: skip
    said = {name: quantize.attributes[name].as_int() for name in ("axis", "block_size") if name in quantize.attributes}
    axis, block = said.get("axis", 1) % max(rank, 1), said.get("block_size", 0)
    if not block:
        places = [-1 if at == axis else 1 for at in range(rank)]
        return b.op("Reshape", value, b.ints(places), shape=ir.Shape([shape[0] if p < 0 else 1 for p in places]))
    apart = b.Unsqueeze(value, b.ints([axis + 1]))
    each = b.Expand(apart, b.ints([block if at == axis + 1 else 1 for at in range(rank + 1)]))
    sizes = b.op("Shape", value)
    joined = b.Reshape(each, b.Mul(sizes, b.ints([block if at == axis else 1 for at in range(rank)])))
    return b.op("Slice", joined, b.ints([0]), b.dim(x, axis), b.ints([axis]), dtype=value.dtype, shape=x.shape)
