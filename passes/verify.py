"""What must hold after every pass; `--verify-each` checks it.

onnx's checker lets pass a call to a function that is not there, a call without one of its attributes, and two
functions of one name, so those are looked at here.
"""

from __future__ import annotations

import onnx
import onnx.checker
import onnx_ir as ir
from onnx_ir.passes.common._c_api_utils import call_onnx_api

from gradcut.dialect import DIALECT, DOMAIN
from gradcut.errors import VerifyError


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
    onnx.checker.check_model(proto, full_check=False)
    return proto


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
