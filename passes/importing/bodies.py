"""Bodies of If, Loop and Scan in the form that every later pass expects; called by `import`.

1. Their weights go to the main graph, where they are captured from outside, and are what a weight of the main graph
   is: a parameter, state or a constant. All initializers go, and the Constants of floats of rank 1 and above, which may
   turn out to be parameters.
2. An output is a value that a node of the body gives, and no other output is the same: ONNX Runtime's Scan gives zeros
   for a state that a body hands on as it is, and its If takes no value from outside for an output.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.dims import FLOATS
from gradcut.ops import Builder, Names
from gradcut.subgraphs import body_tensors, inner_graphs


def settle_bodies(model: ir.Model) -> None:
    """Both cases; names stay but where bodies use one twice."""
    _hoist_weights(model)
    names = Names.of(model)
    _own_outputs(model.graph, {}, names)


# --- 1. weights ------------------------------------------------------------------------------------------------


def _hoist_weights(model: ir.Model) -> None:
    """Names stay, but where two bodies use one, see `gradcut.subgraphs.body_tensors`."""
    found = body_tensors(model.graph)
    if not found:
        return
    names, constants = Names.of(model), list[ir.Node]()
    for name, value in found.items():
        if value.is_initializer():
            assert value.graph is not None
            value.graph.initializers.pop(value.name or "")
        elif not _may_be_weight(value):
            continue
        if value.name != name or name in model.graph.initializers:
            value.name = names.fresh(name)
        node = value.producer()
        if node is None:
            model.graph.register_initializer(value)
            continue
        assert isinstance(node.graph, ir.Graph)
        node.graph.remove(node)
        constants.append(node)
    if constants:
        model.graph.insert_before(model.graph[0], constants)


def _may_be_weight(value: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) > 0 and not value.is_graph_output()


# --- 2. outputs ------------------------------------------------------------------------------------------------


def _own_outputs(graph: ir.Graph, outside: dict[str | None, ir.Value], names: Names) -> None:
    """An Identity before each output that is not the body's own, in the bodies inside `graph`."""
    known = {**outside, **{value.name: value for value in (*graph.inputs, *graph.initializers.values())}}
    for node in graph:
        for body in inner_graphs(node):
            b, seen = Builder(names, prefix=f"{body.name}_"), set[ir.Value]()
            for index, value in enumerate(body.outputs):
                if value not in seen and _is_own(value, body, node):
                    seen.add(value)
                    continue
                source = value if _is_inside(value, body) else known.get(value.name, value)
                body.outputs[index] = b.op("Identity", source, dtype=source.dtype, shape=source.shape)
                body.outputs[index].type = source.type
            body.extend(b.nodes)
            _own_outputs(body, known, names)
        known.update((value.name, value) for value in node.outputs)


def _is_own(value: ir.Value, body: ir.Graph, node: ir.Node) -> bool:
    return _is_inside(value, body) and (value not in body.inputs or node.op_type != "Scan")


def _is_inside(value: ir.Value, body: ir.Graph) -> bool:
    producer = value.producer()
    return value in body.inputs if producer is None else producer.graph is body
