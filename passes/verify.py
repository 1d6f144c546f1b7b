"""What must hold after every pass; `--verify-each` checks it.

onnx's checker lets pass a call to a function that is not there, a call without one of its attributes, and two
functions of one name, so those are looked at here. It knows none of what ONNX Runtime has put into ONNX's domain.
"""

from __future__ import annotations

import onnx
import onnx.checker
import onnx_ir as ir
from onnx_ir.passes.common._c_api_utils import call_onnx_api

from gradcut.dialect import DIALECT, DOMAIN
from gradcut.errors import VerifyError
from gradcut.passes.importing.contrib_types import MICROSOFT

_OF_THE_RUNTIME = frozenset({"SimplifiedLayerNormalization"})


def verify(model: ir.Model, after: str) -> None:
    """Raise `VerifyError` where the model is not a valid one.

    Args:
        after: the pass that ran last, for the message.
    """
    _check_calls(model, after)
    try:
        call_onnx_api(_check, model)
    except onnx.checker.ValidationError as error:
        raise VerifyError(f"after {after} the model is invalid: {error}") from error


def _check(proto: onnx.ModelProto) -> onnx.ModelProto:
    _rename_domain(proto)
    onnx.checker.check_model(proto, full_check=False)
    return proto


def _rename_domain(proto: onnx.ModelProto) -> None:
    """Have the checker take ONNX Runtime's operators in ONNX's domain for ones of a domain that it does not know."""
    mine = [node for node in proto.graph.node if not node.domain and node.op_type in _OF_THE_RUNTIME]
    for node in mine:
        node.domain = MICROSOFT
    if mine and MICROSOFT not in {opset.domain for opset in proto.opset_import}:
        proto.opset_import.add(domain=MICROSOFT, version=1)


def _check_calls(model: ir.Model, after: str) -> None:
    seen: set[str] = set()
    for graph in model.graphs():
        for node in graph:
            if node.name and node.name in seen:
                raise VerifyError(f"after {after} two nodes are called {node.name!r}")
            seen.add(node.name or "")
            if node.domain == DOMAIN:
                _check_call(model, node, after)


def _check_call(model: ir.Model, node: ir.Node, after: str) -> None:
    if node.op_identifier() not in model.functions:
        raise VerifyError(f"after {after} node {node.name!r} calls {node.op_type}, which the model does not hold")
    op = DIALECT.get(node.op_type)
    missing = set(op.attributes) - set(node.attributes) if op is not None else set()
    if missing:
        raise VerifyError(f"after {after} node {node.name!r} ({node.op_type}) lacks {', '.join(sorted(missing))}")
