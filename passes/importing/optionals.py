"""Optionals that surely hold something, or nothing, give way to what they hold; called by `import`.

1. OptionalGetElement of an Optional of a value, or of what is no optional: that value.
2. OptionalHasElement of these: true; of an Optional of nothing, or of no operand: false.

Optionals that an If, a Loop or the caller gives stay.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from gradcut.ops import Builder, Names
from gradcut.passes.importing.inference import infer
from gradcut.passes.importing.instead import put_instead


def take_out_of_optionals(model: ir.Model) -> None:
    """Both cases, in bodies too."""
    nodes = (node for node in model.graph.all_nodes() if not node.domain and node.op_type.startswith("Optional"))
    found = [node for node in nodes if node.op_type != "Optional"]
    if not found:
        return
    infer(model)  # which values are no optionals
    names = Names.of(model)
    read = dict.fromkeys(value.producer() for node in found for value in node.inputs if value is not None)
    for node in found:
        known, element = _element(node.inputs[0] if node.inputs else None)
        if not known or (node.op_type == "OptionalGetElement" and element is None):
            continue
        b = Builder(names, prefix=f"{node.name}_")
        if node.op_type == "OptionalHasElement":
            value = b.constant(element is not None)
        else:
            assert element is not None
            value = b.op("Identity", element, dtype=element.dtype, shape=element.shape)
            value.type = element.type or value.type
        put_instead(b, value, node, names)
    _remove_unread(read)


def _remove_unread(nodes: Iterable[ir.Node | None]) -> None:
    """An Optional that nobody reads any more: a mark that is asked for by its name would stop nothing."""
    for node in nodes:
        if node is None or (node.domain, node.op_type) != ("", "Optional") or node.graph is None:
            continue
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            node.graph.remove(node, safe=True)


def _element(value: ir.Value | None) -> tuple[bool, ir.Value | None]:
    """Whether it is known what an optional holds; and what, or None for nothing."""
    if value is None:
        return True, None
    producer = value.producer()
    if producer is not None and (producer.domain, producer.op_type) == ("", "Optional"):
        return True, producer.inputs[0] if producer.inputs else None
    return isinstance(value.type, (ir.TensorType, ir.SequenceType)), value
