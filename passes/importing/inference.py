"""Types and shapes of a model, by ONNX's inference and by what it leaves open or would say wrong."""

from __future__ import annotations

import contextlib

import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx_ir.passes.common._c_api_utils import call_onnx_api

from gradcut.dims import Dim
from gradcut.errors import ImportModelError
from gradcut.passes.importing.consistency import check_shapes
from gradcut.passes.importing.contrib_types import with_stand_ins
from gradcut.passes.importing.shapes import infer_bodies
from gradcut.passes.importing.window_sizes import right_window_sizes

#: What these give is as long as the numbers have it; the length that a file says is that of an example.
_MEASURED = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})


def infer(model: ir.Model) -> None:
    """Keep what the file says; the pass adds the rest, and leaves what it cannot tell unknown."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    doubtful = _infer_outputs(model)
    for _ in range(len(model.graph)):
        if not right_window_sizes(model):
            break
        _infer_again(model)
    infer_bodies(model, _infer_again)
    for value, shape in doubtful.items():
        value.shape = shape
    _open_attention(model)  # a file may have been inferred already


def _infer_outputs(model: ir.Model) -> dict[ir.Value, ir.Shape]:
    """Infer without the outputs' shapes that the file says: torch's older exporter writes wrong ones at times, which
    ONNX Runtime forgives of outputs, but not of the cotangents that are as large.

    Returns:
        Outputs of which the file and inference say different things, with what is left.
    """
    said = {value: value.shape for value in model.graph.outputs if value.producer() and value.shape is not None}
    for value in said:
        value.shape = None
    _infer_again(model)
    doubtful = dict[ir.Value, ir.Shape]()
    for value, shape in said.items():
        told = value.shape
        if told is None:
            value.shape = shape
        elif not _is_measured(value):
            value.shape = _agreed(shape, told)
            doubtful.update({value: value.shape} if _contradict(shape, told) else {})
    return doubtful


def _is_measured(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type in _MEASURED


def _contradict(said: ir.Shape, told: ir.Shape) -> bool:
    numbers = ((a, b) for a, b in zip(said, told, strict=False) if isinstance(a, int) and isinstance(b, int))
    return len(said) != len(told) or any(a != b for a, b in numbers)


def _agreed(said: ir.Shape, told: ir.Shape) -> ir.Shape:
    """What a file says and inference tells; where they differ, the rank is inference's, and a dimension is open."""
    if len(told) != len(said):
        return told
    return ir.Shape([_agreed_dim(a, b) for a, b in zip(said, told, strict=True)])


def _agreed_dim(said: Dim, told: Dim) -> Dim | None:
    if isinstance(said, int) and isinstance(told, int):
        return said if said == told else None
    return told if isinstance(told, int) or _is_unknown(said) else said


def put_back(said: dict[ir.Value, ir.Shape]) -> None:
    """Shapes that a file told, where they are of the same rank as what was inferred anew and say more."""
    for value, shape in said.items():
        if value.shape is None or (len(value.shape) == len(shape) and _says_more(shape, value.shape)):
            value.shape = shape


def _infer_again(model: ir.Model) -> None:
    known = {value: value.shape for node in model.graph for value in node.outputs}
    inferred = ir.from_proto(_inferred(model))
    for mine, theirs in zip(model.graphs(), inferred.graphs(), strict=True):
        _take_over_types(mine, theirs)
    for value, shape in known.items():
        if shape is not None and _says_more(shape, value.shape):
            value.shape = shape
    _open_attention(model)


def _open_attention(model: ir.Model) -> None:
    """Onnx's inference takes a size that it does not know for 0, where it has to be divided by a number of heads."""
    for node in [node for node in model.graph.all_nodes() if node.op_type == "Attention" and node.domain == ""]:
        empty = any(dim == 0 for value in node.inputs if value is not None for dim in value.shape or ())
        for value in () if empty else node.outputs:
            if value.shape is not None and any(dim == 0 for dim in value.shape):
                value.shape = ir.Shape([None if dim == 0 else dim for dim in value.shape])


def _take_over_types(graph: ir.Graph, inferred: ir.Graph) -> None:
    found = ir.convenience.create_value_mapping(inferred, include_subgraphs=False)
    for name, value in ir.convenience.create_value_mapping(graph, include_subgraphs=False).items():
        if name in found:
            value.type = value.type if found[name].type is None else found[name].type
            value.shape = value.shape if found[name].shape is None else found[name].shape


def _inferred(model: ir.Model) -> onnx.ModelProto:
    """ONNX's inference, first with its check of operand types, which is stricter than runtimes are.

    onnx_ir's pass leaves every type unknown where it fails; an unknown type would count as a float.
    """

    def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
        check_shapes(proto)
        with_stand_ins(proto)
        with contextlib.suppress(onnx.shape_inference.InferenceError):
            return onnx.shape_inference.infer_shapes(proto, check_type=True, data_prop=True)
        return onnx.shape_inference.infer_shapes(proto, check_type=False, data_prop=True)

    try:
        return call_onnx_api(infer, model)
    except onnx.shape_inference.InferenceError as error:
        raise ImportModelError(f"types or shapes of the model contradict each other: {error}") from error


def _says_more(said: ir.Shape, inferred: ir.Shape | None) -> bool:
    """Whether the file's own shape has names or numbers that inference lost."""
    if inferred is None or len(said) != len(inferred):
        return True
    return any(_is_unknown(b) and not _is_unknown(a) for a, b in zip(said, inferred, strict=True))


def _is_unknown(dim: Dim) -> bool:
    return not isinstance(dim, int) and dim.value is None
