"""One .npy file per graph input, mapped into memory: files may be larger than it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradcut.errors import DataError
from gradcut.runtime.data import check_keys, check_lengths
from gradcut.text import join_names

Array = np.ndarray[Any, Any]


def load_pairs(files: Mapping[str, str], names: Sequence[str], whole: Collection[str] = ()) -> dict[str, Array]:
    """Arrays of files given by input name; a name that the graph does not take is an error.

    Raises:
        DataError: a name without a file, a file that is missing or no npy array, arrays that differ in length.
    """
    unknown = [name for name in files if name not in names]
    if unknown:
        raise DataError(f"the graph has no input {unknown[0]!r}; it takes {join_names(map(repr, names))}")
    missing = [name for name in names if name not in files]
    if missing:
        raise DataError(f"no file for {join_names(map(repr, missing))}; say {missing[0]}=FILE.npy as well")
    return _mapped(join_names(files[name] for name in names), {name: files[name] for name in names}, whole)


def load_folder(folder: str | os.PathLike[str], names: Sequence[str], whole: Collection[str] = ()) -> dict[str, Array]:
    """Arrays of the files ``<input name>.npy`` in a folder; others in it are not looked at.

    Raises:
        DataError: an input without a file, a file that is no npy array, arrays that differ in length.
    """
    found = {path.stem: path for path in sorted(Path(folder).iterdir()) if path.suffix == ".npy"}
    if not found:
        raise DataError(f"{folder} holds no .npy file; it needs one per graph input: {join_names(names)}")
    check_keys(found, names, folder)
    return _mapped(folder, {name: found[name] for name in names}, whole)


def _mapped(
    where: str | os.PathLike[str], files: Mapping[str, str | os.PathLike[str]], whole: Collection[str]
) -> dict[str, Array]:
    arrays = {name: _open(file) for name, file in files.items()}
    check_lengths(where, arrays, whole)
    return arrays


def _open(path: str | os.PathLike[str]) -> Array:
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        if "Python object" in str(error):
            raise DataError(
                f"{path} is an array of Python objects, which would have to be unpickled; give it a numeric dtype"
            ) from error
        raise DataError(f"{path} is no readable npy file ({error}); write it with np.save") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path} is an npz file; give it alone, without a name")
    return array
