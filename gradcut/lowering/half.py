"""A product of float16 that onnxruntime 1.31 dies of, when it optimises the graph, as a product of matrices."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.lowering import cost
from gradcut.lowering.registry import Call, rewriting
from gradcut.ops import Builder

_PASSED = ("Cast", "Identity")


def _cost(call: Call) -> float:
    return 0.0 if _is_deadly(call) else cost.NEVER


def _is_deadly(call: Call) -> bool:
    """Whether A is a Transpose of float16 with perm [1, 0, 2], cast or not, and B is a matrix; B constant is enough."""
    A, B = call[0], call[1]
    node = A.producer()
    while node is not None and node.domain == "" and node.op_type in _PASSED and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Transpose" or node.domain or "perm" not in node.attributes:
        return False
    half = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT16
    return half and list(node.attributes["perm"].as_ints()) == [1, 0, 2] and B.shape is not None and len(B.shape) == 2


@rewriting("MatMul", _cost, lambda call: 1.0)
def flattened(b: Builder, call: Call) -> tuple[ir.Value]:
    """[T, N, K] [K, M] as [T N, K] [K, M]."""
    A, B = call[0], call[1]
    assert B.shape is not None
    flat = b.op("Flatten", A, axis=2, shape=ir.Shape([None, B.shape[0]]))
    product = b.op("MatMul", flat, B, shape=ir.Shape([None, B.shape[1]]))
    return (b.op("Reshape", product, b.dims(b.dim(A, 0), b.dim(A, 1), b.dim(B, 1))),)
