"""Opsets: a model at the one that the rules know, by ONNX's own converter, mended where that is silently wrong.

- Hardmax before 13 saw a matrix; the mask of a Dropout before 10 was of its input's type;
  GroupNormalization before 21 had a scale for each group; axes out of order are sorted; for other normalisations see
  `gradcut.passes.importing.old_norms`.
- PRelu before 7 had a slope for each channel, which from there broadcasts like any other operand.
- Upsample, and Resize before 11, read the places of `asymmetric`; nearest ones, the next place above where an axis
  shrinks and the one below where it grows, which today's Resize has one attribute for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx.helper
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common._c_api_utils import call_onnx_api

from gradcut.dialect import DIALECT, DOMAIN
from gradcut.dialect.custom import is_custom_function
from gradcut.errors import ImportModelError, UnsupportedModelError
from gradcut.ops import Builder, Names
from gradcut.passes.importing.old_norms import layer_norms_aside, spell_out_batch_norms, train_batch_norms
from gradcut.rules import REGISTRY

OLDEST, TARGET, NEWEST = 6, 21, 26


def is_kept(key: tuple[str, str, str]) -> bool:
    """Whether calls of a function stay calls: those of the dialect, and of operators with a rule of their own."""
    own = key[0] == DOMAIN and (key[1] in DIALECT or is_custom_function(key))
    return own or REGISTRY.knows(key[0], key[1])


def through(model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Apply a change of ONNX's own to the model without serialising its weights; metadata is put back by name."""
    before = model.graph
    try:
        changed = ir.from_proto(call_onnx_api(change, model))
    except Exception as error:
        raise ImportModelError(f"onnx could not take the model in: {error}") from error
    _restore(changed.graph, before)
    opsets = dict(changed.opset_imports)  # of a model they are those of its graph
    model.graph = changed.graph
    for key in [key for key in model.functions if key not in changed.functions and not is_kept(key)]:
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


# --- converting ----------------------------------------------------------------------------------------------------


def convert_to(model: ir.Model, target: int) -> None:
    """Bring a model, and the functions in it that are kept, to a later opset."""
    opset = model.opset_imports[""]
    if opset < 9:
        _refuse_batched_scans(model)
    nearest = _old_resizes(model) if opset <= 10 else {}
    if opset < 21 <= target:
        _widen_group_norms(model)
    if opset < 13:
        _flatten_hardmax(model)
        _sort_axes(model)
    if opset < 10:
        _cast_dropout_masks(model)
    training = spell_out_batch_norms(model) if opset < 14 else set()
    functions = dict(model.functions)
    model.functions.clear()
    with layer_norms_aside(model):
        through(model, functools.partial(onnx.version_converter.convert_version, target_version=target))
    train_batch_norms(model, training)
    model.functions.update({key: _convert_function(function, target) for key, function in functions.items()})
    if opset < 7:
        _align_slopes(model)
    if model.opset_imports[""] != target:
        raise ImportModelError(f"onnx's version converter left the model at opset {model.opset_imports['']}")
    for node in model.graph.all_nodes():
        if node.op_type == "Resize" and node.outputs[0].name in nearest:
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            node.attributes.add(ir.AttrString("nearest_mode", nearest[node.outputs[0].name]))


def _convert_function(function: ir.Function, target: int) -> ir.Function:
    """A function with a rule of its own is kept, at the model's opset. ONNX's converter takes graphs without types,
    but loses attributes that stand for those of the call."""
    ours = function.domain == DOMAIN and function.name in DIALECT
    if ours or function.opset_imports.get("", target) >= target:
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


def _refuse_batched_scans(model: ir.Model) -> None:
    """Before opset 9 a Scan had a batch axis; ONNX's converter takes that off the graph's own inputs."""
    for node in model.graph.all_nodes():
        if node.op_type == "Scan" and node.domain == "":
            raise UnsupportedModelError(
                f"node {node.name or node.outputs[0].name!r}: the Scan of opset 8 has a batch axis, which later ones "
                "do not have; export the model at opset 9 or later"
            )


# --- what the converter leaves wrong ---------------------------------------------------------------------------


def _old_resizes(model: ir.Model) -> dict[str | None, str]:
    """The rounding of every Resize and Upsample, by its output; one of both kinds is split into one of each first."""
    names, found = Names.of(model), dict[str | None, str]()
    for node in [node for node in model.graph.all_nodes() if node.op_type in ("Resize", "Upsample")]:
        scales = _constant_scales(node)
        mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
        rounds = node.op_type == "Resize" and mode == "nearest"
        unknown = rounds and scales is None
        if unknown or (rounds and scales is not None and scales.min() < 1 < scales.max()):
            grown = _split_resize(node, names)
            found[grown.outputs[0].name] = "floor"
        shrinks = unknown or (scales is not None and scales.min() < 1)
        found[node.outputs[0].name] = "ceil" if shrinks else "floor"
    return found


def _constant_scales(node: ir.Node) -> np.ndarray | None:
    """The scales of an old Resize, where the file says them."""
    if "scales" in node.attributes:
        return np.asarray(node.attributes["scales"].as_floats())
    scales = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if scales is None else ir.convenience.get_const_tensor(scales)
    return None if tensor is None or not tensor.size else tensor.numpy()


def _split_resize(node: ir.Node, names: Names) -> ir.Node:
    """`node` shrinks only, and the one made here, behind it, grows what it gives; their order is free.

    ONNX Runtime copies what keeps all its sizes, so where something shrank, another axis doubles where the rest grows.
    """
    b, y = Builder(names, prefix=f"{node.outputs[0].name}_"), node.outputs[0]
    uses, graph = list(y.uses()), node.graph
    assert isinstance(graph, ir.Graph)
    scales, tensor = node.inputs[1], ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
    if tensor is not None:
        array = tensor.numpy().astype(np.float32)
        shrunk, grown = b.constant(np.minimum(array, 1)), b.constant(np.append(np.float32(2), np.maximum(array, 1)))
    else:
        one = b.constant([1.0], ir.DataType.FLOAT)
        shrunk = b.op("Min", scales, one)
        shrinks = b.Cast(b.Less(b.ReduceMin(scales, keepdims=1), one), to=ir.DataType.FLOAT)
        grown = b.Concat(b.Add(shrinks, one), b.op("Max", scales, one), axis=0)
    node.replace_input_with(1, shrunk)
    graph.insert_before(node, b.nodes)
    behind = Builder(names, prefix=b.prefix)
    wide = behind.op("Unsqueeze", y, axes=[0], dtype=y.dtype)
    resized = behind.op("Resize", wide, grown, mode="nearest", dtype=y.dtype)
    result = behind.op("Gather", resized, behind.constant(0), axis=0, dtype=y.dtype, shape=y.shape)
    for user, index in uses:
        user.replace_input_with(index, result)
    graph.outputs[:] = [result if output is y else output for output in graph.outputs]
    y.name, result.name, y.shape = result.name, y.name, None
    graph.insert_after(node, behind.nodes)
    grower = resized.producer()
    assert grower is not None
    return grower


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


def _align_slopes(model: ir.Model) -> None:
    """Before opset 7 PRelu's slope was of one number a channel [C], or of one for all; behind it the spatial axes."""
    names = Names.of(model)
    for node in [node for node in model.graph.all_nodes() if node.op_type == "PRelu" and node.domain == ""]:
        b, X = Builder(names, prefix=f"{node.outputs[0].name}_"), node.inputs[0]
        assert X is not None and isinstance(node.graph, ir.Graph)
        spatial = b.Max(b.Sub(b.Shape(b.Shape(X)), b.ints([2])), b.ints([0]))
        shape = b.op("Concat", b.ints([-1]), b.Expand(b.ints([1]), spatial), axis=0)
        node.replace_input_with(1, b.Reshape(node.inputs[1], shape))
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


def _sort_axes(model: ir.Model) -> None:
    """Inference before opset 11 takes the axes of Squeeze and Unsqueeze to be in order."""
    for node in model.graph.all_nodes():
        if node.op_type in ("Squeeze", "Unsqueeze") and not node.domain and "axes" in node.attributes:
            node.attributes.add(ir.AttrInt64s("axes", sorted(node.attributes["axes"].as_ints())))


def _cast_dropout_masks(model: ir.Model) -> None:
    """Before opset 10 the mask was of the type of the data; from there on it is of booleans."""
    names = Names.of(model)
    for node in [node for node in model.graph.all_nodes() if node.op_type == "Dropout" and node.domain == ""]:
        mask, data = node.outputs[1] if len(node.outputs) > 1 else None, node.inputs[0]
        if mask is None or not mask.name or data is None:
            continue
        kind = data.dtype or ir.DataType.FLOAT
        cast = ir.Node(
            "", "Cast", [None], [ir.AttrInt64("to", int(kind))], outputs=[ir.Value(name=names.fresh("mask"))]
        )
        number = cast.outputs[0]
        ir.convenience.replace_all_uses_with(mask, number, replace_graph_outputs=True)
        cast.replace_input_with(0, mask)
        number.type, number.shape = ir.TensorType(kind), mask.shape
        mask.name, number.name, mask.type = number.name, mask.name, ir.TensorType(ir.DataType.BOOL)
        node.append(cast)
