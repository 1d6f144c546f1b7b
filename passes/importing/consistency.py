"""What onnxruntime would refuse only when a session is made, said where the model comes in.

1. An operator of ONNX's with operands or attributes that it does not have at the model's opset.
2. Values of different types where the operator takes one.
3. Operands whose static shapes contradict each other.

All three are what onnxruntime itself asks of every node, so no file that runs is refused. What a file merely declares
is no evidence for the third: exporters write fixed batches into it. Only the graph's inputs, which onnxruntime holds
feeds to, and its weights are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir
from onnx_ir.passes.common._c_api_utils import call_onnx_api

from gradcut.errors import ImportModelError
from gradcut.text import join_names, nearest

#: An operator's own complaint; what it reports of a graph or of a function inside it is none of its operands'.
_SHAPE_ERROR = re.compile(
    r"\(op_type:\w+, node name: (?P<node>.*?)\): \[ShapeInferenceError\] (?!Inference error)(?P<why>.*)"
)
#: The first opset of Constant's value_int, value_floats and the like.
_VALUES_SINCE = 12
#: What OpSchema.max_input and max_output are for a variadic operand.
_MANY = 2**31 - 1
_TYPES = {
    getattr(onnx.defs.OpSchema.AttrType, kind.name): kind
    for kind in ir.AttributeType
    if hasattr(onnx.defs.OpSchema.AttrType, kind.name)
}
Formal = onnx.defs.OpSchema.FormalParameter


@dataclass(frozen=True)
class _Schema:
    """What of an operator's schema is asked here; onnx builds anew whatever is read from its own."""

    attributes: dict[str, ir.AttributeType]
    required: frozenset[str]
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    input_types: tuple[str, ...]
    output_types: tuple[str, ...]

    def types(self, node: ir.Node) -> Iterator[tuple[str, ir.Value]]:
        """The operands and results of a node that have a type variable, with it."""
        for values, variables in ((node.inputs, self.input_types), (node.outputs, self.output_types)):
            for index, value in enumerate(values):
                variable = variables[min(index, len(variables) - 1)] if variables else ""
                if variable and value is not None:
                    yield variable, value


@functools.cache
def _schema(op_type: str, opset: int) -> _Schema | None:
    """None for an operator that ONNX does not have; runtimes have some of their own."""
    try:
        found = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    variables = {constraint.type_param_str for constraint in found.type_constraints}
    attributes = found.attributes
    return _Schema(
        attributes={name: _TYPES[attribute.type] for name, attribute in attributes.items()},
        required=frozenset(name for name, attribute in attributes.items() if attribute.required),
        inputs=(found.min_input, found.max_input),
        outputs=(found.min_output, found.max_output),
        input_types=tuple(_variable(formal, variables) for formal in found.inputs),
        output_types=tuple(_variable(formal, variables) for formal in found.outputs),
    )


def _variable(formal: Formal, variables: set[str]) -> str:
    """The type that a formal parameter shares with others; empty where its values may differ."""
    mixed = formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic and not formal.is_homogeneous
    return formal.type_str if formal.type_str in variables and not mixed else ""


# --- operators -----------------------------------------------------------------------------------------------


def check_operators(model: ir.Model) -> None:
    """Case 1, at the opset of the file."""
    opset = model.opset_imports[""]
    for function in model.functions.values():
        for node in function.all_nodes():
            _check_operator(node, function.opset_imports.get("", opset))
    for node in model.graph.all_nodes():
        _check_operator(node, opset)


def _check_operator(node: ir.Node, opset: int) -> None:
    if node.op_type == "Constant":
        opset = max(opset, _VALUES_SINCE)  # onnxruntime takes them in older files, and exporters write them
    schema = _schema(node.op_type, opset) if node.domain in ("", "ai.onnx") else None
    if schema is None:
        return
    for what, values, (low, high) in (
        ("operands", node.inputs, schema.inputs),
        ("results", node.outputs, schema.outputs),
    ):
        if not low <= len(values) <= high:
            raise ImportModelError(f"{called(node)} has {len(values)} {what}; at opset {opset} {_range(low, high)}")
    _check_attributes(node, schema, opset)


def _check_attributes(node: ir.Node, schema: _Schema, opset: int) -> None:
    for name, attribute in node.attributes.items():
        if name.startswith("__") and name.endswith("__"):
            continue  # ONNX leaves these to whoever writes them
        wanted = schema.attributes.get(name)
        if wanted is None:
            known = join_names(nearest(name, schema.attributes) or sorted(schema.attributes)) or "none"
            raise ImportModelError(
                f"{called(node)} has an attribute {name!r}, which the operator does not have at opset {opset}; "
                f"it has {known}"
            )
        if not attribute.is_ref() and attribute.type != wanted:
            raise ImportModelError(
                f"{called(node)}: its attribute {name!r} is {attribute.type.name}, not {wanted.name}"
            )
    missing = schema.required - node.attributes.keys()
    if missing:
        raise ImportModelError(f"{called(node)} lacks its attribute {join_names(sorted(missing))}")


def _range(low: int, high: int) -> str:
    if high >= _MANY:
        return f"it takes {low} or more"
    return f"it takes {low}" if low == high else f"it takes {low} to {high}"


def called(node: ir.Node) -> str:
    """How a message names a node, be it without a name."""
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    return f"the {node.op_type} that gives {next((v.name for v in node.outputs if v.name), '')!r}"


# --- types ---------------------------------------------------------------------------------------------------


def check_types(model: ir.Model) -> None:
    """Case 2, after inference."""
    opset = model.opset_imports[""]
    for node in model.graph.all_nodes():
        schema = _schema(node.op_type, opset) if node.domain == "" else None
        if schema is not None:
            _check_types(node, schema)


def _check_types(node: ir.Node, schema: _Schema) -> None:
    bound: dict[str, ir.Value] = {}
    for variable, value in schema.types(node):
        if not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.UNDEFINED:
            continue
        first = bound.setdefault(variable, value)
        if first.dtype != value.dtype:
            raise ImportModelError(
                f"{called(node)}: {first.name!r} is {first.dtype} and {value.name!r} is {value.dtype}, which the "
                "operator takes of one type; put a Cast before it, or correct what the file declares"
            )


# --- shapes --------------------------------------------------------------------------------------------------


def check_shapes(proto: onnx.ModelProto) -> None:
    """Case 3, for a model whose nodes have names of their own, by ONNX's inference.

    Nodes with graphs inside and functions are left out: what holds there may change from call to call.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    bare.graph.ClearField("value_info")
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        _accuse(bare, str(error))


def check_model_shapes(model: ir.Model) -> None:
    """`check_shapes` of a model that was put together."""
    call_onnx_api(check_shapes, model)


def _accuse(bare: onnx.ModelProto, errors: str) -> None:
    nodes = {node.name: node for node in bare.graph.node if _is_plain(node)}
    for line in errors.splitlines():
        found = _SHAPE_ERROR.search(line)
        if found is not None and found["node"] in nodes and not _is_unfounded(nodes[found["node"]], found["why"]):
            node = nodes[found["node"]]
            if node.op_type == "Resize" and re.match(r"Number of elements of input '\w+' \(0\)", found["why"]):
                continue  # a length that is not known counts as 0 there
            raise ImportModelError(
                f"node {node.name!r} ({node.op_type}) cannot take {join_names(_operands(bare, node))}: {found['why']}; "
                "correct the model, or the shapes that its inputs declare"
            )


def _is_unfounded(node: onnx.NodeProto, why: str) -> bool:
    """Onnx's inference takes a number of sizes or scales that only run time knows for 0."""
    return node.op_type == "Resize" and "(0) must be same as" in why


def _is_plain(node: onnx.NodeProto) -> bool:
    return not node.domain and not any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _operands(bare: onnx.ModelProto, node: onnx.NodeProto) -> list[str]:
    """``'x' [2, N]`` for each operand, as far as its shape can be inferred."""
    graph = onnx.shape_inference.infer_shapes(bare).graph
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return [f"{name!r}{_dims(types.get(name))}" for name in node.input if name]


def _dims(tensor: onnx.TypeProto.Tensor | None) -> str:
    if tensor is None or not tensor.HasField("shape"):
        return ""
    dims = (dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim)
    return f" [{', '.join(dims)}]"
