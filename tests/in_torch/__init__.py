"""A file of ONNX run by torch, operator by operator, for gradients that owe nothing to gradcut or ONNX Runtime.

Operators are those of `tests/in_torch/*.py`, at every opset from 9 on that a test has; any other is a KeyError. All
floats are of one dtype, float64 unless told; casts between floats change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from tests.in_torch import elementwise, index, loss, norm, pool, product, reduce, resize, shape, window
from tests.in_torch.call import Call

Operator = Callable[..., Tensor | tuple[Tensor, ...]]
_TOPICS = (elementwise, index, loss, norm, pool, product, reduce, resize, shape, window)
OPERATORS: dict[str, Operator] = {name: function for topic in _TOPICS for name, function in topic.OPERATORS.items()}

__all__ = ["OPERATORS", "run", "tensor", "values", "weights"]


def weights(model: onnx.ModelProto, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every initializer and Constant by name; floats with room for a gradient."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return {name: tensor(array, dtype).requires_grad_(array.dtype.kind == "f") for name, array in found.items()}


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    """A copy; floats of any width become `dtype`."""
    plain = torch.from_numpy(np.array(array, np.float64 if array.dtype.kind == "f" else array.dtype))
    return plain.to(dtype) if plain.is_floating_point() else plain


def values(
    model: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    weights: Mapping[str, Tensor],
    training: bool | None = None,
    dtype: torch.dtype = torch.float64,
    wanted: Mapping[str, Tensor] | None = None,
    stop_at: Collection[str] = (),
) -> dict[str, Tensor]:
    """Every value of the graph by name.

    Args:
        training: whether BatchNormalization takes the batch's own statistics; None: as the file says.
        wanted: zeros to add to values, so that there is something to differentiate by.
        stop_at: values, or uses (``value->node``), that are constants to what reads them.
    """
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    extra = wanted or {}
    found: dict[str, Tensor] = {**weights, **{name: tensor(array, dtype) for name, array in feeds.items()}}
    found |= {name: found[name] + extra[name] for name in extra if name in found}

    def operand(name: str, node: onnx.NodeProto) -> Tensor | None:
        stopped = name in stop_at or f"{name}->{node.name}" in stop_at
        return None if not name else found[name].detach() if stopped else found[name]

    for node in model.graph.node:
        if node.op_type != "Constant":
            results = run(node, [operand(name, node) for name in node.input], opset, training, dtype)
            for name, value in zip(node.output, results, strict=False):
                found[name] = value + extra[name] if name in extra else value
    return found


def run(
    node: onnx.NodeProto,
    inputs: list[Tensor | None],
    opset: int,
    training: bool | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """The outputs of one node."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    results = OPERATORS[node.op_type](Call(attributes, opset, len(node.output), dtype, training), *inputs)
    return results if isinstance(results, tuple) else (results,)
