"""Writing a model as a file: whole or not at all, its weights inside, or beside it where they are too many."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from gradcut.errors import ArtifactsError
from gradcut.io import atomic_write, atomic_write_bytes, sync
from gradcut.source import MAX_BYTES, TEXT_SUFFIXES, as_text, take_in, weights_size


def write_model(model: ir.Model, target: Path, limit: int = MAX_BYTES) -> Path | None:
    """Write a model; ``.onnxtxt`` gives ONNX text, ``.textproto`` and ``.json`` protobuf's.

    Args:
        limit: the bytes of weights that one file holds.

    Returns:
        The file of the weights, ``<target>.data``, where they are too many for one file of ONNX; else None.

    Raises:
        ArtifactsError: it cannot be written, or is text and the weights are too many for it.
    """
    try:
        return _write(model, target, limit)
    except OSError as error:
        raise ArtifactsError(f"{target}: the model could not be written ({error.strerror or error})") from error


def _write(model: ir.Model, target: Path, limit: int) -> Path | None:
    """Weights inside the file, or beside it."""
    if weights_size(model) > limit:
        return _write_beside(model, target)
    take_in(model)
    if target.suffix in TEXT_SUFFIXES:
        atomic_write_bytes(target, as_text(model, target.suffix))
    else:
        atomic_write(target, lambda temporary: ir.save(model, temporary, format="protobuf"))
    return None


def _write_beside(model: ir.Model, target: Path) -> Path:
    """Both files are whole before either takes its place."""
    if target.suffix in TEXT_SUFFIXES:
        raise ArtifactsError(f"{target}: text holds the weights, which are over 1.9 GB here; write an .onnx file")
    data = f"{target.name}.data"
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as name:
        staging = Path(name)
        ir.save(model, staging / target.name, external_data=data)
        for file in (data, target.name):
            sync(staging / file)
            (staging / file).replace(target.parent / file)
    sync(target.parent)
    return target.parent / data
