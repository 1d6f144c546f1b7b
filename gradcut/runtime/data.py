"""Training data at run time: arrays from an npz file, the train/held-out split, shuffled batches."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gradcut.errors import DataError
from gradcut.text import join_names, nearest

Array = np.ndarray[Any, Any]


def split_indices(n: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """Rows of `n` split into (train, held out), each ascending; round(n * fraction) rows are held out."""
    order = np.random.default_rng(seed).permutation(n)
    held = int(round(n * fraction))  # noqa: RUF046 - n or fraction may be a numpy scalar, whose round() is no int
    return np.sort(order[held:]), np.sort(order[:held])


def load_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of an npz file, all of the same first dimension N >= 1 (the examples).

    Raises DataError when the file is missing or no npz, when it holds nothing, a pickled (object) array or a
    scalar, and when its arrays differ in length.
    """
    data = _read(path)
    if not data:
        raise DataError(f"{path} holds no array; write one per graph input: np.savez(path, x=..., y=...)")
    _check_lengths(path, data)
    return data


def _read(path: str | os.PathLike[str]) -> dict[str, Array]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single npy array; write an npz with one array per graph input")
        with archive:
            return {key: _member(path, archive, key) for key in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no readable npz file ({error}); write it with np.savez") from error


def _member(path: str | os.PathLike[str], archive: Any, key: str) -> Array:
    try:
        array = archive[key]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise DataError(
            f"{path}: {key!r} is an array of Python objects, which would have to be unpickled; give it a numeric dtype"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key!r} is not a npy array")
    return array


def _check_lengths(path: str | os.PathLike[str], data: Mapping[str, Array]) -> None:
    first = next(iter(data))
    for key, array in data.items():
        if array.ndim == 0:
            raise DataError(f"{path}: {key!r} is a scalar; every array needs one row per example")
        if len(array) != len(data[first]):
            raise DataError(
                f"{path}: {first!r} has {len(data[first])} rows and {key!r} has {len(array)}; "
                "every array needs one row per example"
            )
    if len(data[first]) == 0:
        raise DataError(f"{path}: the arrays have no rows")


def check_keys(data: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Raise DataError unless every name in `expected` is a key of `data`; keys beyond them are allowed."""
    missing = [name for name in expected if name not in data]
    if not missing:
        return
    hints = [f"{name!r} may be {close[0]!r}" for name in missing if (close := nearest(name, data, 1))]
    hint = f" ({'; '.join(hints)})" if hints else ""
    raise DataError(
        f"the data lacks {join_names(map(repr, missing))}{hint}; it has {join_names(map(repr, data)) or 'nothing'}"
    )


class Batches:
    """Shuffled batches over the rows `indices` of `data`; the order depends only on (seed, epoch)."""

    def __init__(self, data: Mapping[str, Array], indices: Array, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise DataError(f"batch size {batch_size} is not at least 1")
        if len(indices) == 0:
            raise DataError("no rows are left to make batches of")
        self._data = dict(data)
        self._indices = np.asarray(indices)
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        """Batches per epoch, the ragged last one included."""
        return -(-len(self._indices) // self._batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, Array]]:
        """The batches of `epoch` from number `start` on: a resumed run goes on in the same order."""
        order = np.random.default_rng((self._seed, epoch)).permutation(self._indices)
        for begin in range(start * self._batch_size, len(order), self._batch_size):
            rows = order[begin : begin + self._batch_size]
            yield {key: array[rows] for key, array in self._data.items()}
