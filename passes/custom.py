"""Put a user's own graph in the place of the derivative of a region.

1. The region is what computes the outputs from the inputs. Nothing else that a run gives may reach the outputs round
   the inputs, and nothing within may be read from outside.
2. The graph is imported, and brought to the model's opset, or the model to its. Its inputs are cotangents
   ``<output>_grad`` and values of the region by their names, its outputs the cotangents ``<input>_grad``.
3. It becomes a function of the model, and an opaque node behind the region names it, see `gradcut.dialect.custom`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from gradcut.dialect import DOMAIN, declare
from gradcut.dialect.custom import BACKWARD, PREFIX, forward_function, new_custom
from gradcut.dims import is_float
from gradcut.errors import SpecError
from gradcut.ops import Builder, Names
from gradcut.passes.importer import Import
from gradcut.passes.importing.convert import TARGET, convert_to
from gradcut.passes.importing.functions import inline
from gradcut.passes.propagate import checked_names, main_values
from gradcut.passes.settings import nodes_behind
from gradcut.passes.stop_gradient import FUNCTIONS_SINCE
from gradcut.passes.typed import typed_values
from gradcut.places import read_as
from gradcut.subgraphs import Copy, captured, every_node, inner_graphs
from gradcut.text import join_names

SUFFIX = "_grad"
WHAT = "custom_gradient"


@dataclass(frozen=True)
class Region:
    """What computes `outputs` from `inputs`, by name: `nodes`, those of graphs inside them too.

    An input that marks and relatives alone read goes by its name, and is what comes out of them.
    """

    inputs: dict[str, ir.Value]
    outputs: dict[str, ir.Value]
    nodes: frozenset[ir.Node]


def replace_gradient(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], gradient: ir.Model) -> None:
    """Replace the gradient of a region; an error changes nothing of the model."""
    _names(model, inputs, outputs)
    region = region_of(model, inputs, outputs)
    Import()(gradient)
    given = _matched(model, region, gradient)
    _bring_to_one_opset(model, gradient)
    region = region_of(model, inputs, outputs)  # converting makes the graph anew
    name = _free_name(model, outputs[0])
    backward = _function(f"{name}{BACKWARD}", region, gradient, model.opset_imports[""])
    model.functions[backward.identifier()] = backward
    forward = forward_function(name, len(outputs), len(inputs), model.opset_imports[""])
    model.functions[forward.identifier()] = forward
    for domain, version in gradient.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
    _put_in(model, region, name, given)
    model.ir_version = max(model.ir_version or 0, FUNCTIONS_SINCE)
    declare(model)


# --- 1. the region ---------------------------------------------------------------------------------------------------


def _names(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    checked_names(f"{WHAT}: inputs", inputs, model)
    checked_names(f"{WHAT}: outputs", outputs, model)
    both = sorted({*inputs} & {*outputs})
    if both:
        raise SpecError(f"{WHAT}: {join_names(both)} is both an input and an output of the region")


def region_of(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> Region:
    """The region between values of the main graph.

    Raises:
        SpecError: inputs and outputs do not separate it from the rest.
    """
    known = main_values(model.graph)
    ins, outs = [read_as(known[name]) for name in inputs], [known[name] for name in outputs]
    nodes, reached = _behind(outs, ins)
    _check_inputs(model.graph, ins, outs, reached)
    inside = frozenset(every_node(nodes))
    _check_escapes(ins, outs, inside)
    return Region(dict(zip(inputs, ins, strict=True)), dict(zip(outputs, outs, strict=True)), inside)


def _behind(outputs: Sequence[ir.Value], stop: Collection[ir.Value]) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes that compute values from others, and all that they read."""
    nodes: dict[ir.Node, None] = {}
    reached, stack = set(outputs), list(outputs)
    while stack:
        node = stack.pop().producer()
        if node is None or node in nodes:
            continue
        nodes[node] = None
        read = [value for value in (*node.inputs, *captured(inner_graphs(node))) if value is not None]
        stack += [value for value in read if value not in stop]
        reached.update(read)
    return list(nodes), reached


def _check_inputs(
    graph: ir.Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], reached: Collection[ir.Value]
) -> None:
    unread = [value.name or "" for value in inputs if value not in reached]
    if unread:
        listed = join_names(value.name or "" for value in outputs)
        raise SpecError(f"{WHAT}: {join_names(unread)} leads to none of {listed} but through another input")
    round_them = [v.name or "" for v in graph.inputs if _is_data(v) and v in reached and v not in inputs]
    if round_them:
        raise SpecError(
            f"{WHAT}: {join_names(round_them)} leads to the outputs round the inputs; name it among the inputs, or a "
            "value behind it"
        )


def _is_data(value: ir.Value) -> bool:
    return is_float(value) and not value.is_initializer()


def _check_escapes(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], inside: Collection[ir.Node]) -> None:
    """What the region computes from its inputs is read outside by way of its outputs alone, and never by its inputs."""
    varied = _ahead(inputs, inside)
    for value in (value for node in inside for value in node.outputs if value in varied and value not in outputs):
        user = next((node for node, _ in value.uses() if node not in inside), None)
        if is_float(value) and (user is not None or (value.is_graph_output() and value.graph is outputs[0].graph)):
            where = f"by node {user.name!r} ({user.op_type})" if user is not None else "as a graph output"
            raise SpecError(
                f"{WHAT}: {value.name!r} is read outside the region too, {where}; name it among the outputs"
            )
    readers = {node for value in outputs for node, _ in value.uses() if node not in inside}
    for value in inputs:
        if readers & set(every_node(nodes_behind(value))):
            raise SpecError(f"{WHAT}: the input {value.name!r} is itself computed from an output of the region")


def _ahead(values: Sequence[ir.Value], inside: Collection[ir.Node]) -> set[ir.Value]:
    """What nodes of a region compute from values; a node of a graph inside gives what the node around it gives."""
    found, stack = set(values), list(values)
    while stack:
        for node, _ in stack.pop().uses():
            fresh = [value for value in node.outputs if node in inside and value not in found]
            found.update(fresh)
            stack += fresh
    around = {inner: node for node in inside for graph in inner_graphs(node) for inner in graph.all_nodes()}
    for inner, node in around.items():
        if found & set(inner.outputs):
            found.update(node.outputs)
    return found


# --- 2. the graph ----------------------------------------------------------------------------------------------------


def _matched(model: ir.Model, region: Region, gradient: ir.Model) -> list[int]:
    """Which inputs of the region get a cotangent; the graph's inputs and outputs fit in name, dtype and shape."""
    named = {**region.inputs, **region.outputs}
    known = typed_values(model, list(named.values()))
    typed = {name: known[value] for name, value in named.items()}
    seeds = {f"{name}{SUFFIX}": typed[name] for name in region.outputs}
    results = {f"{name}{SUFFIX}": typed[name] for name in region.inputs}
    taken = {**typed, **seeds}
    for value in gradient.graph.inputs:
        _check_port("input", value, taken)
    for value in gradient.graph.outputs:
        _check_port("output", value, results)
    if not any(value.name in seeds for value in gradient.graph.inputs):
        raise SpecError(f"{WHAT}: the gradient reads none of {join_names(seeds)}, the cotangents of the outputs")
    given = {value.name for value in gradient.graph.outputs}
    return [number for number, name in enumerate(region.inputs) if f"{name}{SUFFIX}" in given]


def _check_port(kind: str, port: ir.Value, known: dict[str, ir.Value]) -> None:
    value = known.get(port.name or "")
    if value is None:
        raise SpecError(f"{WHAT}: the gradient's {kind} {port.name!r} is none of {join_names(known)}")
    if port.dtype is not None and value.dtype is not None and port.dtype != value.dtype:
        raise SpecError(
            f"{WHAT}: the gradient's {kind} {port.name!r} is {port.dtype.name}, and {value.name!r} {value.dtype.name}"
        )
    if port.shape is None or value.shape is None:
        return
    pairs = zip(port.shape, value.shape, strict=False)
    if len(port.shape) != len(value.shape) or any(
        a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int)
    ):
        raise SpecError(
            f"{WHAT}: the gradient's {kind} {port.name!r} has the shape {_text(port)}, and {value.name!r} "
            f"{_text(value)}"
        )


def _text(value: ir.Value) -> str:
    return "[" + ", ".join(str(dim) for dim in value.shape or ()) + "]"


def _bring_to_one_opset(model: ir.Model, gradient: ir.Model) -> None:
    newest = max(model.opset_imports[""], gradient.opset_imports[""], TARGET)
    if model.opset_imports[""] < newest:
        declare(model)
        inline(model)
        convert_to(model, newest)
    if gradient.opset_imports[""] < newest:
        convert_to(gradient, newest)


# --- 3. the function and the node ------------------------------------------------------------------------------------


def _free_name(model: ir.Model, output: str) -> str:
    base = f"{PREFIX}{re.sub(r'[^0-9A-Za-z_]', '_', output)}"
    return Names(key[1] for key in model.functions).fresh(base)


def _function(name: str, region: Region, gradient: ir.Model, opset: int) -> ir.Function:
    """The gradient as a function of dY, Y and X; its weights are Constants, for functions hold none."""
    count, size = len(region.outputs), len(region.inputs)
    signature = [
        ir.Value(name=f"{what}{at}") for what, n in (("dY", count), ("Y", count), ("X", size)) for at in range(n)
    ]
    by_name = dict(zip((*region.outputs, *region.inputs), signature[count:], strict=True))
    by_name |= {f"{name}{SUFFIX}": seed for name, seed in zip(region.outputs, signature, strict=False)}
    b = Builder(Names(value.name for value in signature), prefix="own_")
    copy = Copy(b.names, {value: by_name[value.name or ""] for value in gradient.graph.inputs})
    for value in gradient.graph.initializers.values():
        copy.values[value] = b.op("Constant", value=value.const_value, dtype=value.dtype, shape=value.shape)
    b.nodes += copy.nodes(gradient.graph)
    results = {value.name: copy.of(value) for value in gradient.graph.outputs}
    wanted = [f"{name}{SUFFIX}" for name in region.inputs if f"{name}{SUFFIX}" in results]
    outputs = [b.op("Identity", results[one], name=f"dX{at}") for at, one in enumerate(wanted)]
    imports = {**gradient.opset_imports, "": opset}
    graph = ir.Graph(signature, outputs, nodes=b.nodes, opset_imports=imports, name=name)
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def _put_in(model: ir.Model, region: Region, name: str, gradients: Sequence[int]) -> None:
    names = Names.of(model)
    outputs = list(region.outputs.values())
    node = new_custom(name, outputs, list(region.inputs.values()), gradients)
    node.name = names.fresh(f"{outputs[0].name}_{name}")
    for value, output in zip(outputs, node.outputs, strict=True):
        output.name = names.fresh(f"{value.name}_custom")
        for user, index in [use for use in value.uses() if use[0] not in region.nodes and use[0] is not node]:
            user.replace_input_with(index, output)
        if value.is_graph_output():
            model.graph.outputs[:] = [output if one is value else one for one in model.graph.outputs]
            value.name, output.name = output.name, value.name
    model.graph.append(node)
    TopologicalSortPass()(model)
