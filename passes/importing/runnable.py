"""Models of opsets 22 to 26 with an operator that ONNX Runtime has a CPU kernel for up to opset 21 only.

Those opsets gave such operators more types and nothing else. Where everything in the model means the same at opset 21,
the model is one of opset 21; else it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx.defs
import onnx_ir as ir

LAST = 21
#: Of onnxruntime 1.31; tests/passes/test_runnable.py holds it against the runtime.
UP_TO_21 = frozenset(
    "Bernoulli GlobalLpPool MaxRoiPool Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike "
    "RoiAlign".split()
)


def bring_to_kernels(model: ir.Model) -> bool:
    """Lower the opset of such a model; whether it was."""
    nodes = [node for node in model.graph.all_nodes() if node.domain == ""]
    if model.opset_imports[""] <= LAST or not any(node.op_type in UP_TO_21 for node in nodes):
        return False
    values = (value for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None)
    if model.functions or not all(map(_means_the_same, nodes)) or not _are_old(values):
        return False
    model.opset_imports[""] = LAST
    for graph in model.graphs():
        if "" in graph.opset_imports:
            graph.opset_imports[""] = LAST
    return True


def _means_the_same(node: ir.Node) -> bool:
    """Whether the operator was there, with these attributes and as many operands."""
    try:
        schema = onnx.defs.get_schema(node.op_type, LAST, "")
    except onnx.defs.SchemaError:
        return False
    known = set(node.attributes) <= set(schema.attributes)
    fits = len(node.inputs) <= schema.max_input and len(node.outputs) <= schema.max_output
    return known and fits and _takes(schema.inputs, node.inputs) and _takes(schema.outputs, node.outputs)


def _takes(formal: Sequence[onnx.defs.OpSchema.FormalParameter], values: Sequence[ir.Value | None]) -> bool:
    """Whether a bfloat16 is one of the types; most of the later definitions are there for it alone."""
    brain = [at for at, value in enumerate(values) if value is not None and value.dtype == ir.DataType.BFLOAT16]
    return all("tensor(bfloat16)" in formal[min(at, len(formal) - 1)].types for at in brain)


def _are_old(values: Iterable[ir.Value]) -> bool:
    """Whether opset 21 has the types; it came with those of four bits but FLOAT4E2M1."""
    return all(value.dtype is None or value.dtype <= ir.DataType.INT4 for value in values)
