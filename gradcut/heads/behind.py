"""What lies behind a replaced head: who reads it, the activation at its end, the shapes that the file says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.heads.constants import constant_operand, remove_unread
from gradcut.heads.find import ACTIVATIONS, MOVES, POOLS, Head, Step
from gradcut.heads.follow import Dims
from gradcut.parameters import constant_tensor
from gradcut.passes.propagate import main_values

Shapes = Mapping[str, Dims]
#: Operators that may follow an activation that is dropped, beside those that move or pool.
_COPIES = frozenset({"Identity", "Cast", "Dropout", "mark"})
#: Operators that a whole number among their operands tells sizes.
_SIZED = frozenset({"Reshape", "Expand", "Resize", "Tile", "Split", "Pad", "OneHot", "Slice", "ConstantOfShape"})


def readers(head: Head) -> list[ir.Node]:
    """Every node that what the layer gives reaches, in the order of the graph."""
    graph = head.layer.graph
    reached, stack = set[ir.Node](), list(head.layer.outputs)
    while stack:
        for node in stack.pop().consumers():
            if node not in reached:
                reached.add(node)
                stack += node.outputs
    return sorted(reached, key={node: place for place, node in enumerate(graph or ())}.get)  # type: ignore[arg-type]


def check_readers(head: Head, behind: Iterable[ir.Node]) -> None:
    """Raise where a node off the way to the output has something for each of the old classes.

    Raises:
        SpecError: a constant of that size, an operator of another domain, a body.
    """
    on_the_way = {step.node for step in head.behind} | {bias.node for bias in head.biases}
    for node in behind:
        if node in on_the_way:
            continue
        if node.graph is not head.layer.graph or (node.domain not in ("", "gradcut")):
            what = f"{node.domain}.{node.op_type}" if node.domain else f"{node.op_type}, in a body"
            raise SpecError(
                f"replace_head: {node.name!r} ({what}) reads what the head gives, and may count on its {head.classes} "
                "classes; take it out of the model first"
            )
        if _counts(node, head.classes):
            raise SpecError(
                f"replace_head: {node.name!r} ({node.op_type}) reads what the head gives, and names its {head.classes} "
                "classes in a shape; take it out of the model first"
            )
        constants = (constant_operand(node, index) for index in range(len(node.inputs)))
        fixed = next((one for one in constants if one is not None and one.size > 1), None)
        if fixed is not None:
            raise SpecError(
                f"replace_head: {node.name!r} ({node.op_type}) reads what the head gives with {fixed.size} numbers of "
                f"its own ({fixed.name}), which belong to the old classes; take it out of the model first"
            )


def _counts(node: ir.Node, classes: int) -> bool:
    """Whether a constant of sizes holds the number of classes."""
    if node.op_type not in _SIZED or classes == 1:
        return False
    tensors = (constant_tensor(value) for value in node.inputs if value is not None)
    return any(t is not None and t.dtype == ir.DataType.INT64 and (t.numpy() == classes).any() for t in tensors)


def activations(head: Head) -> list[Step]:
    """The Softmax, LogSoftmax or Sigmoid that nothing but moves, pools and copies follow."""
    found = list[Step]()
    for step in reversed(head.behind):
        if step.op_type in ACTIVATIONS:
            found.append(step)
        elif step.op_type not in _COPIES | MOVES | POOLS:
            break
    return found


def drop(graph: ir.Graph, steps: Iterable[Step]) -> None:
    """An Identity in place of each, under the same names; what only served it goes."""
    for step in steps:
        output = step.node.outputs[0]
        copy = ir.Node(
            "", "Identity", [step.source], outputs=[ir.Value(type=output.type, shape=output.shape)], name=step.node.name
        )
        graph.insert_before(step.node, copy)
        if output.is_graph_output():
            graph.outputs[:] = [copy.outputs[0] if value is output else value for value in graph.outputs]
        for user, index in list(output.uses()):
            user.replace_input_with(index, copy.outputs[0])
        copy.outputs[0].name, output.name = output.name, None
        copy.metadata_props.update(step.node.metadata_props)
        copy.outputs[0].metadata_props.update(output.metadata_props)
        remove_unread(graph, step.node)


def tell_shapes(
    graph: ir.Graph, behind: Collection[str], axes: Mapping[str, int], classes: int, infer: Callable[[], Shapes]
) -> None:
    """The file's shapes with the new number of classes where that is known to stand; elsewhere as inferred anew.

    Args:
        behind: the names of all values behind the head. axes: the class axis of those on the way to the output.
        infer: the shapes by name, from what the file then says.
    """
    known, said = main_values(graph), dict[str, ir.Shape | None]()
    for name in behind:
        if name not in known:
            continue  # what only a dropped activation read
        value = known[name]
        said[name], shape = value.shape, value.shape
        value.shape = None
        if shape is not None and name in axes:
            dims = list(shape)
            dims[axes[name]] = classes
            value.shape = ir.Shape(dims)
    inferred = infer()
    for value in graph.outputs:
        if value.name in said and value.shape is None:
            value.shape = _merged(said[value.name], inferred.get(value.name))


def _merged(said: ir.Shape | None, inferred: Dims | None) -> ir.Shape | None:
    """The file's names for open dimensions, the inferred numbers."""
    if inferred is None or said is None or len(said) != len(inferred):
        return None if inferred is None else ir.Shape(inferred)
    dims = zip(said, inferred, strict=True)
    return ir.Shape([new if new is not None or isinstance(old, int) else old for old, new in dims])
