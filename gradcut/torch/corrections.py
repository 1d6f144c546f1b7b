"""What torch's exporter would write as something else than torch computes, or not at all.

1. ``avg_pool(divisor_override=d)``: it leaves the divisor out; here the mean of the whole window, times its size / d.
2. An LSTM with ``proj_size``: it writes ONNX's LSTM, which has no projection; refused.
3. ``cross_entropy``: it leaves ``label_smoothing`` out, and takes a distribution over the classes for a label.
4. ``cdist``: it has none.

Rules 1 and 2 work on the traced program, rules 3 and 4 are translations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import onnxscript
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from gradcut.errors import TorchExportError
from gradcut.torch.aliases import where
from gradcut.torch.regions import graphs

_OP: Any = onnxscript.opset18
_POOLS = {torch.ops.aten.avg_pool2d.default: 2, torch.ops.aten.avg_pool3d.default: 3}
_REDUCTIONS = ("none", "mean", "sum")


def correct(program: ExportedProgram) -> None:
    """Rules 1 and 2.

    Raises:
        TorchExportError: a configuration that no file can hold.
    """
    for module in graphs(program):
        for node in list(module.graph.nodes):
            if node.target in _POOLS:
                _divide(module, node, _POOLS[node.target])
            elif node.target is torch.ops.aten.lstm.input:
                _check_projection(node)


def corrections() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Rules 3 and 4, for torch's exporter."""
    return {torch.ops.aten.cross_entropy_loss.default: _cross_entropy, torch.ops.aten._cdist_forward.default: _cdist}


def _divide(module: GraphModule, node: Node, rank: int) -> None:
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    divisor = given.pop("divisor_override", None)
    if divisor is None:
        return
    if given.get("ceil_mode"):
        raise TorchExportError(f"{where(node)} has divisor_override and ceil_mode, which ONNX's pool cannot do at once")
    size = given["kernel_size"] if isinstance(given["kernel_size"], (list, tuple)) else [given["kernel_size"]] * rank
    number = math.prod(size) if len(size) == rank else size[0] ** rank
    node.args, node.kwargs = (given.pop("self"),), {**given, "count_include_pad": True}
    with module.graph.inserting_after(node):
        scaled = module.graph.call_function(torch.ops.aten.mul.Tensor, (node, number / divisor))
    scaled.meta = dict(node.meta)
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


def _check_projection(node: Node) -> None:
    args: Any = node.args
    _, _, weights, has_biases, layers, _, _, bidirectional, *_ = args
    if len(weights) != layers * (2 if bidirectional else 1) * (4 if has_biases else 2):
        raise TorchExportError(
            f"{where(node)} has proj_size, and ONNX's LSTM no projection: leave it out, or write the cell out"
        )


def _cross_entropy(
    x: ir.Value,
    target: ir.Value,
    weight: ir.Value | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    """Classes along axis 1, or 0 of one row: torch's cross_entropy_loss, formula by formula."""
    assert x.shape is not None and target.dtype is not None
    rank, distribution = len(x.shape), target.dtype.is_floating_point()
    if rank == 1:
        x, target = _OP.Unsqueeze(x, [0]), _OP.Unsqueeze(target, [0])
    if distribution or label_smoothing:
        logs = _weighted(_OP.LogSoftmax(x, axis=1), weight, max(rank, 2))
    if distribution:
        result = _distribution(logs, target, reduction, label_smoothing)
    else:
        result, _ = _OP.SoftmaxCrossEntropyLoss(
            x, target, weight, reduction=_REDUCTIONS[reduction], ignore_index=ignore_index
        )
        if label_smoothing:
            smooth = _smoothed(logs, target, weight, reduction, ignore_index)
            result = _mixed(result, smooth, label_smoothing)
    return _OP.Squeeze(result, [0]) if rank == 1 and reduction == 0 else result


def _smoothed(logs: Any, target: ir.Value, weight: ir.Value | None, reduction: int, ignore_index: int) -> Any:
    """The loss of the uniform distribution, reduced as the plain one is: divided by the weights of the labels."""
    kept = _OP.Not(_OP.Equal(target, _OP.CastLike(ignore_index, target)))
    each = _OP.ReduceMean(_OP.Neg(logs), [1], keepdims=0)
    each = _OP.Where(kept, each, _OP.CastLike(0.0, logs))
    if reduction == 0:
        return each
    total = _OP.ReduceSum(each, keepdims=0)
    if reduction == 2:
        return total
    counted = _OP.CastLike(kept, logs)
    if weight is not None:
        counted = _OP.Mul(_OP.Gather(weight, _OP.Where(kept, target, _OP.CastLike(0, target))), counted)
    return _OP.Div(total, _OP.ReduceSum(counted, keepdims=0))


def _distribution(logs: Any, target: ir.Value, reduction: int, label_smoothing: float) -> Any:
    """Of distributions over the classes, which may have a gradient themselves; the mean is over rows."""
    each = _OP.ReduceSum(_OP.Mul(logs, target), [1], keepdims=0)
    if label_smoothing:
        each = _mixed(each, _OP.ReduceMean(logs, [1], keepdims=0), label_smoothing)
    each = _OP.Neg(each)
    if reduction == 0:
        return each
    return _OP.ReduceMean(each, keepdims=0) if reduction == 1 else _OP.ReduceSum(each, keepdims=0)


def _weighted(logs: Any, weight: ir.Value | None, rank: int) -> Any:
    return logs if weight is None else _OP.Mul(logs, _OP.Reshape(weight, [1, -1] + [1] * (rank - 2)))


def _mixed(plain: Any, smooth: Any, share: float) -> Any:
    plain, smooth = _OP.Mul(plain, _OP.CastLike(1.0 - share, plain)), _OP.Mul(smooth, _OP.CastLike(share, smooth))
    return _OP.Add(plain, smooth)


def _cdist(x1: ir.Value, x2: ir.Value, p: float, compute_mode: int | None = None) -> Any:
    """Distances of each row of `x1` to each of `x2`; `compute_mode` says how torch goes about it."""
    differences = _OP.Sub(_OP.Unsqueeze(x1, [-2]), _OP.Unsqueeze(x2, [-3]))
    if p == 2.0:
        return _OP.ReduceL2(differences, [-1], keepdims=0)
    if p == 1.0:
        return _OP.ReduceL1(differences, [-1], keepdims=0)
    raise TorchExportError(f"cdist with p={p:g}: ONNX has the norms p=1 and p=2; write another out")
