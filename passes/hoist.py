"""Weights of the bodies of If, Loop and Scan, brought to the main graph; called by `import`.

There they are captured from outside, and are what a weight of the main graph is: a parameter, state or a constant. All
initializers are brought out, and the Constants of floats of rank 1 and above, which may turn out to be parameters.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import FLOATS, Names
from gradcut.subgraphs import body_tensors


def hoist_weights(model: ir.Model) -> None:
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
