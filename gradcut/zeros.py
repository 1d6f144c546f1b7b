"""The zero cotangent of a value: what a gradient is where nothing reaches."""

from __future__ import annotations

import os
from typing import Any, overload

import numpy as np
import onnx
import onnx_ir as ir

from gradcut.dims import FLOATS
from gradcut.errors import SpecError
from gradcut.ops import Builder, Names
from gradcut.passes.importer import check_opset
from gradcut.passes.propagate import main_values
from gradcut.passes.typed import typed_values
from gradcut.source import Source, load
from gradcut.text import nearest


@overload
def zero_grad_like(like: Source, name: str) -> ir.Model: ...
@overload
def zero_grad_like(like: Any) -> np.ndarray[Any, Any]: ...
def zero_grad_like(like: Any, name: str | None = None) -> ir.Model | np.ndarray[Any, Any]:
    """The zero cotangent of an array, or of a value of a model.

    Args:
        like: an array, a number, or what has a shape and a dtype as arrays and tensors do; or, with `name`, a model.
        name: a value of the model's main graph.

    Returns:
        Zeros of the array's shape and dtype. Or the model (an `onnx_ir.Model` is changed in place) with one more output
        ``<name>_grad``, or the next free name: zeros of the shape that the value has in a run, in its dtype.

    Raises:
        SpecError: the model has no such value; or what is asked for is no float (integers, booleans and strings carry
        no gradient).
    """
    if name is not None:
        return _of_value(load(like), name)
    if isinstance(like, (str, os.PathLike, onnx.ModelProto, ir.Model)):
        raise SpecError("zero_grad_like takes an array, or a model and the name of a value of it")
    given = like if hasattr(like, "shape") and hasattr(like, "dtype") else np.asarray(like)
    return np.zeros(tuple(int(size) for size in given.shape), _dtype(given.dtype).numpy())


def _dtype(dtype: Any) -> ir.DataType:
    """A float dtype of numpy, of onnx_ir, or of torch, which calls its own by the same names."""
    try:
        kind = dtype if isinstance(dtype, ir.DataType) else ir.DataType.from_numpy(np.dtype(_plain_name(dtype)))
    except TypeError:
        kind = None
    if kind not in FLOATS:
        raise SpecError(f"{dtype} carries no gradient; only floats do: float16, bfloat16, float32, float64")
    return kind


def _plain_name(dtype: Any) -> Any:
    text = str(dtype).removeprefix("torch.")
    return ir.DataType.BFLOAT16.numpy() if text == "bfloat16" else text if text != str(dtype) else dtype


def _of_value(model: ir.Model, name: str) -> ir.Model:
    check_opset(model)
    known = main_values(model.graph)
    if name not in known:
        hint = ", ".join(nearest(name, known))
        raise SpecError(f"zero_grad_like: there is no value {name!r}." + (f" Nearest: {hint}." if hint else ""))
    value = known[name]
    typed = typed_values(model, [value])[value]
    if isinstance(typed.type, ir.SequenceType):
        raise SpecError(f"zero_grad_like: {name!r} is a sequence; name a tensor")
    if typed.dtype not in FLOATS:
        raise SpecError(f"zero_grad_like: {name!r} is {_kind(typed)}, which carries no gradient; only floats do")
    b = Builder(Names.of(model))
    zeros = b.zeros(b.op("Shape", value), typed.dtype, typed.shape)
    zeros.name = b.names.fresh(f"{name}_grad")
    model.graph.extend(b.nodes)
    model.graph.outputs.append(zeros)
    return model


def _kind(value: ir.Value) -> str:
    return value.dtype.name if value.dtype is not None else "of no known type"
