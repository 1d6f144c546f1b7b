"""A model in wider floats, and the two programs that can run it: onnx's reference evaluator and ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    import onnxruntime as ort

Array = np.ndarray[Any, Any]
#: Feeds to outputs, in the order of the graph's outputs.
Run = Callable[[Mapping[str, Array]], list[Array]]

_WIDTH = {ir.DataType.BFLOAT16: 2, ir.DataType.FLOAT16: 2, ir.DataType.FLOAT: 4, ir.DataType.DOUBLE: 8}
_DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def is_real(array: Array) -> bool:
    """Whether an array holds floats that a gradient may be of; to numpy bfloat16 is no float."""
    return array.dtype.kind == "f" or bool(array.dtype == _BFLOAT16)


def widen(model: ir.Model, to: ir.DataType = ir.DataType.DOUBLE) -> ir.Model:
    """Turn every narrower float of the model into `to`, in place: values, weights, constants, casts, bodies."""
    for graph in _all_graphs(model):
        for value in graph.inputs:
            _widen_value(value, to)
        for value in graph.initializers.values():
            _widen_value(value, to)
            if value.const_value is not None:
                value.const_value = _widen_tensor(value.const_value, to)
        for node in graph:
            for output in node.outputs:
                _widen_value(output, to)
            _widen_node(node, to)
    return model


def _all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def narrower(dtype: ir.DataType | None, to: ir.DataType) -> bool:
    """Whether a dtype is a float that `widen` replaces by `to`."""
    return dtype in _WIDTH and _WIDTH[dtype] < _WIDTH[to]


def _widen_value(value: ir.Value, to: ir.DataType) -> None:
    if isinstance(value.type, ir.TensorType) and narrower(value.dtype, to):
        value.type = ir.TensorType(to)  # a type may be shared with another model's value


def _widen_tensor(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    if not narrower(tensor.dtype, to):
        return tensor
    return ir.Tensor(tensor.numpy().astype(to.numpy()), dtype=to, name=tensor.name)


def _widen_node(node: ir.Node, to: ir.DataType) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            node.attributes.add(ir.AttrTensor(name, _widen_tensor(attribute.as_tensor(), to)))
        elif name in _DTYPE_ATTRIBUTES and node.domain == "" and narrower(ir.DataType(attribute.as_int()), to):
            node.attributes.add(ir.AttrInt64(name, int(to)))
    if node.domain == "" and node.op_type == "GroupNormalization":
        node.attributes.add(ir.AttrInt64("stash_type", int(to)))  # its function casts to it
    if node.domain == "" and node.op_type == "Attention" and "softmax_precision" in node.attributes:
        node.attributes.add(ir.AttrInt64("softmax_precision", int(to)))
    if node.domain or node.op_type not in ("Constant", "ConstantOfShape"):
        return
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes.add(ir.AttrTensor("value", ir.Tensor(np.zeros([1], to.numpy()), dtype=to)))
    for name in ("value_float", "value_floats"):
        if name in node.attributes and not node.attributes[name].is_ref():
            number = node.attributes.pop(name).value
            node.attributes.add(ir.AttrTensor("value", ir.Tensor(np.asarray(number, to.numpy()), dtype=to)))


# --- running -------------------------------------------------------------------------------------------------


def reference(proto: onnx.ModelProto, hold: bool = False) -> Run:
    """The model in onnx's reference evaluator: slow, and exact in float64.

    Args:
        hold: marks give in every later run what they gave in the first.
    """
    from onnx.reference import ReferenceEvaluator

    from gradcut.runtime.evaluators import EVALUATORS, Held

    held = Held()
    evaluator = ReferenceEvaluator(proto, new_ops=[*EVALUATORS, held.mark()] if hold else EVALUATORS)

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        with np.errstate(all="ignore"):
            outputs = [np.asarray(output) for output in evaluator.run(None, dict(feeds))]
        held.rewind()
        return outputs

    return run


def runtime(proto: onnx.ModelProto) -> Run:
    """The model in ONNX Runtime, on one core."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    unbound = any("bfloat16" in value.type for value in (*session.get_inputs(), *session.get_outputs()))

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        fed = {name: array for name, array in feeds.items() if name in known}
        if not unbound:
            return list(session.run(None, fed))
        values = {name: _as_value(ort, array) for name, array in fed.items()}
        return [_as_array(value) for value in session.run_with_ort_values(None, values)]

    return run


def _as_value(ort: Any, array: Array) -> ort.OrtValue:
    """Onnxruntime takes no bfloat16 from numpy, but its bits."""
    if array.dtype == _BFLOAT16:
        bits = np.ascontiguousarray(array).view(np.uint16).reshape(array.shape)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(ir.DataType.BFLOAT16))
    return ort.OrtValue.ortvalue_from_numpy(array)


def _as_array(value: ort.OrtValue) -> Array:
    if value.element_type() != ir.DataType.BFLOAT16:
        return np.asarray(value.numpy())
    shape = value.shape()
    bits = np.empty(shape, np.uint16)
    ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits.view(_BFLOAT16)
