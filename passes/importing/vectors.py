"""Products of a transposed matrix and a vector, written so that ONNX Runtime does not spoil them.

Its optimiser makes a FusedMatMul of Transpose and MatMul, whose kernel, where the second operand is a vector, reads the
matrix as if it lay transposed already. A column in the place of the vector is multiplied right.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.passes.importing.instead import put_instead


def is_transposed_by_vector(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "MatMul"):
        return False
    A, B = node.inputs
    producer = None if A is None else A.producer()
    while producer is not None and (producer.domain, producer.op_type) in (("", "Cast"), ("", "Identity")):
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    transposed = producer is not None and (producer.domain, producer.op_type) == ("", "Transpose")
    return transposed and B is not None and B.shape is not None and len(B.shape) == 1


def by_column(node: ir.Node, names: Names) -> None:
    """Multiply by a column, and take its axis away again."""
    b, output = Builder(names, prefix=f"{node.outputs[0].name}_"), node.outputs[0]
    A, B = node.inputs
    assert A is not None and B is not None
    column = b.op("Unsqueeze", B, b.ints([1]), dtype=B.dtype, shape=ir.Shape([*(B.shape or ()), 1]))
    product = b.op("MatMul", A, column, dtype=output.dtype)
    product.producer().metadata_props.update(node.metadata_props)  # type: ignore[union-attr]
    result = b.op("Squeeze", product, b.ints([-1]), dtype=output.dtype, shape=output.shape)
    put_instead(b, result, node, names)
