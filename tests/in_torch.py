"""A file of ONNX run by torch in float64, operator by operator, for gradients that owe nothing to gradcut or ONNX.

Only what the files of `tests/test_files.py` hold, at their opsets (11 and 15); anything else is a KeyError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor]


def weights(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Every initializer and Constant by name; floats in float64, with room for a gradient."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return {name: _wide(array).requires_grad_(array.dtype.kind == "f") for name, array in found.items()}


def _wide(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float64 if array.dtype.kind == "f" else array.dtype))


def values(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], weights: Mapping[str, Tensor], training: bool = False
) -> dict[str, Tensor]:
    """Every value of the graph by name.

    Args:
        training: BatchNormalization takes the batch's own statistics.
    """
    found: dict[str, Tensor] = {**weights, **{name: _wide(array) for name, array in feeds.items()}}
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        inputs = [found[name] if name else None for name in node.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "BatchNormalization":
            attributes["training"] = training
        results = OPERATORS[node.op_type](attributes, *inputs)
        found[node.output[0]] = results
    return found


# --- windows -------------------------------------------------------------------------------------------------


def _padded(a: Attributes, x: Tensor, kernel: list[int], value: float = 0.0) -> Tensor:
    """The input with the pads that the attributes say; of SAME_UPPER, at stride 1, the odd one comes last."""
    if a.get("auto_pad", b"NOTSET") == b"SAME_UPPER":
        assert a["strides"] == [1, 1]
        pads = [(k - 1) // 2 for k in kernel] + [k // 2 for k in kernel]
    else:
        pads = list(a.get("pads", [0, 0, 0, 0]))
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value)


def conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.conv2d(_padded(a, x, list(w.shape[2:])), w, b, a["strides"], 0, a["dilations"], a["group"])


def conv_transpose(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    assert a["pads"] == [0, 0, 0, 0]
    return F.conv_transpose2d(x, w, b, a["strides"], groups=a["group"], dilation=a["dilations"])


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    return F.max_pool2d(_padded(a, x, kernel, float("-inf")), kernel, a["strides"])


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    assert a["pads"] == [0, 0, 0, 0]
    return F.avg_pool2d(x, a["kernel_shape"], a["strides"])


def resize(a: Attributes, x: Tensor, roi: Tensor, scales: Tensor) -> Tensor:
    """Nearest, asymmetric and floor, by whole factors: every place as often as the factor says."""
    for axis, factor in enumerate(scales.tolist()):
        assert factor == int(factor)
        x = x.repeat_interleave(int(factor), axis)
    return x


# --- shapes --------------------------------------------------------------------------------------------------


def reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[at] if size == 0 else size for at, size in enumerate(shape.tolist())])


def slice_(a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor | None = None) -> Tensor:
    assert steps is None or set(steps.tolist()) == {1}
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        place: list[slice] = [slice(None)] * x.ndim
        place[axis] = slice(start, min(end, x.shape[axis]))
        x = x[tuple(place)]
    return x


def squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze(tuple(_axes(a, axes)))


def unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    for axis in sorted(_axes(a, axes)):
        x = x.unsqueeze(axis)
    return x


def _axes(a: Attributes, axes: Tensor | None) -> list[int]:
    return list(a["axes"]) if axes is None else list(axes.tolist())


def cast(a: Attributes, x: Tensor) -> Tensor:
    if a["to"] == onnx.TensorProto.FLOAT:
        return x.double()
    return x.to({onnx.TensorProto.INT32: torch.int32, onnx.TensorProto.INT64: torch.int64}[a["to"]])


# --- numbers -------------------------------------------------------------------------------------------------


def batch_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    mean, var = mean.detach().clone(), var.detach().clone()
    return F.batch_norm(x, mean, var, scale, bias, a["training"], 0.1, a["epsilon"])


def softmax(a: Attributes, x: Tensor) -> Tensor:
    """Before opset 13 over the axis and all behind it."""
    assert a["axis"] in (-1, x.ndim - 1)
    return x.softmax(-1)


def reduce_sum(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    return x.sum(axes.tolist(), keepdim=bool(a.get("keepdims", 1)))


OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Clip": lambda a, x, low, high: x.clamp(low.item(), high.item()),
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Div": lambda a, x, y: x / y,
    "Equal": lambda a, x, y: x == y,
    "Erf": lambda a, x: x.erf(),
    "Exp": lambda a, x: x.exp(),
    "Expand": lambda a, x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda a, x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": lambda a, x: (a["alpha"] * x + a["beta"]).clamp(0, 1),
    "Identity": lambda a, x: x,
    "MatMul": lambda a, x, y: x @ y,
    "Max": lambda a, x, y: torch.maximum(x, y),
    "MaxPool": max_pool,
    "Mul": lambda a, x, y: x * y,
    "Pow": lambda a, x, y: x**y,
    "Reciprocal": lambda a, x: 1 / x,
    "ReduceMax": lambda a, x: x.amax(a["axes"], keepdim=bool(a.get("keepdims", 1))),
    "ReduceMean": lambda a, x: x.mean(a["axes"], keepdim=bool(a.get("keepdims", 1))),
    "ReduceSum": reduce_sum,
    "Relu": lambda a, x: x.relu(),
    "Reshape": reshape,
    "Resize": resize,
    "Shape": lambda a, x: torch.tensor(x.shape),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Slice": slice_,
    "Softmax": softmax,
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": squeeze,
    "Sub": lambda a, x, y: x - y,
    "Tanh": lambda a, x: x.tanh(),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": unsqueeze,
}
