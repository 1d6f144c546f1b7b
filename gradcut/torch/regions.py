"""``torch.no_grad()`` regions of a traced program: taken into the graph, with marks where their values leave.

1. A region is a call of ``wrap_with_set_grad_enabled(False, ...)``: its nodes take the place of the call.
2. A float value of a region that is used outside, and that a parameter or an input has a part in, is marked there.
3. Where a region writes into a tensor from outside (``self.queue[i] = keys``), what goes into the region is marked
   too: what it wrote is read outside without leaving the region as a value of its own.
4. `detach` becomes a mark; on integers, literals and inside regions it is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from gradcut.errors import TorchExportError
from gradcut.torch.aliases import check_in_place, where, written
from gradcut.torch.operators import STOP_GRADIENT

_WRAP = torch.ops.higher_order.wrap_with_set_grad_enabled
_DETACH = {torch.ops.aten.detach.default, torch.ops.aten.detach_.default, torch.ops.aten.detach_copy.default}
_LITERALS = {torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default}
#: Key of a node's meta: the region that it is in.
REGION = "gradcut_region"


def take_in_regions(program: ExportedProgram) -> None:
    """Rule 1, in the program's graph and in those inside it (branches, bodies of loops)."""
    for module in graphs(program):
        _flatten(module)


def mark_regions(program: ExportedProgram) -> None:
    """Rules 2 to 4, likewise.

    Raises:
        TorchExportError: an in-place operator does what a file cannot say.
    """
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs if hasattr(spec.arg, "name")}
    for module in graphs(program):
        _mark(module, kinds if module is program.graph_module else {})
        check_in_place(module)
        module.graph.lint()
        module.recompile()
    _name_outputs(program)


def graphs(program: ExportedProgram) -> list[GraphModule]:
    """The program's graph, and those inside it."""
    return [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]


def is_float(node: Node) -> bool:
    """Whether a node gives one tensor that can carry a gradient."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


# --- 1. regions ----------------------------------------------------------------------------------------------


def _flatten(module: GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target is _WRAP:
            _take_in(module, node)


def _take_in(module: GraphModule, call: Node) -> None:
    inside, reference, *operands = call.args
    assert isinstance(reference, Node) and isinstance(reference.target, str)
    body = getattr(module, reference.target)
    _flatten(body)
    results = _inlined(module, call, body, operands, None if inside else call.name)
    for user in list(call.users):
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(call)
    if not reference.users:
        module.graph.erase_node(reference)
        delattr(module, reference.target)


def _inlined(module: GraphModule, call: Node, body: GraphModule, operands: Iterable[Any], region: str | None) -> Any:
    inputs = iter(operands)
    here: dict[Node, Any] = {}
    results: Any = ()
    with module.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                here[node] = next(inputs)
            elif node.op == "output":
                results = map_arg(node.args[0], lambda one: here[one])
            else:
                here[node] = copy = module.graph.node_copy(node, lambda one: here[one])
                copy.meta.setdefault(REGION, region)
                if node.op == "get_attr":
                    copy.target = _moved(module, body, str(node.target), call.name)
    return results


def _moved(module: GraphModule, body: GraphModule, name: str, prefix: str) -> str:
    """A branch of the body's, as an attribute of the module."""
    setattr(module, f"{prefix}_{name}", getattr(body, name))
    return f"{prefix}_{name}"


# --- 2. to 4. marks ------------------------------------------------------------------------------------------


def _mark(module: GraphModule, kinds: dict[str, InputKind]) -> None:
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _DETACH:
            _detached(module, node, kinds)
    varied = set(_varied(module, kinds))
    for region, nodes in _regions(module).items():
        targets = {one: node for node in nodes for one in written(node) if _region(one) != region and is_float(one)}
        _check_targets(targets, varied, kinds)
        if targets:
            _mark_entering(module, region, nodes, varied - targets.keys())
    for node in [node for node in varied if _region(node) is not None and is_float(node)]:
        outside = [user for user in node.users if _region(user) is None and user.target is not STOP_GRADIENT]
        _mark_uses(module, node, outside)


def _detached(module: GraphModule, node: Node, kinds: dict[str, InputKind]) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    literal = source.target in _LITERALS or kinds.get(source.name) == InputKind.CONSTANT_TENSOR
    if literal or not is_float(node) or _region(node) is not None:
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
    else:
        node.target = STOP_GRADIENT


def _varied(module: GraphModule, kinds: dict[str, InputKind]) -> Iterator[Node]:
    """What an input or a parameter has a part in; inside a branch, any operand may be one."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        here = node.op == "placeholder" and kinds.get(node.name, InputKind.USER_INPUT) in (
            InputKind.USER_INPUT,
            InputKind.PARAMETER,
        )
        if (here and is_float(node)) or any(operand in found for operand in node.all_input_nodes):
            found.add(node)
            yield node


def _regions(module: GraphModule) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in module.graph.nodes:
        if _region(node) is not None:
            found.setdefault(_region(node) or "", []).append(node)
    return found


def _region(node: Node) -> str | None:
    return node.meta.get(REGION)


def _check_targets(targets: dict[Node, Node], varied: set[Node], kinds: dict[str, InputKind]) -> None:
    for target, node in targets.items():
        given = kinds.get(target.name, InputKind.USER_INPUT if target.op == "placeholder" else None)
        if target in varied and given != InputKind.USER_INPUT:
            raise TorchExportError(
                f"{where(node)} changes {target.name} in place inside torch.no_grad(), so that gradients pass as if it "
                "had not; ONNX has no such thing: make a new tensor, such as x + (f(x) - x).detach()"
            )


def _mark_entering(module: GraphModule, region: str, nodes: list[Node], varied: set[Node]) -> None:
    entering = dict.fromkeys(operand for node in nodes for operand in node.all_input_nodes if _region(operand) is None)
    for value in entering:
        if value in varied and is_float(value):
            _mark_uses(module, value, [user for user in value.users if _region(user) == region], nodes[0])


def _mark_uses(module: GraphModule, value: Node, users: list[Node], before: Node | None = None) -> None:
    if not users:
        return
    place = module.graph.inserting_before(before) if before is not None else module.graph.inserting_after(value)
    with place:
        mark = module.graph.call_function(STOP_GRADIENT, (value,))
    mark.meta = {key: item for key, item in value.meta.items() if key != REGION}
    mark.meta.setdefault("nn_module_stack", {})
    for user in users:
        user.replace_input_with(value, mark)


def _name_outputs(program: ExportedProgram) -> None:
    """The signature calls each output by its node, which may be another one now."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if isinstance(spec.arg, TensorArgument):
            spec.arg = TensorArgument(name=node.name)
