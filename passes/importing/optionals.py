"""Optionals that surely hold something, or nothing, give way to what they hold; called by `import`.

1. OptionalGetElement of an Optional of a value, or of what is no optional: that value.
2. OptionalHasElement of these: true; of an Optional of nothing, or of no operand: false.

Optionals that an If, a Loop or the caller gives stay.
"""

from __future__ import annotations

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


def _element(value: ir.Value | None) -> tuple[bool, ir.Value | None]:
    """Whether it is known what an optional holds; and what, or None for nothing."""
    if value is None:
        return True, None
    producer = value.producer()
    if producer is not None and (producer.domain, producer.op_type) == ("", "Optional"):
        return True, producer.inputs[0] if producer.inputs else None
    return isinstance(value.type, (ir.TensorType, ir.SequenceType)), value
