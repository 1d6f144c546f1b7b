"""`import`: bring a model into the form that every later pass expects, by the steps of `gradcut.passes.importing`.

1. Functions are inlined, but the dialect's and those of operators with a rule of their own; marks come out of bodies.
2. Opsets 6 to 20 become 21; 21 to 26 stay where ONNX Runtime has kernels for them, see `runnable`; others are refused
   by number. Operators that ONNX defines by others, and that have no rule here, become those; ONNX Runtime's own that
   ONNX has by now are ONNX's.
3. Initializers that are also graph inputs are initializers only. A dimension is open where old exporters write it as
   -1, or give all that are open one name such as ``?``.
4. Unnamed nodes get a name, and outputs that ONNX Runtime insists on. Bodies are put in order, see `bodies`; an If
   that has no choice gives way to its branch, see `branches`.
5. What torch stopped is marked, by what its exporter wrote into the metadata, see `torch_marks`; so is what
   is scaled by the constant 0, see `relatives`.
6. Optionals of which is known what they hold give way to it, see `optionals`. Sequences that stand for a Split or a
   Concat are taken apart, see `sequences`, `known_sequences` and, for those that a Loop collects, `loop_sequences`.
7. Constants that are parameters become initializers under their output's name.
8. Types and shapes are inferred where the file does not say them, or inference would say them wrong, see `inference`.
9. What ONNX Runtime's kernel does not take of an operator is written out, see `written_out`.

What no gradient trains is refused first, see `kinds`; what contradicts itself, on the way, see `consistency`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from gradcut.dialect import DIALECT, DOMAIN, MARK, declare, is_transparent
from gradcut.dialect.custom import BACKWARD_OF, GRADIENTS, gradients_of, is_custom
from gradcut.dialect.relatives import TRANSPARENT
from gradcut.dims import Dim, static_dims
from gradcut.errors import UnsupportedModelError
from gradcut.ops import Names
from gradcut.parameters import constant_tensor, decide
from gradcut.passes.base import Pass, register
from gradcut.passes.importing.bodies import settle_bodies
from gradcut.passes.importing.branches import shapes_behind, take_known_branches
from gradcut.passes.importing.consistency import check_operators, check_types
from gradcut.passes.importing.contrib_names import use_onnx_names
from gradcut.passes.importing.contrib_types import MICROSOFT
from gradcut.passes.importing.convert import NEWEST, OLDEST, TARGET, convert_to
from gradcut.passes.importing.functions import inline, take_apart
from gradcut.passes.importing.inference import infer, put_back
from gradcut.passes.importing.kinds import check_kind
from gradcut.passes.importing.known_sequences import construct_sequences
from gradcut.passes.importing.layouts import time_first
from gradcut.passes.importing.loop_sequences import stack_sequences
from gradcut.passes.importing.old_attributes import OPERANDS_SINCE, retype_attributes
from gradcut.passes.importing.optionals import take_out_of_optionals
from gradcut.passes.importing.relatives import settle_relatives
from gradcut.passes.importing.runnable import bring_to_kernels
from gradcut.passes.importing.sequences import unpack_sequences
from gradcut.passes.importing.straight_through import pass_straight_through, take_onnx_pairs
from gradcut.passes.importing.torch_marks import mark_as_torch
from gradcut.passes.importing.written_out import write_out
from gradcut.rules import REGISTRY
from gradcut.text import nearest

#: How many outputs ONNX Runtime insists on, of its own operators.
_LEAST_OUTPUTS = {(MICROSOFT, "EmbedLayerNormalization"): 2}
#: What exporters call any dimension that is open.
_NAMELESS = frozenset({"", "?", "-1", "None"})


@register
@dataclass(frozen=True)
class Import(Pass):
    """Normalise a model that was just loaded."""

    name: ClassVar[str] = "import"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        check_kind(model)
        check_opset(model)
        check_dialect(model)
        check_operators(model)
        declare(model)
        inline(model)
        _open_dimensions(model)
        _leave_out_empty_scales(model)
        opset = model.opset_imports[""]
        if opset < TARGET:
            convert_to(model, TARGET)
        declare(model)  # the functions of marks too are at the new opset, or onnx inlines nothing
        use_onnx_names(model)
        take_apart(model)
        take_onnx_pairs(model)
        bring_to_kernels(model)
        time_first(model)
        _say_onesided(model)
        _unshadow(model.graph)
        name_nodes(model)
        _name_outputs(model)
        settle_bodies(model)
        mark_as_torch(model)
        settle_relatives(model)
        declare(model)
        TopologicalSortPass()(model)
        take_out_of_optionals(model)
        _take_branches(model)
        construct_sequences(model)
        unpack_sequences(model)
        stack_sequences(model)
        _lift_constants(model)
        infer(model)
        if opset < OPERANDS_SINCE and retype_attributes(model):
            infer(model)
        if write_out(model):
            infer(model)
        pass_straight_through(model)
        check_types(model)
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
        if is_transparent(node):
            check_transparent(node)
    for op_type, function in functions.items():
        if TRANSPARENT.get(op_type) is not None and not _is_identity(function):
            raise UnsupportedModelError(
                f"the file defines {DOMAIN}.{op_type} as something else than Identity; "
                "a mark does not change its operand"
            )


def check_transparent(node: ir.Node) -> None:
    """Refuse a call of a mark, or of a relative of it, that does not have its operands."""
    if is_custom(node):
        _check_custom(node)
        return
    count = TRANSPARENT[node.op_type]
    if len(node.inputs) != count or None in node.inputs or len(node.outputs) != 1:
        takes = "one value" if count == 1 else f"{count} values"
        named = f"node {node.name!r}" if node.name else f"the node that gives {node.outputs[0].name!r}"
        raise UnsupportedModelError(f"{named}: {DOMAIN}.{node.op_type} takes {takes} and gives one")


def _check_custom(node: ir.Node) -> None:
    known = {BACKWARD_OF, GRADIENTS} <= node.attributes.keys()
    if not known or None in node.inputs or not all(0 <= i < len(node.inputs) for i in gradients_of(node)):
        raise UnsupportedModelError(
            f"node {node.name!r} ({node.op_type}) takes the outputs and inputs of a region, names its backward, and "
            "lists in gradients which of the inputs get one"
        )


def _is_identity(function: ir.Function) -> bool:
    nodes = list(function)
    return (
        len(nodes) == 1
        and (nodes[0].domain, nodes[0].op_type) == ("", "Identity")
        and list(nodes[0].inputs) == list(function.inputs[:1])
        and list(nodes[0].outputs) == list(function.outputs)
    )


# --- graph ---------------------------------------------------------------------------------------------------


def _unshadow(graph: ir.Graph) -> None:
    graph.inputs[:] = [value for value in graph.inputs if value.name not in graph.initializers]


def _open_dimensions(model: ir.Model) -> None:
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
            if value.shape is not None and any(_is_open(dim) for dim in value.shape):
                value.shape = ir.Shape([None if _is_open(dim) else dim for dim in value.shape])


def _leave_out_empty_scales(model: ir.Model) -> None:
    """Resize 11 had to be given scales beside sizes, of no element; onnx's inference takes one of the two."""
    for node in [node for node in model.graph.all_nodes() if node.op_type == "Resize" and node.domain == ""]:
        scales, sizes = (*node.inputs, None, None, None, None)[2:4]
        if scales is not None and sizes is not None and static_dims(scales.shape) == (0,):
            node.replace_input_with(2, None)


def _is_open(dim: Dim) -> bool:
    """No size, and no name that would say which other dimension is as long."""
    return dim < 0 if isinstance(dim, int) else dim.value in _NAMELESS


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


@contextlib.contextmanager
def nodes_named(model: ir.Model) -> Iterator[None]:
    """Nodes have the names that import gives them, so that ``value->node`` finds them in a model as it was given."""
    before = {node: node.name for node in model.graph.all_nodes()}
    name_nodes(model)
    try:
        yield
    finally:
        for node, name in before.items():
            node.name = name


def _say_onesided(model: ir.Model) -> None:
    """Half a spectrum is what STFT gives by default; onnx's inference takes it for a whole one where it is not said."""
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type == "STFT" and "onesided" not in node.attributes:
            node.attributes.add(ir.AttrInt64("onesided", 1))
            shape = node.outputs[0].shape
            if shape is not None and len(shape) == 4:
                node.outputs[0].shape = ir.Shape([dim if axis != 2 else None for axis, dim in enumerate(shape)])


def _name_outputs(model: ir.Model) -> None:
    """An output that a node leaves out and its operator must have: behind the others, serialising would drop it."""
    nodes = [node for node in model.graph.all_nodes() if (node.domain, node.op_type) in _LEAST_OUTPUTS]
    names = Names.of(model) if nodes else Names()
    for node in nodes:
        least = _LEAST_OUTPUTS[node.domain, node.op_type]
        node.resize_outputs(max(least, len(node.outputs)))
        for index, value in enumerate(node.outputs[:least]):
            value.name = value.name or names.fresh(f"{node.outputs[0].name}_{index}")


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


def _take_branches(model: ir.Model) -> None:
    if any((node.domain, node.op_type) == ("", "If") for node in model.graph.all_nodes()):
        infer(model)
        while results := take_known_branches(model):
            said = shapes_behind(model, results)
            infer(model)
            put_back(said)
