"""Constant operands: the tensor behind an operand, and putting another in its place under the same name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gradcut.dims import FLOATS
from gradcut.ops import Names
from gradcut.parameters import KIND, constant_tensor, parameters
from gradcut.passes.importer import lift_constant
from gradcut.rules import REGISTRY
from gradcut.text import join_names

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Operand:
    """A constant that a node reads.

    Attributes:
        node, index: where it is read.
        root: the initializer or the Constant's output.
        chain: the nodes between, from the root on: Identity, Cast and Transpose.
        shape: as the node reads it. perm: the root's axis by the axis that the node sees.
    """

    node: ir.Node
    index: int
    root: ir.Value
    chain: tuple[ir.Node, ...]
    shape: tuple[int, ...]
    perm: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.root.name or ""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def shared(self) -> bool:
        """Whether something else reads it too."""
        values = [self.root, *(node.outputs[0] for node in self.chain)]
        return any(len(value.uses()) != 1 or value.is_graph_output() for value in values)

    def values(self) -> np.ndarray:
        """The numbers as the node reads them."""
        tensor = constant_tensor(self.root)
        assert tensor is not None
        return np.transpose(tensor.numpy(), self.perm)


def constant_operand(node: ir.Node, index: int) -> Operand | None:
    """The float constant at an operand; None where it is absent, computed, or no float."""
    value = node.inputs[index] if index < len(node.inputs) else None
    chain: list[ir.Node] = []
    while value is not None and (made := value.producer()) is not None and made.domain == "":
        if made.op_type not in ("Identity", "Cast", "Transpose"):
            break
        chain.insert(0, made)
        value = made.inputs[0]
    tensor = None if value is None else constant_tensor(value)
    if value is None or tensor is None or tensor.dtype not in FLOATS:
        return None
    perm = list(range(len(tensor.shape)))
    for one in chain:
        if one.op_type == "Transpose":
            said = one.attributes["perm"].as_ints() if "perm" in one.attributes else range(len(perm))[::-1]
            perm = [perm[axis] for axis in said]
    dims = tensor.shape.numpy()
    return Operand(node, index, value, tuple(chain), tuple(dims[axis] for axis in perm), tuple(perm))


def put(operand: Operand, array: Array, names: Names) -> ir.Value:
    """Let the node read `array`, of the shape that it sees: under the root's name, or where that is shared, a new one.

    Returns:
        The initializer or the Constant's output that holds it, in the root's dtype and layout.
    """
    root = operand.root
    tensor = constant_tensor(root)
    assert tensor is not None
    stored = np.ascontiguousarray(np.transpose(array, np.argsort(operand.perm)) if array.ndim else array)
    if operand.shared:
        fresh = _new_initializer(operand, names)
        _hold(fresh, array, fresh.dtype or tensor.dtype)
        return fresh
    made = root.producer()
    if made is None:
        _hold(root, stored, tensor.dtype)
    else:
        made.attributes.clear()
        made.attributes.add(ir.AttrTensor("value", ir.Tensor(_cast(stored, tensor.dtype), dtype=tensor.dtype)))
        root.type, root.shape = ir.TensorType(tensor.dtype), ir.Shape(stored.shape)
    for node in operand.chain:
        node.outputs[0].shape = None
    return root


def _new_initializer(operand: Operand, names: Names) -> ir.Value:
    read = operand.node.inputs[operand.index]
    tensor = constant_tensor(operand.root)
    assert read is not None and tensor is not None
    casts = [node for node in operand.chain if node.op_type == "Cast"]
    dtype = ir.DataType(casts[-1].attributes["to"].as_int()) if casts else tensor.dtype
    value = ir.Value(name=names.fresh(f"{operand.name}_head"), type=ir.TensorType(dtype))
    value.metadata_props.update(operand.root.metadata_props)
    graph = operand.node.graph
    assert isinstance(graph, ir.Graph)
    value.const_value = ir.Tensor(np.zeros(1, dtype.numpy()), dtype=dtype, name=value.name)
    graph.register_initializer(value)
    operand.node.replace_input_with(operand.index, value)
    return value


def _hold(value: ir.Value, array: Array, dtype: ir.DataType) -> None:
    value.const_value = ir.Tensor(_cast(np.ascontiguousarray(array), dtype), dtype=dtype, name=value.name)
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(array.shape)


def _cast(array: Array, dtype: ir.DataType) -> np.ndarray:
    return array.astype(dtype.numpy())


def name_parameters(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    """See to it that new weights are parameters.

    Where the file says which are, it says so of them too; and beside weights that are initializers, where a Constant of
    zeros is no weight, a Constant becomes one.
    """
    said = any(KIND in value.metadata_props for value in graph.initializers.values())
    lifted = any(value.is_initializer() for value in parameters(graph, REGISTRY).values())
    for value in values:
        if lifted and not value.is_initializer():
            value = lift_constant(graph, value)
        if said:
            value.metadata_props[KIND] = "PARAMETER"


def remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """A node that nothing reads, and then those that only it read."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    read = dict.fromkeys(value for value in node.inputs if value is not None)
    graph.remove(node, safe=True)
    for value in read:
        source = value.producer()
        if source is not None and source.graph is graph:
            remove_unread(graph, source)
        elif value.is_initializer() and not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[value.name or ""]


def described(value: ir.Value) -> str:
    """``fc.weight [5, 512]``"""
    tensor = constant_tensor(value)
    dims = () if tensor is None else tensor.shape.numpy()
    return f"{value.name} [{join_names(map(str, dims))}]"
