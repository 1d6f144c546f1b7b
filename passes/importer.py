"""`import`: bring a model into the form that every later pass expects.

1. Functions are inlined, but the dialect's and those of operators with a rule of their own; marks come out of bodies.
2. Opsets 7 to 20 become 21; 21 to 26 stay; others are refused by number.
3. Initializers that are also graph inputs are initializers only.
4. Unnamed nodes get a name.
5. What torch stopped is marked, by what its exporter wrote into the metadata, see `gradcut.passes.torch_marks`.
6. Sequences that stand for a Split or a Concat are taken apart, see `gradcut.passes.sequences`.
7. Constants that are parameters become initializers under their output's name.
8. Types and shapes are inferred where the file does not say them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx.checker
import onnx.helper
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass
from onnx_ir.passes.common._c_api_utils import call_onnx_api

from gradcut.dialect import DIALECT, DOMAIN, MARK, declare
from gradcut.errors import ImportModelError, UnsupportedModelError
from gradcut.ops import Builder, Dim, Names
from gradcut.parameters import constant_tensor, decide
from gradcut.passes.base import Pass, register
from gradcut.passes.sequences import unpack_sequences
from gradcut.passes.torch_marks import mark_as_torch
from gradcut.rules import REGISTRY
from gradcut.text import nearest

OLDEST, TARGET, NEWEST = 7, 21, 26


@register
@dataclass(frozen=True)
class Import(Pass):
    """Normalise a model that was just loaded."""

    name: ClassVar[str] = "import"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        check_opset(model)
        check_dialect(model)
        declare(model)
        inline(model)
        if model.opset_imports[""] < TARGET:
            convert_to(model, TARGET)
        _unshadow(model.graph)
        name_nodes(model)
        mark_as_torch(model)
        declare(model)
        TopologicalSortPass()(model)
        unpack_sequences(model)
        _lift_constants(model)
        _infer(model)
        declare(model)
        return ir.passes.PassResult(model, modified=True)


def check_opset(model: ir.Model) -> None:
    """Refuse what cannot be brought to an opset that the rules know."""
    alias = model.opset_imports.pop("ai.onnx", 0)
    opset = model.opset_imports.setdefault("", alias)
    if not OLDEST <= opset <= NEWEST:
        raise UnsupportedModelError(
            f"the model is at opset {opset}; gradcut takes opsets {OLDEST} to {NEWEST}. "
            "Export it again, or convert it with onnx.version_converter."
        )


def check_dialect(model: ir.Model) -> None:
    """Refuse calls into our domain that mean nothing here, and a mark that would change its operand."""
    functions = {key[1]: function for key, function in model.functions.items() if key[0] == DOMAIN}
    for node in [node for graph in model.graphs() for node in graph if node.domain == DOMAIN]:
        if node.op_type not in DIALECT and node.op_type not in functions:
            known = ", ".join(nearest(node.op_type, DIALECT, 1) or [MARK])
            raise UnsupportedModelError(
                f"node {node.name!r}: there is no {DOMAIN}.{node.op_type}, and the file holds no such function; "
                f"nearest: {known}"
            )
        if node.op_type == MARK and (len(node.inputs) != 1 or node.inputs[0] is None or len(node.outputs) != 1):
            raise UnsupportedModelError(f"node {node.name!r}: {DOMAIN}.{MARK} takes one value and gives one")
    mark = functions.get(MARK)
    if mark is not None and not _is_identity(mark):
        raise UnsupportedModelError(
            f"the file defines {DOMAIN}.{MARK} as something else than Identity; a mark does not change its operand"
        )


def _is_identity(function: ir.Function) -> bool:
    nodes = list(function)
    return (
        len(nodes) == 1
        and (nodes[0].domain, nodes[0].op_type) == ("", "Identity")
        and list(nodes[0].inputs) == list(function.inputs)
        and list(nodes[0].outputs) == list(function.outputs)
    )


# --- functions -----------------------------------------------------------------------------------------------


def inline(model: ir.Model) -> None:
    """Put the bodies of functions in place of their calls; marks come out of them."""
    kept = [key for key in model.functions if _is_kept(key)]
    if len(kept) == len(model.functions):
        return
    for function in model.functions.values():
        if DOMAIN not in function.opset_imports and any(n.domain == DOMAIN for n in function):
            function.opset_imports[DOMAIN] = 1
    ids = [(key[0], key[1]) for key in kept]
    _through(model, lambda proto: onnx.inliner.inline_selected_functions(proto, ids, exclude=True))


def _is_kept(key: tuple[str, str, str]) -> bool:
    return (key[0] == DOMAIN and key[1] in DIALECT) or REGISTRY.knows(key[0], key[1])


def _through(model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Apply a change of ONNX's own to the model without serialising its weights; metadata is put back by name."""
    before = model.graph
    try:
        changed = ir.from_proto(call_onnx_api(change, model))
    except Exception as error:
        raise ImportModelError(f"onnx could not take the model in: {error}") from error
    _restore(changed.graph, before)
    opsets = dict(changed.opset_imports)  # of a model they are those of its graph
    model.graph = changed.graph
    for key in [key for key in model.functions if key not in changed.functions and not _is_kept(key)]:
        del model.functions[key]
    model.opset_imports.clear()
    model.opset_imports.update(opsets)


def _restore(graph: ir.Graph, before: ir.Graph) -> None:
    """Weights, which call_onnx_api turns into inputs, and the metadata that the C++ code drops."""
    own_inputs = {value.name for value in before.inputs}
    graph.inputs[:] = [value for value in graph.inputs if value.name in own_inputs]
    values = ir.convenience.create_value_mapping(graph)
    for name, initializer in before.initializers.items():
        value = graph.initializers.get(name) or values.get(name) or ir.Value(name=name)
        value.const_value = initializer.const_value
        value.type, value.shape = initializer.type, initializer.shape
        value.metadata_props.update(initializer.metadata_props)
        graph.register_initializer(value)
    old = {value.name: node for node in before.all_nodes() for value in node.outputs if value.name}
    for node in graph.all_nodes():
        source = next((old[value.name] for value in node.outputs if value.name in old), None)
        if source is not None:
            node.metadata_props.update(source.metadata_props)
            node.name = source.name or node.name
    graph.metadata_props.update(before.metadata_props)


# --- opsets --------------------------------------------------------------------------------------------------


def convert_to(model: ir.Model, target: int) -> None:
    """To a later opset by ONNX's converter, mended where that is silently wrong: Resize 10, Upsample 9, Hardmax,
    GroupNormalization 18."""
    opset = model.opset_imports[""]
    asymmetric = _old_resizes(model.graph) if opset <= 10 else set()
    if opset < 21 <= target:
        _widen_group_norms(model)
    if opset < 13:
        _flatten_hardmax(model)
    functions = dict(model.functions)
    model.functions.clear()
    _through(model, functools.partial(onnx.version_converter.convert_version, target_version=target))
    model.functions.update({key: _convert_function(function, target) for key, function in functions.items()})
    if model.opset_imports[""] != target:
        raise ImportModelError(f"onnx's version converter left the model at opset {model.opset_imports['']}")
    for node in model.graph.all_nodes():
        if node.op_type == "Resize" and node.outputs[0].name in asymmetric:
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            node.attributes.add(ir.AttrString("nearest_mode", "floor"))


def _convert_function(function: ir.Function, target: int) -> ir.Function:
    """A function with a rule of its own is kept, at the model's opset. ONNX's converter takes graphs without types,
    but loses attributes that stand for those of the call."""
    if function.domain == DOMAIN or function.opset_imports.get("", target) >= target:
        return function
    proto = ir.to_proto(function)
    inputs, outputs = ([onnx.ValueInfoProto(name=name) for name in names] for names in (proto.input, proto.output))
    graph = onnx.helper.make_graph(list(proto.node), proto.name, inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=list(proto.opset_import), functions=[])
    try:
        converted = onnx.version_converter.convert_version(model, target)
    except Exception as error:
        raise ImportModelError(f"function {function.name!r} could not be brought to opset {target}: {error}") from error
    for node in proto.node:
        _keep_references(node, converted.graph.node, function.name)
    proto.ClearField("node")
    proto.node.extend(converted.graph.node)
    proto.ClearField("opset_import")
    proto.opset_import.extend(converted.opset_import)
    return ir.serde.deserialize_function(proto)


def _keep_references(old: onnx.NodeProto, nodes: Iterable[onnx.NodeProto], function: str) -> None:
    references = [attribute for attribute in old.attribute if attribute.ref_attr_name]
    if not references:
        return
    new = next((node for node in nodes if list(node.output) == list(old.output)), None)
    for reference in references:
        place = next((a for a in (new.attribute if new is not None else ()) if a.name == reference.name), None)
        if place is None:
            raise UnsupportedModelError(
                f"function {function!r} hands its attribute {reference.ref_attr_name!r} to {old.op_type}, which takes "
                f"no {reference.name!r} at opset {TARGET}; export the model at opset {TARGET}"
            )
        place.CopyFrom(reference)


def _old_resizes(graph: ir.Graph) -> set[str | None]:
    return {node.outputs[0].name for node in graph.all_nodes() if node.op_type in ("Resize", "Upsample")}


def _widen_group_norms(model: ir.Model) -> None:
    """Before opset 21 scale and bias were of one number a group [G], from there of one a channel [C]."""
    names = Names.of(model)
    for node in [n for n in model.graph.all_nodes() if n.op_type == "GroupNormalization" and n.domain == ""]:
        b, X = Builder(names, prefix=f"{node.outputs[0].name}_"), node.inputs[0]
        assert X is not None and isinstance(node.graph, ir.Graph)
        groups = node.attributes["num_groups"].as_int()
        channels = b.Div(b.op("Shape", X, start=1, end=2), b.ints([groups]))
        wide = b.op("Concat", b.ints([groups]), channels, axis=0)
        for index in (1, 2):
            each = b.Expand(b.Unsqueeze(node.inputs[index], b.ints([1])), wide)
            node.replace_input_with(index, b.Reshape(each, b.ints([-1])))
        node.graph.insert_before(node, b.nodes)


def _flatten_hardmax(model: ir.Model) -> None:
    """Before opset 13 Hardmax saw its input as a matrix, split at `axis`; on a matrix both definitions agree."""
    names = Names.of(model)
    for node in [node for node in model.graph.all_nodes() if node.op_type == "Hardmax" and node.domain == ""]:
        x, y = node.inputs[0], node.outputs[0]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        flat_value, shape_value, matrix = (
            ir.Value(name=names.fresh(base)) for base in ("hardmax_flat", "hardmax_shape", f"{y.name}_matrix")
        )
        flat = ir.Node("", "Flatten", [x], [ir.AttrInt64("axis", axis)], outputs=[flat_value])
        shape = ir.Node("", "Shape", [x], outputs=[shape_value])
        node.prepend([flat, shape])
        node.replace_input_with(0, flat.outputs[0])
        node.attributes.add(ir.AttrInt64("axis", 1))
        back = ir.Node("", "Reshape", [None, shape.outputs[0]], outputs=[matrix])
        ir.convenience.replace_all_uses_with(y, back.outputs[0], replace_graph_outputs=True)
        back.replace_input_with(0, y)
        back.outputs[0].type, back.outputs[0].shape, y.shape = y.type, y.shape, None
        y.name, back.outputs[0].name = back.outputs[0].name, y.name
        node.append(back)


# --- graph ---------------------------------------------------------------------------------------------------


def _unshadow(graph: ir.Graph) -> None:
    graph.inputs[:] = [value for value in graph.inputs if value.name not in graph.initializers]


def name_nodes(model: ir.Model) -> None:
    """Give every node a name of its own."""
    names = Names()
    nodes = [node for graph in model.graphs() for node in graph]
    names.take(node.name for node in nodes)
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            node.name = names.fresh(node.name or f"{node.op_type}_{node.outputs[0].name}")
        seen.add(node.name)


def _lift_constants(model: ir.Model) -> None:
    for decision in decide(model.graph, REGISTRY).values():
        if decision.kind != "constant" and not decision.value.is_initializer():
            lift_constant(model.graph, decision.value)


def lift_constant(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Turn a Constant node's output into an initializer of the same name."""
    node, tensor = value.producer(), constant_tensor(value)
    assert node is not None and tensor is not None
    shape = ir.Shape(tensor.shape.numpy())
    own = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)  # the given model has the other, unnamed
    lifted = ir.Value(name=value.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=own)
    ir.convenience.replace_all_uses_with(value, lifted, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    graph.register_initializer(lifted)
    return lifted


def _infer(model: ir.Model) -> None:
    """Keep what the file says; the pass adds the rest, and leaves what it cannot tell unknown."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    known = {value: value.shape for node in model.graph for value in node.outputs}
    inferred = ir.from_proto(_inferred(model))
    for mine, theirs in zip(model.graphs(), inferred.graphs(), strict=True):
        _take_over_types(mine, theirs)
    for value, shape in known.items():
        if shape is not None and _says_more(shape, value.shape):
            value.shape = shape


def _take_over_types(graph: ir.Graph, inferred: ir.Graph) -> None:
    found = ir.convenience.create_value_mapping(inferred, include_subgraphs=False)
    for name, value in ir.convenience.create_value_mapping(graph, include_subgraphs=False).items():
        if name in found:
            value.type = value.type if found[name].type is None else found[name].type
            value.shape = value.shape if found[name].shape is None else found[name].shape


def _inferred(model: ir.Model) -> onnx.ModelProto:
    """ONNX's inference, first with its check of operand types, which is stricter than runtimes are.

    onnx_ir's pass leaves every type unknown where it fails; an unknown type would count as a float.
    """
    infer = functools.partial(onnx.shape_inference.infer_shapes, strict_mode=False, data_prop=True)
    try:
        return call_onnx_api(functools.partial(infer, check_type=True), model)
    except onnx.shape_inference.InferenceError:
        pass
    try:
        return call_onnx_api(functools.partial(infer, check_type=False), model)
    except onnx.shape_inference.InferenceError as error:
        raise ImportModelError(f"types or shapes of the model contradict each other: {error}") from error


def _says_more(said: ir.Shape, inferred: ir.Shape | None) -> bool:
    """Whether the file's own shape has names or numbers that inference lost."""
    if inferred is None or len(said) != len(inferred):
        return True
    return any(_is_unknown(b) and not _is_unknown(a) for a, b in zip(said, inferred, strict=True))


def _is_unknown(dim: Dim) -> bool:
    return not isinstance(dim, int) and dim.value is None
