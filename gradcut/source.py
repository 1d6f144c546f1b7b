"""Taking a model in: from a path, an `onnx.ModelProto` or an `onnx_ir.Model`, as it is.

Nothing is converted here; the `import` pass does that, on a copy.
"""

from __future__ import annotations

import os
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as ir

from gradcut.errors import ExternalDataError, ImportModelError, NotOnnxError

Source = str | os.PathLike[str] | onnx.ModelProto | ir.Model
TEXT_SUFFIXES = (".onnxtxt", ".txt", ".onnxtext")


def load(model: Source) -> ir.Model:
    """The model as it was given.

    Args:
        model: the path of an ``.onnx`` file or of ONNX text (``.onnxtxt``), a proto, or an IR model, which is
            returned itself.

    Raises:
        NotOnnxError: the file is not ONNX, or cut short.
        ExternalDataError: weights beside the file are missing, too short, or outside its folder.
    """
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return _from_proto(model)
    if not isinstance(model, (str, os.PathLike)):
        raise ImportModelError(f"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not {type(model).__name__}")
    path = Path(model)
    if path.is_dir():
        raise ImportModelError(f"{path} is a directory; give the model file in it, such as {path / 'model.onnx'}")
    if not path.is_file():
        raise ImportModelError(f"{path}: there is no such file")
    loaded = _read_text(path) if path.suffix in TEXT_SUFFIXES else _read_binary(path)
    if not loaded.graph.outputs and len(loaded.graph) == 0:
        raise NotOnnxError(f"{path} is not an ONNX model: it holds no graph")
    if not loaded.opset_imports:
        raise NotOnnxError(f"{path} is not a whole ONNX model: it says no opset; it may be cut short")
    _check_external(loaded, path.parent)
    _take_in_attributes(loaded)
    return loaded


def own(model: Source) -> ir.Model:
    """As `load`, but always a model that may be changed without the caller seeing it."""
    loaded = load(model)
    return loaded.clone() if loaded is model else loaded


def _from_proto(proto: onnx.ModelProto) -> ir.Model:
    copy = ir.from_proto(proto)
    for tensor in _external_tensors(copy):
        raise ExternalDataError(
            f"tensor {tensor.name!r} lies outside the proto, in {str(tensor.location)!r}; give the model's path instead"
        )
    return copy


def _read_binary(path: Path) -> ir.Model:
    try:
        return ir.load(path)
    except google.protobuf.message.DecodeError as error:
        raise NotOnnxError(f"{path} is not an ONNX model, or it is cut short ({error})") from error
    except Exception as error:
        raise NotOnnxError(f"{path} cannot be read as an ONNX model: {error}") from error


def _read_text(path: Path) -> ir.Model:
    try:
        return ir.from_onnx_text(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise NotOnnxError(f"{path} is not ONNX text: {error}") from error
    except Exception as error:
        raise NotOnnxError(f"{path} is not ONNX text: {clean_parser_error(error)}") from error


def clean_parser_error(error: Exception) -> str:
    """onnx's parser reports the repr of bytes; this is its text on one line."""
    text = str(error)
    if text.startswith(("b'", 'b"')):
        text = text[2:-1].encode().decode("unicode_escape")
    return " ".join(text.split())


def _external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in body.all_nodes():
            tensors += [
                a.as_tensor() for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR and not a.is_ref()
            ]
    return [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]


def _check_external(model: ir.Model, folder: Path) -> None:
    """Refuse absolute paths, paths and links that lead outside the folder, missing and short files."""
    root = folder.resolve()
    for tensor in _external_tensors(model):
        location = str(tensor.location)
        target = (root / location).resolve()
        if os.path.isabs(location) or not target.is_relative_to(root):
            raise ExternalDataError(
                f"tensor {tensor.name!r} refers to {location!r}, which lies outside the model's folder"
            )
        if not target.is_file():
            raise ExternalDataError(f"tensor {tensor.name!r} needs {location!r}, which is not beside the model")
        start, length = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
        if start < 0 or length < tensor.nbytes:
            raise ExternalDataError(
                f"tensor {tensor.name!r} takes {tensor.nbytes} bytes, and the model says {length} at {start}"
            )
        end = start + length
        if end > target.stat().st_size:
            raise ExternalDataError(
                f"tensor {tensor.name!r} needs {end} bytes of {location!r}, which has {target.stat().st_size}"
            )


def _take_in_attributes(model: ir.Model) -> None:
    """Read the tensors of Constant nodes into memory: elsewhere, only initializers are expected to lie in files."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in body.all_nodes():
            for name, attribute in list(node.attributes.items()):
                tensor = None if attribute.is_ref() else attribute.value
                if attribute.type == ir.AttributeType.TENSOR and isinstance(tensor, ir.ExternalTensor):
                    inside = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
                    node.attributes[name] = ir.AttrTensor(name, inside)
