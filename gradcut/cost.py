"""Estimates over a graph: floating-point operations, backward nodes, bytes that the forward saves for the backward.

A symbolic dimension counts as `NOMINAL`; ratios between two graphs of one model hardly depend on it.

What a node does includes its bodies: of an If the dearer branch, of a Loop and a Scan the body as often as it is run.
That is the length of what a Scan slices, and the count of a Loop where that is constant, though a condition may end it
before; else `NOMINAL` times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import onnx_ir as ir

from gradcut.dialect import is_transparent
from gradcut.subgraphs import captured, every_node, inner_graphs

NOMINAL = 8
ADJOINT = "gradcut.adjoint"
_FREE = frozenset(
    """Constant Shape Size Reshape Squeeze Unsqueeze Flatten Identity Transpose Concat Slice Split Gather Expand
    Cast CastLike ConstantOfShape Range Pad Where TakeKept PlaceKept""".split()
)


@dataclass(frozen=True)
class Cost:
    """What one step costs, as estimated from shapes.

    Attributes:
        flops: multiplications and additions, forward and backward.
        backward_nodes: nodes that exist only for gradients, those in bodies too.
        saved_bytes: forward activations (not parameters, not inputs) that a backward node reads.
    """

    flops: int
    forward_flops: int
    backward_nodes: int
    saved_bytes: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def is_backward(node: ir.Node) -> bool:
    """Whether `differentiate` made the node, or a lowering of one that it made."""
    return ADJOINT in node.metadata_props


def estimate(graph: ir.Graph) -> Cost:
    """The cost of a differentiated graph."""
    nodes = list(graph)
    backward = _backward_nodes(graph)
    forward_flops = sum(flops(node) for node in nodes if node not in backward)
    return Cost(
        flops=forward_flops + sum(flops(node) for node in backward),
        forward_flops=forward_flops,
        backward_nodes=sum(node.op_type != "Constant" for node in every_node(backward)),
        saved_bytes=sum(_nbytes(value) for value in _saved(nodes, backward)),
    )


def by_adjoint(graph: ir.Graph) -> dict[str, int]:
    """FLOPs by what a backward node serves, ``node:operand``; constants and shapes serve all and none."""
    found: dict[str, int] = {}
    for node in graph:
        if is_backward(node) and node.op_type not in ("Constant", "Shape", "Size"):
            label = node.metadata_props[ADJOINT]
            found[label] = found.get(label, 0) + flops(node)
    return found


def _backward_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Tagged nodes, and what adds their results up: everything that depends on a tagged node."""
    backward: set[ir.Node] = set()
    for node in graph:
        if is_backward(node) or any(value is not None and value.producer() in backward for value in _read(node)):
            backward.add(node)
    return backward


def _saved(nodes: Iterable[ir.Node], backward: set[ir.Node]) -> set[ir.Value]:
    saved: set[ir.Value] = set()
    for node in backward:
        for value in _read(node):
            origin = _origin(value)
            producer = origin.producer() if origin is not None else None
            if origin is not None and producer is not None and producer not in backward and _is_activation(producer):
                saved.add(origin)
    return saved


def _read(node: ir.Node) -> list[ir.Value | None]:
    """What a node reads, also inside it."""
    return [*node.inputs, *captured(inner_graphs(node))]


def _origin(value: ir.Value | None) -> ir.Value | None:
    """What holds the memory of a value: `emit` strips marks, and runtimes make nothing of an Identity."""
    while value is not None and (node := value.producer()) is not None and _is_alias(node):
        value = node.inputs[value.index() or 0]
    return value


def _is_alias(node: ir.Node) -> bool:
    return node.op_type == "Identity" or is_transparent(node)


def _is_activation(node: ir.Node) -> bool:
    return node.op_type not in ("Constant", "Shape", "Size")


def flops(node: ir.Node) -> int:
    """Operations of one node: 2 m n k of a product, one an element of anything else that computes, bodies included."""
    if node.op_type in _BODIES and node.domain == "":
        return _turns(node) * max((sum(map(flops, graph)) for graph in inner_graphs(node)), default=0)
    if node.domain not in ("", "gradcut", "com.microsoft") or node.op_type in _FREE or is_transparent(node):
        return 0
    counter = _PRODUCTS.get(node.op_type)
    if counter is not None:
        return counter(node)
    return max((_size(value) for value in (*node.inputs, *node.outputs) if value is not None), default=0)


_BODIES = frozenset({"If", "Loop", "Scan"})
#: From here on a count is an exporter's way to leave it to the condition.
_ENDLESS = 2**31 - 1


def _turns(node: ir.Node) -> int:
    """How often a body is run, as far as that is known."""
    if node.op_type == "If":
        return 1
    if node.op_type == "Scan":
        count = node.attributes["num_scan_inputs"].as_int()
        axes = node.attributes["scan_input_axes"].as_ints() if "scan_input_axes" in node.attributes else [0]
        dims = _dims(node.inputs[len(node.inputs) - count])
        return dims[axes[0]] if dims else NOMINAL
    return _turns_of_loop(node)


def _turns_of_loop(node: ir.Node) -> int:
    count = node.inputs[0]
    tensor = None if count is None else ir.convenience.get_const_tensor(count)
    if tensor is not None and tensor.numpy().size == 1:
        turns = int(tensor.numpy().reshape(()))
        return max(0, turns) if turns < _ENDLESS else NOMINAL
    measured = None if count is None else count.producer()
    if measured is not None and measured.op_type == "Size" and measured.inputs[0] is not None:
        looped = measured.inputs[0].producer()  # whose backward this is: its turns were counted
        if looped is not None and looped.op_type == "Loop":
            return _turns_of_loop(looped)
    return NOMINAL


def _gemm(node: ir.Node) -> int:
    inner = _dims(node.inputs[0])
    if not inner:
        return 0
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
    bias = _size(node.outputs[0]) if len(node.inputs) > 2 else 0
    return 2 * _size(node.outputs[0]) * inner[0 if transposed else -1] + bias


def _matmul(node: ir.Node) -> int:
    inner = _dims(node.inputs[0])
    return 2 * _size(node.outputs[0]) * inner[-1] if inner else 0


def _conv(node: ir.Node) -> int:
    """Each output element takes one kernel: C/group * prod(K) products."""
    bias = _size(node.outputs[0]) if len(node.inputs) > 2 else 0
    return 2 * _size(node.outputs[0]) * math.prod(_dims(node.inputs[1])[1:]) + bias


def _conv_transpose(node: ir.Node) -> int:
    return 2 * _size(node.inputs[0]) * math.prod(_dims(node.inputs[1])[1:])


def _conv_input_grad(node: ir.Node) -> int:
    return 2 * _size(node.inputs[0]) * math.prod(_dims(node.inputs[1])[1:])


def _conv_weight_grad(node: ir.Node) -> int:
    return 2 * _size(node.inputs[0]) * math.prod(_dims(node.outputs[0])[1:])


_PRODUCTS = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "ConvInputGrad": _conv_input_grad,
    "ConvWeightGrad": _conv_weight_grad,
}


def _dims(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        return []
    return [dim if isinstance(dim, int) else NOMINAL for dim in value.shape]


def _size(value: ir.Value | None) -> int:
    dims = _dims(value)
    return math.prod(dims) if value is not None and value.shape is not None else 0


def _nbytes(value: ir.Value) -> int:
    return math.ceil(_size(value) * (value.dtype.itemsize if value.dtype is not None else 4))
