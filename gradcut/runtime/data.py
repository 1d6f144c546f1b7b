"""Rows at run time: arrays from an npz file, the train/held-out split, shuffled batches."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
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


def load_npz(
    path: str | os.PathLike[str], names: Iterable[str] | None = None, whole: Collection[str] = ()
) -> dict[str, Array]:
    """The arrays of an npz file, all of the same first dimension N >= 1 (the examples).

    Args:
        names: read only these; what else lies in the file is then not looked at.
        whole: those without a row per example.

    Raises DataError when the file is missing or no npz, when it holds nothing, a pickled (object) array or a
    scalar, when its arrays differ in length, and when one of `names` is not among them.
    """
    data = _read(path, names)
    if not data:
        raise DataError(f"{path} holds no array; write one per graph input: np.savez(path, x=..., y=...)")
    check_lengths(path, data, whole)
    return data


def _read(path: str | os.PathLike[str], names: Iterable[str] | None) -> dict[str, Array]:
    try:
        with open(path, "rb") as file:
            if file.read(2) not in (b"PK", b"\x93N"):
                raise ValueError("it is no zip archive")
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single npy array; write an npz with one array per graph input")
        with archive:
            if names is not None and archive.files:
                check_keys(dict.fromkeys(archive.files), names, path)
            wanted = archive.files if names is None else [key for key in names if key in archive.files]
            return {key: _member(path, archive, key) for key in wanted}
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


def check_lengths(path: str | os.PathLike[str], data: Mapping[str, Array], whole: Collection[str] = ()) -> None:
    """Raise DataError unless every array but those that are `whole` has the same number of rows, and at least one."""
    first = next(name for name in data if name not in whole)
    for key, array in data.items():
        if key in whole:
            continue
        if array.ndim == 0:
            raise DataError(f"{path}: {key!r} is a scalar; every array needs one row per example")
        if len(array) != len(data[first]):
            raise DataError(
                f"{path}: {first!r} has {len(data[first])} rows and {key!r} has {len(array)}; "
                "every array needs one row per example"
            )
    if len(data[first]) == 0:
        raise DataError(f"{path}: the arrays have no rows")


def check_keys(data: Mapping[str, Any], expected: Iterable[str], where: object = "the data") -> None:
    """Raise DataError unless every name in `expected` is a key of `data`; keys beyond them are allowed.

    Args:
        where: what the message calls the data, such as their file.
    """
    missing = [name for name in expected if name not in data]
    if not missing:
        return
    hints = [f"{name!r} may be {close[0]!r}" for name in missing if (close := nearest(name, data, 1))]
    hint = f" ({'; '.join(hints)})" if hints else ""
    raise DataError(
        f"{where} lacks {join_names(map(repr, missing))}{hint}; it has {join_names(map(repr, data)) or 'nothing'}"
    )


class Batches:
    """Shuffled batches over the rows `indices`; the order depends only on (seed, epoch)."""

    def __init__(self, indices: Array, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise DataError(f"batch size {batch_size} is not at least 1")
        if len(indices) == 0:
            raise DataError("no rows are left to make batches of")
        self._indices = np.asarray(indices)
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        """Batches per epoch, the ragged last one included."""
        return -(-len(self._indices) // self._batch_size)

    @property
    def last(self) -> int:
        """Rows of an epoch's last batch."""
        return (len(self._indices) - 1) % self._batch_size + 1

    def rows(self, epoch: int, start: int = 0) -> Iterator[Array]:
        """The rows of each batch of `epoch` from number `start` on: a resumed run goes on in the same order."""
        order = np.random.default_rng((self._seed, epoch)).permutation(self._indices)
        for begin in range(start * self._batch_size, len(order), self._batch_size):
            yield order[begin : begin + self._batch_size]
