"""Ifs whose condition nothing can change give way to the branch that runs; called by `import`.

Exporters write them around ranks and sizes: ``x.squeeze(1)`` of torch becomes an If on whether that axis is of size 1.
The condition is computed from constants, static shapes and single static dimensions, as `gradcut.passes.fold` does.

The results of an If keep their names; so do the values of the branch, but where another value has the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.dims import Dim
from gradcut.ops import Names
from gradcut.passes.fold import EVALUATED, constant, evaluated, static
from gradcut.subgraphs import inner_graphs, release

Array = np.ndarray[Any, Any]
#: Operators that hand elements of their first operands on as they are, by how many operands those are.
_MOVING = {"Gather": 1, "Slice": 1, "Squeeze": 1, "Unsqueeze": 1, "Identity": 1, "Reshape": 1, "Concat": None}
#: In a shape: a dimension that is not known.
_OPEN = -1


def take_known_branches(model: ir.Model) -> list[ir.Value]:
    """What such Ifs gave. Branches may hold further ones, and what follows may have a shape now: call again."""
    ifs = [node for node in model.graph.all_nodes() if _is_if(node)]
    found = _Known(model, [node.inputs[0] for node in ifs]) if ifs else {}
    known = [(node, found[node.inputs[0]]) for node in ifs if node.inputs[0] in found]
    names, taken, results = Names.of(model), Counter(_value_names(model.graph)), list[ir.Value]()
    for node, condition in known:
        if _is_there(node) and condition.size == 1:
            results += _inline(node, "then_branch" if condition.reshape(()) else "else_branch", names, taken)
    return results


def shapes_behind(model: ir.Model, results: Iterable[ir.Value]) -> dict[ir.Value, ir.Shape]:
    """The shapes of results and of all that is computed by them, taken away: a file may tell them by the other branch.

    torch's exporter does for scatter_reduce, whose tensors it makes flat in a branch that never runs.
    """
    behind = set(results)
    for node in model.graph:
        if any(value in behind for value in node.inputs):
            behind.update(node.outputs)
    said = {value: value.shape for value in behind if value.shape is not None}
    for value in said:
        value.shape = None
    return said


def _is_if(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "If")


def _is_there(node: ir.Node) -> bool:
    """Not within a branch that has gone: `release` takes the operands of what is inside."""
    return bool(node.inputs)


# --- what is known -----------------------------------------------------------------------------------------------


class _Known(dict[ir.Value | None, Array]):
    """Values that no input and no parameter can change, as far as `wanted` needs them.

    Attributes:
        partial: shapes of which a part is known; the rest is `_OPEN`.
    """

    def __init__(self, model: ir.Model, wanted: Iterable[ir.Value | None]) -> None:
        super().__init__()
        self.partial: dict[ir.Value, Array] = {}
        self.opset = model.opset_imports[""]
        needed = self._needed(wanted)
        for node in model.graph.all_nodes():
            if node in needed:
                self._compute(node)

    def _needed(self, wanted: Iterable[ir.Value | None]) -> set[ir.Node]:
        """The nodes that wanted values depend on, back to shapes; those of constants are known at once."""
        nodes, ahead = set[ir.Node](), list(wanted)
        while ahead:
            value = ahead.pop()
            if value is None or value in self:
                continue
            if (array := constant(value)) is not None:
                self[value] = array
            elif (node := value.producer()) is not None and node not in nodes and _is_shape_arithmetic(node):
                nodes.add(node)
                ahead += [] if node.op_type in ("Shape", "Size") else node.inputs
        return nodes

    def _compute(self, node: ir.Node) -> None:
        output = node.outputs[0]
        if (array := static(node)) is not None:
            self[output] = array
        elif node.op_type == "Shape":
            self._shape(node)
        elif all(value is None or value in self for value in node.inputs):
            self._keep(output, evaluated(node, [self._array(value) for value in node.inputs], self.opset))
        elif node.op_type in _MOVING:
            self._moved(node)

    def _array(self, value: ir.Value | None) -> Array | None:
        return None if value is None else self[value]

    def _keep(self, value: ir.Value, array: Array | None) -> None:
        if array is not None:
            self[value] = array

    def _shape(self, node: ir.Node) -> None:
        shape = None if node.inputs[0] is None else node.inputs[0].shape
        if shape is not None:
            start, end = (node.attributes[key].as_int() if key in node.attributes else None for key in ("start", "end"))
            dims = [dim if isinstance(dim, int) else _OPEN for dim in shape][start:end]
            self.partial[node.outputs[0]] = np.asarray(dims, dtype=np.int64)

    def _moved(self, node: ir.Node) -> None:
        """Elements of a shape of which a part is known."""
        first = len(node.inputs) if _MOVING[node.op_type] is None else 1
        given = [self.partial.get(v) if v in self.partial else self.get(v) for v in node.inputs[:first]]
        rest = [self.get(value) for value in node.inputs[first:]]
        missing = any(v is not None and a is None for v, a in zip(node.inputs, [*given, *rest], strict=True))
        result = None if missing else evaluated(node, [*given, *rest], self.opset)
        if result is not None and (result == _OPEN).any():
            self.partial[node.outputs[0]] = result
        else:
            self._keep(node.outputs[0], result)


def _is_shape_arithmetic(node: ir.Node) -> bool:
    return node.domain == "" and (node.op_type in EVALUATED or node.op_type in ("Shape", "Size"))


# --- a branch in the place of its If -----------------------------------------------------------------------------


def _inline(node: ir.Node, branch: str, names: Names, taken: Counter[str]) -> list[ir.Value]:
    graph, outer = node.attributes[branch].as_graph(), node.graph
    assert isinstance(outer, ir.Graph)
    nodes, results = list(graph), list(graph.outputs)
    for value in (value for one in nodes for value in one.outputs if value.name):
        if taken[value.name or ""] > 1:
            taken[value.name or ""] -= 1
            value.name = names.fresh(value.name or "")
    graph.outputs.clear()
    graph.remove(nodes)
    outer.insert_before(node, nodes)
    for given, result in zip(node.outputs, results, strict=True):
        _take_place(given, result)
    release(node)
    outer.remove(node)
    return results


def _take_place(given: ir.Value, result: ir.Value) -> None:
    """What a branch gives is what its If gave, by that name."""
    name = given.name
    result.type = result.type or given.type
    result.shape = _both(given.shape, result.shape)
    ir.convenience.replace_all_uses_with(given, result, replace_graph_outputs=True)
    given.name = None
    result.name = name or result.name


def _both(said: ir.Shape | None, found: ir.Shape | None) -> ir.Shape | None:
    if said is None or found is None:
        return said or found
    if len(said) != len(found):
        return found
    return ir.Shape([_more(a, b) for a, b in zip(said, found, strict=True)])


def _more(said: Dim, found: Dim) -> Dim:
    return found if isinstance(found, int) or (not isinstance(said, int) and said.value is None) else said


def _value_names(graph: ir.Graph) -> Iterator[str]:
    """The names of values, those of bodies included, each as often as it stands."""
    yield from (value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
    for node in graph:
        yield from (value.name for value in node.outputs if value.name)
        for body in inner_graphs(node):
            yield from _value_names(body)
