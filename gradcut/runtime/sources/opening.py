"""From what stands behind ``--data`` to a source."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradcut.errors import DataError
from gradcut.runtime.data import load_npz
from gradcut.runtime.sources.npy import load_folder, load_pairs
from gradcut.runtime.sources.rows import Rows
from gradcut.runtime.sources.stream import Stream, open_stream
from gradcut.runtime.sources.tables import load_parquet, load_safetensors

Array = np.ndarray[Any, Any]

FORMS = "an .npz, .safetensors or .parquet file, NAME=FILE.npy pairs, a folder of .npy files, or module:function"
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_LOADERS: dict[str, Callable[[str, Sequence[str], Collection[str]], dict[str, Array]]] = {
    ".npz": load_npz,
    ".safetensors": load_safetensors,
    ".parquet": load_parquet,
    ".pq": load_parquet,
}


def open_data(given: Sequence[str], names: Sequence[str], whole: Collection[str] = ()) -> Rows | Stream:
    """The source that `given` names: one file, folder or function, or a ``NAME=FILE.npy`` for every input.

    Args:
        names: the graph's inputs that the data are for, in its order. whole: those without a row per example.

    Raises:
        DataError: nothing of the sort, or it cannot be read. MissingExtraError: a parquet file without pyarrow.
    """
    pairs = [one for one in given if "=" in one and not os.path.exists(one)]
    if pairs:
        return Rows.of(", ".join(given), load_pairs(_files(given, len(pairs)), names, whole), whole)
    if len(given) != 1:
        raise DataError(f"{len(given)} sources of data are given; they are {FORMS}")
    path = given[0]
    if not os.path.exists(path) and _FUNCTION.fullmatch(path):
        return open_stream(path, names)
    return Rows.of(path, _load(path, names, whole), whole)


def is_stream(given: Sequence[str]) -> bool:
    """Whether `open_data` would give a function's batches."""
    return len(given) == 1 and not os.path.exists(given[0]) and _FUNCTION.fullmatch(given[0]) is not None


def _files(given: Sequence[str], pairs: int) -> dict[str, str]:
    if pairs != len(given):
        raise DataError(f"NAME=FILE.npy is said for every input or for none; data are {FORMS}")
    files: dict[str, str] = {}
    for one in given:
        name, _, file = one.partition("=")
        if name in files:
            raise DataError(f"the input {name!r} is given two files, {files[name]} and {file}")
        files[name] = file
    return files


def _load(path: str, names: Sequence[str], whole: Collection[str]) -> dict[str, Array]:
    if os.path.isdir(path) and Path(path).suffix not in _LOADERS:
        return load_folder(path, names, whole)
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file")
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        raise DataError(f"{path} is a single npy array; say NAME={path} for the input it is of, and so on")
    if suffix not in _LOADERS and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not of a kind that is read; data are {FORMS}")
    return _LOADERS.get(suffix, load_npz)(path, names, whole)
