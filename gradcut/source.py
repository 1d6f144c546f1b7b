"""Taking a model in: from a path, an `onnx.ModelProto` or an `onnx_ir.Model`, as it is.

Nothing is converted here; the `import` pass does that, on a copy.
"""

from __future__ import annotations

import copy
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import google.protobuf.message
import networkx as nx
import onnx
import onnx.parser
import onnx.serialization
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from gradcut.errors import ExternalDataError, ImportModelError, NotOnnxError
from gradcut.sparse import densified

Source = str | os.PathLike[str] | onnx.ModelProto | ir.Model
#: Files of text, by their suffix: the format that onnx calls it.
TEXT_SUFFIXES = {
    **dict.fromkeys((".onnxtxt", ".onnxtext", ".txt"), "onnxtxt"),
    **dict.fromkeys((".textproto", ".txtpb", ".prototxt", ".pbtxt"), "textproto"),
    **dict.fromkeys((".json", ".onnxjson"), "json"),
}
#: Protobuf takes no message above it; and weights up to here leave room for the rest of a model.
_LARGEST, MAX_BYTES = 2**31 - 1, 1_900_000_000


def load(model: Source) -> ir.Model:
    """The model as it was given.

    Args:
        model: the path of an ``.onnx`` file or of text (``.onnxtxt``, ``.textproto``, ``.json``, ...), a proto, or
            an IR model, which is returned itself.

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
    for graph in loaded.graphs():
        ir.external_data.set_base_dir(graph, path.parent)
    _check_external(loaded, path.parent)
    _take_in_attributes(loaded)
    _check_structure(loaded)
    _own_tensors(loaded)  # the proto has a copy of each, and goes
    return loaded


def own(model: Source) -> ir.Model:
    """As `load`, but always a model that may be changed without the caller seeing it."""
    loaded = load(model)
    mine = loaded.clone() if loaded is model else loaded
    if isinstance(model, (ir.Model, onnx.ModelProto)):
        _own_tensors(mine)
    return mine


def take_in(model: ir.Model) -> None:
    """Make weights that lie in files tensors of the model's own, over the mapped files: it may be written elsewhere."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def weights_size(model: ir.Model) -> int:
    """Bytes of all initializers of the main graph."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def require_one_message(model: ir.Model, what: str) -> None:
    """Raise where a model with its weights inside is more than a proto can be."""
    size = weights_size(model)
    if size > MAX_BYTES:
        raise ImportModelError(
            f"{what} is one protobuf message with its weights inside, at most 1.9 GB of them, and the model has "
            f"{size / 1e9:.2f} GB; compile it instead, which leaves them beside the graphs"
        )


def _from_proto(proto: onnx.ModelProto) -> ir.Model:
    loaded = _deserialized(proto, "the proto is not a valid ONNX model")
    _check_structure(loaded)
    for tensor in _external_tensors(loaded):
        raise ExternalDataError(
            f"tensor {tensor.name!r} lies outside the proto, in {str(tensor.location)!r}; give the model's path instead"
        )
    return loaded


def _read_binary(path: Path) -> ir.Model:
    if path.stat().st_size > _LARGEST:
        raise NotOnnxError(f"{path} is over 2 GB, which no ONNX file can be; save the model with its weights beside it")
    try:
        proto = _parsed(path)
    except google.protobuf.message.DecodeError as error:
        raise NotOnnxError(f"{path} is not an ONNX model, or it is cut short ({error})") from error
    except Exception as error:
        raise NotOnnxError(f"{path} cannot be read as an ONNX model: {_root(error)}") from error
    return _deserialized(proto, f"{path} cannot be read as an ONNX model")


def _parsed(path: Path) -> onnx.ModelProto:
    """Mapped, not read: a file may be large, and the proto is a copy of it already."""
    proto = onnx.ModelProto()
    with open(path, "rb") as file:
        if path.stat().st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                proto.ParseFromString(memoryview(mapped))
    return proto


def _read_text(path: Path) -> ir.Model:
    kind = TEXT_SUFFIXES[path.suffix]
    try:
        text = path.read_text(encoding="utf-8")
        proto = onnx.parser.parse_model(text) if kind == "onnxtxt" else onnx.load_model_from_string(text, kind)
    except UnicodeDecodeError as error:
        raise NotOnnxError(f"{path} is not ONNX text: {error}") from error
    except Exception as error:
        what = "ONNX text" if kind == "onnxtxt" else f"an ONNX model as {kind}"
        raise NotOnnxError(f"{path} is not {what}: {clean_parser_error(error)}") from error
    return _deserialized(proto, f"{path} is not a valid ONNX model")


def as_text(model: ir.Model, suffix: str) -> bytes:
    """A model with its weights as a file of text holds it."""
    if TEXT_SUFFIXES[suffix] == "onnxtxt":
        return ir.to_onnx_text(model).encode()
    return bytes(onnx.serialization.registry.get(TEXT_SUFFIXES[suffix]).serialize_proto(ir.to_proto(model)))


def _deserialized(proto: onnx.ModelProto, wrong: str) -> ir.Model:
    """The IR of a proto, which keeps the last of several initializers or inputs of one name without a word."""
    for what, values in (("initializers", proto.graph.initializer), ("inputs", proto.graph.input)):
        twice = next((name for name, count in Counter(value.name for value in values).items() if count > 1), None)
        if twice is not None:
            raise NotOnnxError(f"two {what} are called {twice!r}; which one is meant is unclear, rename one of them")
    proto = densified(proto)
    try:
        return ir.from_proto(proto)
    except Exception as error:
        raise NotOnnxError(f"{wrong}: {_root(error)}") from error


def clean_parser_error(error: Exception) -> str:
    """onnx's parser reports the repr of bytes; this is its text on one line."""
    text = str(error)
    if text.startswith(("b'", 'b"')):
        text = text[2:-1].encode().decode("unicode_escape")
    return " ".join(text.split())


def _root(error: BaseException) -> str:
    """What went wrong first, on one line: onnx_ir wraps it once for each level of the model."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _check_structure(model: ir.Model) -> None:
    """Refuse a graph without outputs, values that nothing gives, nodes that wait for each other, tensors of the wrong
    size or of no type; sort nodes where needed.
    """
    if not model.graph.outputs:
        raise NotOnnxError("the model's graph has no outputs")
    for graph in model.graphs():
        for value in graph.initializers.values():
            _check_size(value)
    known = {value for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())}
    sound = True
    for node in model.graph.all_nodes():
        if not node.op_type:
            raise NotOnnxError(f"node {node.name!r} says no operator")
        for value in [value for value in node.inputs if value is not None and value not in known]:
            if value.producer() is None:
                raise NotOnnxError(f"node {node.name!r} ({node.op_type}) reads {value.name!r}, which nothing gives")
            sound = False
        known.update(node.outputs)
    for output in model.graph.outputs:
        if output not in known:
            raise NotOnnxError(f"output {output.name!r} is given by no node")
    if not sound:
        _sort(model)


def _sort(model: ir.Model) -> None:
    try:
        TopologicalSortPass()(model)
    except ValueError:
        order = nx.DiGraph((before, node) for node in model.graph.all_nodes() for before in _before(node))
        names = " -> ".join(f"{node.name!r} ({node.op_type})" for node, _ in nx.find_cycle(order))
        raise NotOnnxError(f"the nodes {names} wait for each other's outputs; none of them can be the first") from None


def _before(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that run before a node has: those that give its operands, and those of its bodies."""
    yield from filter(None, (value.producer() for value in node.inputs if value is not None))
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph()


def _check_size(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is not None and tensor.dtype == ir.DataType.UNDEFINED:
        raise NotOnnxError(f"tensor {value.name!r} says no type of its numbers")
    if isinstance(tensor, ir.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
        have = len(tensor.raw.raw_data)
        if have != tensor.nbytes:
            raise NotOnnxError(f"tensor {value.name!r} should have {tensor.nbytes} bytes, and has {have}")


def _external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    tensors += [tensor for _, _, tensor in _tensor_attributes(model)]
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
    for node, name, tensor in _tensor_attributes(model):
        if isinstance(tensor, ir.ExternalTensor):
            inside = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
            node.attributes[name] = ir.AttrTensor(name, inside)


def _own_tensors(model: ir.Model) -> None:
    """Tensor objects are the caller's, and onnx_ir names them after their value; the memory behind is shared."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _own_tensor(value.const_value)
    for node, name, tensor in _tensor_attributes(model):
        node.attributes[name] = ir.AttrTensor(name, _own_tensor(tensor))


def _own_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.TensorProtoTensor) and tensor.dtype != ir.DataType.STRING:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return copy.copy(tensor)


def _tensor_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, str, ir.TensorProtocol]]:
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in body.all_nodes():
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield node, name, attribute.as_tensor()
