"""One safetensors file that holds a training state: tensors and a JSON record, checked when read back."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gradcut.errors import CheckpointError
from gradcut.io import atomic_write

Array = np.ndarray[Any, Any]

KEY = "gradcut"  # the only metadata key: safetensors writes several in no fixed order
_MAPPED_BYTES = 1 << 24
_DTYPES = frozenset(np.dtype(code) for code in "?bBhHiIqQefd") | {np.dtype(ml_dtypes.bfloat16)}


def save(path: str | os.PathLike[str], tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; equal content gives equal bytes.

    Raises CheckpointError for a tensor of a dtype that cannot be stored, a `meta` that is no JSON, and when
    the file cannot be written (a full disk): the file that was there is then as before.
    """
    stored = {name: _storable(path, name, tensors[name]) for name in sorted(tensors)}
    plain = json.loads(_dump(path, dict(meta)))
    record = _dump(path, {"checksum": _checksum(stored, plain), "meta": plain})
    try:
        atomic_write(path, lambda temporary: _write(temporary, stored, record))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: the checkpoint could not be written ({error}); an earlier one there is untouched. "
            "Free some space, or choose another place"
        ) from error


def _write(path: Path, tensors: dict[str, Array], record: str) -> None:
    save_file(tensors, path, metadata={KEY: record})


def _storable(path: str | os.PathLike[str], name: str, tensor: Array) -> Array:
    array = np.require(tensor, dtype=tensor.dtype.newbyteorder("="), requirements="C")
    if array.dtype not in _DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} is {tensor.dtype}, which a checkpoint cannot hold")
    return array


def _dump(path: str | os.PathLike[str], record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint's record is no JSON: {error}") from error


def _checksum(tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> int:
    """CRC-32 over all there is: safetensors itself notices a short file, not a flipped bit."""
    heads = [(name, array.dtype.name, array.shape) for name, array in sorted(tensors.items())]
    checksum = zlib.crc32(json.dumps([heads, meta], sort_keys=True).encode())
    for name, _, _ in heads:
        checksum = zlib.crc32(tensors[name].reshape(-1).view(np.uint8).data, checksum)
    return checksum


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """The tensors (writable copies) and the record of a checkpoint.

    Raises CheckpointError when the file is missing, cut short, damaged, or no checkpoint of gradcut's.
    """
    try:
        tensors, record = _read(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if record.get("checksum") != _checksum(tensors, record["meta"]):
        raise _damaged(path, "its checksum does not fit its content")
    return tensors, record["meta"]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """What one file holds: where a run that goes on has replaced it meanwhile, it is read again."""
    while True:
        before = _identity(path)
        try:
            found = _read_once(path)
        except (OSError, SafetensorError, ValueError):
            if _identity(path) == before:
                raise
            continue
        if _identity(path) == before:
            return found


def _identity(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read_once(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    with safe_open(os.fspath(path), framework="np") as file:
        metadata, names = file.metadata() or {}, sorted(file.keys())
    if KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of gradcut's")
    tensors: dict[str, Array] = {}
    while len(tensors) < len(names):
        tensors |= _some(path, names[len(tensors) :])
    record = json.loads(metadata[KEY])
    if not isinstance(record, dict) or not isinstance(record.get("meta"), dict):
        raise ValueError("its record is not one of gradcut's")
    return tensors, record


def _some(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Array]:
    """The first of these tensors. What was read of a mapped file stays in memory until it is closed, so it is closed
    now and then: the tensors are there once, not twice."""
    found: dict[str, Array] = {}
    read = 0
    with safe_open(os.fspath(path), framework="np") as file:
        for name in names:
            found[name] = file.get_tensor(name)
            read += found[name].nbytes
            if read > _MAPPED_BYTES:
                break
    return found


def _damaged(path: str | os.PathLike[str], why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the checkpoint is damaged or cut short ({why}). Put a good copy in its place, "
        "or start again from `gradcut compile`"
    )
