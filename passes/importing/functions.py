"""Functions in place of their calls: the file's own, and the bodies that ONNX defines for operators without a rule."""

from __future__ import annotations

import contextlib
import functools

import onnx.defs
import onnx.inliner
import onnx.shape_inference
import onnx_ir as ir

from gradcut.dialect import DOMAIN
from gradcut.errors import ImportModelError
from gradcut.passes.importing.convert import is_kept, through
from gradcut.passes.importing.mean_variance import write_out_mean_variance
from gradcut.rules import REGISTRY

#: Operators without a rule here that ONNX defines by a function of others.
BY_BODY = frozenset({"MeanVarianceNormalization", "SwiGLU"})


def inline(model: ir.Model) -> None:
    """Put the bodies of functions in place of their calls; marks come out of them."""
    kept = [key for key in model.functions if is_kept(key)]
    if len(kept) == len(model.functions):
        return
    for function in model.functions.values():
        if DOMAIN not in function.opset_imports and any(n.domain == DOMAIN for n in function):
            function.opset_imports[DOMAIN] = 1
    ids = [(key[0], key[1]) for key in kept]
    through(model, lambda proto: onnx.inliner.inline_selected_functions(proto, ids, exclude=True))


def take_apart(model: ir.Model) -> None:
    """Operators without a rule that ONNX itself defines by others become those."""
    if not REGISTRY.knows("", "MeanVarianceNormalization"):
        write_out_mean_variance(model)
    mine = [op_type for op_type in BY_BODY if not REGISTRY.knows("", op_type)]
    calls = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type in mine]
    for node in calls:
        _say_defaults(node, model.opset_imports[""])
    ids = [("", op_type) for op_type in sorted({node.op_type for node in calls})]
    if ids:
        inlined = functools.partial(onnx.inliner.inline_selected_functions, inline_schema_functions=True)
        with contextlib.suppress(ImportModelError):  # of a call that leaves an operand out, onnx cannot tell the type
            through(model, lambda proto: inlined(onnx.shape_inference.infer_shapes(proto), ids))


def _say_defaults(node: ir.Node, opset: int) -> None:
    """Onnx's inliner hands on only those attributes that a call has."""
    for name, attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        if name not in node.attributes and attribute.default_value.type:
            node.attributes.add(ir.serde.deserialize_attribute(attribute.default_value))
