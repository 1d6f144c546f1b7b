"""Writing trained tensors back into the model as it was given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut import checkpoint
from gradcut.artifacts import BEST, TrainingArtifacts, check_output
from gradcut.dialect import declare
from gradcut.dialect.relatives import settings_inputs
from gradcut.errors import ArtifactsError, CheckpointError
from gradcut.model_files import write_model
from gradcut.passes.emit import strip_marks
from gradcut.source import MAX_BYTES
from gradcut.subgraphs import body_tensors

Array = np.ndarray[Any, Any]


def export(
    model: ir.Model, tensors: Mapping[str, Array], path: str | os.PathLike[str], keep_marks: bool = False
) -> Path | None:
    """Write `model` with `tensors` in place of its parameters and statistics of the same names.

    The graph, its names, opset and metadata stay as they were; marks are stripped unless `keep_marks`. What is not in
    `tensors` keeps its bytes. The file is written whole or not at all; ``.onnxtxt`` gives ONNX text,
    ``.textproto`` and ``.json`` protobuf's.

    Returns:
        The file of the weights, ``<path>.data``, where they are too many for one file of ONNX; else None.

    Raises:
        ArtifactsError: `path` is a directory or a file of artifacts, its folder is missing, it cannot be written, or
            is text and the weights are too many for it.
    """
    target = Path(path)
    check_output(target)
    result = model.clone()
    _write_back(result, tensors)
    if not keep_marks:
        settings = settings_inputs(result.graph)
        strip_marks(result)
        result.graph.inputs[:] = [value for value in result.graph.inputs if value not in settings]
        declare(result)
    for key in [key for key in result.metadata_props if key.startswith("gradcut.") and not keep_marks]:
        del result.metadata_props[key]
    return write_model(result, target, MAX_BYTES)


def written_back(artifacts: TrainingArtifacts) -> list[str]:
    """What moves and goes into an exported model: all but the state that the model takes as an input."""
    given = artifacts.model.graph
    inputs = {value.name for value in given.inputs} - {*given.initializers}
    manifest = artifacts.manifest
    return [*artifacts.trainable, *manifest["state"], *(name for name in manifest["declared"] if name not in inputs)]


def trained(artifacts: TrainingArtifacts, best: bool = False) -> tuple[dict[str, Array], int]:
    """The tensors of a checkpoint in a directory of artifacts, and the step that they are of.

    Args:
        best: of the best evaluation, not of the last one.

    Raises:
        ArtifactsError: no evaluation has written a best checkpoint. CheckpointError: it is damaged or of another model.
    """
    last = {name: np.asarray(array) for name, array in artifacts.tensors.items()}
    if not best:
        return last, int(artifacts.start.get("step", 0))
    path = (artifacts.folder or Path()) / BEST
    if not path.exists():
        raise ArtifactsError(f"{path}: no such checkpoint; gradcut train writes it where it holds rows out")
    tensors, record = checkpoint.load(path)
    for name in sorted({*last, *tensors}):
        if name not in last or name not in tensors or last[name].shape != tensors[name].shape:
            raise CheckpointError(f"{path} is of another model, or of another choice of what trains: {name!r}")
    return tensors, int(record["step"])


def _write_back(model: ir.Model, tensors: Mapping[str, Array]) -> None:
    left = dict(tensors)
    for name, value in model.graph.initializers.items():
        if name in left:
            value.const_value = _like(value.const_value, left.pop(name), name)
    for node in model.graph:
        if node.op_type == "Constant" and node.domain == "" and node.outputs[0].name in left:
            _write_constant(node, left.pop(node.outputs[0].name or ""))
    for name, value in body_tensors(model.graph).items() if left else ():
        if name not in left:
            continue
        if value.is_initializer():
            value.const_value = _like(value.const_value, left.pop(name), value.name or "")
        elif (producer := value.producer()) is not None:
            _write_constant(producer, left.pop(name))
    if left:
        raise ArtifactsError(f"the given model has no tensor {sorted(left)[0]!r} to write back to")


def _write_constant(node: ir.Node, array: Array) -> None:
    before, name = ir.convenience.get_const_tensor(node.outputs[0]), node.outputs[0].name or ""
    node.attributes.clear()
    node.attributes.add(ir.AttrTensor("value", _like(before, array, name)))


def _like(before: ir.TensorProtocol | None, array: Array, name: str) -> ir.Tensor[Array]:
    dtype = before.dtype if before is not None else ir.DataType.from_numpy(array.dtype)
    return ir.Tensor(array, dtype=dtype, name=name)
