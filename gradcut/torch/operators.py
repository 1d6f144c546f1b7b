"""Operators that stand in the traced program for what torch's decompositions lose, and what each is in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import onnxscript.evaluator
import torch
from torch import Tensor

from gradcut.dialect import DOMAIN, MARK

#: What records nodes when a translation calls it; its types are those of eager arrays.
_OP: Any = onnxscript.opset18
_LIBRARY: Any = torch.library.Library(DOMAIN, "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("stop_gradient(Tensor x) -> Tensor")
_LIBRARY.define("dropout(Tensor x, float p) -> Tensor")
_LIBRARY.define(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float momentum, float eps) -> Tensor"
)


def _copy(x: Tensor, *_: object) -> Tensor:
    return x.clone()


def _like(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


for _name in ("stop_gradient", "dropout", "batch_norm"):
    _LIBRARY.impl(_name, _copy, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{DOMAIN}::{_name}", _like, lib=_LIBRARY)

STOP_GRADIENT = torch.ops.gradcut.stop_gradient.default
DROPOUT = torch.ops.gradcut.dropout.default
BATCH_NORM = torch.ops.gradcut.batch_norm.default


def _stop_gradient(x: ir.Value) -> ir.Value:
    node = ir.Node(DOMAIN, MARK, [x], version=1)
    recorder: Any = onnxscript.evaluator.default()
    recorder.nodes.append(node)
    return node.outputs[0]


def _dropout(x: ir.Value, p: float) -> Any:
    """In inference mode, which torch's exporter leaves out: who trains the file may want it on."""
    return _OP.Dropout(x, p, False)[0]


def _batch_norm(
    x: ir.Value,
    weight: ir.Value | None,
    bias: ir.Value | None,
    mean: ir.Value,
    var: ir.Value,
    momentum: float,
    eps: float,
) -> Any:
    """In training mode; ONNX's momentum is what stays of the old statistics."""
    weight = _filled(1.0, mean) if weight is None else weight
    bias = _filled(0.0, mean) if bias is None else bias
    outputs = _OP.BatchNormalization(x, weight, bias, mean, var, epsilon=eps, momentum=1.0 - momentum, training_mode=1)
    return outputs[0]


def _filled(number: float, like: ir.Value) -> Any:
    assert like.dtype is not None and like.shape is not None
    return _OP.Constant(value=ir.tensor([number] * like.shape.numpy()[0], dtype=like.dtype))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For torch's exporter: plain functions, as it cannot inline a scripted one that holds a node of ours."""
    return {STOP_GRADIENT: _stop_gradient, DROPOUT: _dropout, BATCH_NORM: _batch_norm}
