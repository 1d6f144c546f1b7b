"""Data with a known number of rows, and the checksum by which a resumed run knows them again."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Of a mapped array up to this many bytes every byte is in the checksum, of a larger one samples spread over it.
WHOLE = 1 << 28
_SAMPLE, _SAMPLES = 1 << 20, 256


@dataclass(frozen=True)
class Rows:
    """Arrays with one row per example.

    Attributes:
        name: what a message calls them: the file.
        arrays: by graph input name, as they are stored; a mapped one (`numpy.memmap`) is read where it is indexed.
        whole: the names of those that have no row per example, and are taken as they are.
        checksum: over names, dtypes, shapes and content, so that nobody resumes on other data. A mapped file above
            256 MiB counts by 256 MiB of it, spread evenly: what is read at every start must stay cheap.
    """

    name: str
    arrays: dict[str, Array]
    checksum: int
    whole: Collection[str] = ()

    @classmethod
    def of(cls, name: str, arrays: Mapping[str, Array], whole: Collection[str] = ()) -> Rows:
        """Rows with their checksum."""
        return cls(name, dict(arrays), _checksum(arrays), whole)

    def __len__(self) -> int:
        return next(len(array) for name, array in self.arrays.items() if name not in self.whole)

    def take(self, rows: Any) -> dict[str, Array]:
        """These rows (indices or a slice) of every array, in memory."""
        return {n: np.asarray(a if n in self.whole else a[rows]) for n, a in self.arrays.items()}


def _checksum(arrays: Mapping[str, Array]) -> int:
    checksum = 0
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name}{array.dtype}{array.shape}".encode(), checksum)
        if isinstance(array, np.memmap) and array.nbytes > WHOLE:
            checksum = _sampled(array, checksum)
        else:
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            checksum = zlib.crc32(content.data, checksum)
    return checksum


def _sampled(array: Array, checksum: int) -> int:
    """CRC-32 of pieces from the first byte to the last, in the order of the file."""
    content = np.asarray(array).ravel(order="K").view(np.uint8)
    for start in np.linspace(0, len(content) - _SAMPLE, _SAMPLES).astype(np.int64):
        checksum = zlib.crc32(np.ascontiguousarray(content[start : start + _SAMPLE]).data, checksum)
    return checksum
