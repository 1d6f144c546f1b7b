"""Types and shapes of what a node gives, as far as they are told without ONNX's inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from gradcut.dims import broadcast_shapes

_TO_BOOL = frozenset("Equal Greater Less GreaterOrEqual LessOrEqual Not And Or Xor IsNaN IsInf".split())
_TO_INT64 = frozenset("Shape Size NonZero ArgMax ArgMin".split())
_ELEMENTWISE = frozenset(
    """Abs Acos Add And Asin Atan Cast CastLike Ceil Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater
    GreaterOrEqual HardSigmoid Identity IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Max Min Mod Mul Neg Not Or Pow
    Reciprocal Relu Round ScatterElements ScatterND Sigmoid Sign Sin Sinh Softmax Softplus Sqrt Sub Sum Tan Tanh Where
    Xor CumSum""".split()
)
_SHAPED_LIKE_FIRST = frozenset({"CastLike", "ScatterElements", "ScatterND", "Clip", "CumSum"})


def result_dtype(op_type: str, inputs: Sequence[ir.Value | None]) -> ir.DataType | None:
    if op_type in _TO_BOOL:
        return ir.DataType.BOOL
    if op_type in _TO_INT64:
        return ir.DataType.INT64
    index = 1 if op_type in ("Where", "CastLike") else 0
    source = inputs[index] if len(inputs) > index else None
    return source.dtype if source is not None else None


def result_shape(op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]) -> ir.Shape | None:
    shapes = [value.shape for value in inputs if value is not None]
    if op_type in _SHAPED_LIKE_FIRST:
        return shapes[0]
    if op_type in _ELEMENTWISE:
        return broadcast_shapes(shapes)
    if op_type == "Transpose" and shapes[0] is not None and "perm" in attributes:
        return ir.Shape([shapes[0][axis] for axis in attributes["perm"]])
    if op_type == "MatMul":
        return _matmul_shape(shapes)
    if op_type.startswith("Reduce"):
        return _reduced_shape(inputs, attributes)
    return None


def _matmul_shape(shapes: Sequence[ir.Shape | None]) -> ir.Shape | None:
    a, b = shapes
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = broadcast_shapes([ir.Shape(list(a)[:-2]), ir.Shape(list(b)[:-2])])
    return ir.Shape([*(batch or ()), a[-2], b[-1]])


def _reduced_shape(inputs: Sequence[ir.Value | None], attributes: dict[str, Any]) -> ir.Shape | None:
    x, axes = inputs[0], inputs[1] if len(inputs) > 1 else None
    constant = ir.convenience.get_const_tensor(axes) if axes is not None else None
    if x is None or x.shape is None or (axes is not None and constant is None):
        return None
    said = attributes.get("axes", ()) if constant is None else constant.numpy()  # an attribute before opset 18
    chosen = {int(axis) % len(x.shape) for axis in said}
    if not chosen and not attributes.get("noop_with_empty_axes"):
        chosen = set(range(len(x.shape)))
    if attributes.get("keepdims", 1):
        return ir.Shape([1 if axis in chosen else dim for axis, dim in enumerate(x.shape)])
    return ir.Shape([dim for axis, dim in enumerate(x.shape) if axis not in chosen])
