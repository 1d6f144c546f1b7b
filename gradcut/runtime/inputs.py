"""From data to what the training graph is fed: names, casts that lose nothing a user would miss, checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.errors import DataError, FeedError
from gradcut.runtime.feeds import FeedCheck
from gradcut.runtime.sources import Rows

Array = np.ndarray[Any, Any]
#: Labels of a mapped file are checked in pieces of about this many.
_PIECE = 1 << 24


class Inputs:
    """The inputs that data must have: those of the user's model, and the labels.

    Integers widen; floats widen, and float64 becomes float32, which is what numpy and parquet files hold by default;
    integer and boolean labels become floats where the loss takes floats and the values are exact. Nothing else is
    cast: a float where the graph takes a class index stays an error, and so do raw integers (pixels) for a float input.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        ports = [p for p in manifest["graphs"]["training_model"]["inputs"] if p["role"] in ("user", "label")]
        self._ports = {port["name"]: port for port in ports}
        self._loss = manifest["loss"]
        self._wanted = {name: _dtype(port) for name, port in self._ports.items()}
        opened = [{**port, "shape": [None, *port["shape"][1:]] if port["shape"] else None} for port in ports]
        self._check_rows, self._check_batch = FeedCheck(opened, self._loss), FeedCheck(ports, self._loss)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._ports)

    @property
    def fixed(self) -> int | None:
        """The batch that the graph's file fixes, None where it is open."""
        sizes = [port["shape"][0] for port in self._ports.values() if port["shape"]]
        return next((size for size in sizes if isinstance(size, int)), None)

    def rounded(self, arrays: Mapping[str, Array]) -> list[str]:
        """The float64 arrays that become float32."""
        return [name for name, array in arrays.items() if _rounds(array.dtype, self._wanted[name])]

    def cast(self, arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
        """The arrays in the graph's dtypes as far as they are cast at all.

        Raises:
            DataError: a value that the dtype cannot hold.
        """
        return {name: self._cast(name, array, where) for name, array in arrays.items()}

    def checked(self, rows: Rows) -> Rows:
        """The rows cast (mapped arrays stay as they are: `cast` what is taken of them) and checked.

        Raises:
            DataError, FeedError: with the name of the source.
        """
        arrays = {
            name: array if isinstance(array, np.memmap) else self._cast(name, array, rows.name)
            for name, array in rows.arrays.items()
        }
        for start, feeds in self._pieces(arrays, rows.name):
            try:
                self._check_rows(feeds)
            except FeedError as error:
                where = f"{rows.name}, rows from {start} on" if start else rows.name
                raise FeedError(f"{where}: {error}") from None
        return Rows(rows.name, arrays, rows.checksum)

    def batch(self, arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
        """One batch of a stream, cast and checked.

        Raises:
            DataError, FeedError: with `where`, the stream and the batch's number.
        """
        feeds = self.cast(arrays, where)
        try:
            return self._check_batch(feeds)
        except FeedError as error:
            raise FeedError(f"{where}: {error}") from None

    def _pieces(self, arrays: Mapping[str, Array], where: str) -> Iterator[tuple[int, dict[str, Array]]]:
        """All there is, but of a mapped input one row: dtype and shape are those of every row."""
        labels = {n: a for n, a in arrays.items() if isinstance(a, np.memmap) and self._ports[n]["role"] == "label"}
        feeds = {n: a[:1] if isinstance(a, np.memmap) else a for n, a in arrays.items() if n not in labels}
        feeds = self.cast(feeds, where)
        if not labels:
            yield 0, feeds
            return
        first = next(iter(labels.values()))
        step = max(_PIECE // max(first[:1].size, 1), 1)
        for start in range(0, len(first), step):
            yield start, {**feeds, **self.cast({n: a[start : start + step] for n, a in labels.items()}, where)}

    def _cast(self, name: str, array: Array, where: str) -> Array:
        wanted, label = self._wanted[name], self._ports[name]["role"] == "label"
        if wanted is None or array.dtype == wanted or not _may_become(array.dtype, wanted, label):
            return array
        with np.errstate(over="ignore"):
            result = array.astype(wanted)
        bad = result != array if array.dtype.kind in "biu" else np.isinf(result) & ~np.isinf(array)
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            raise DataError(
                f"{where}: {name!r} holds {array[place]} at row {place[0]}, which {wanted}, what the graph takes, "
                "cannot hold"
            )
        return np.asarray(result)


def _dtype(port: Mapping[str, Any]) -> np.dtype[Any] | None:
    known = port["dtype"] not in (None, "STRING")
    return np.dtype(ir.DataType[port["dtype"]].numpy()) if known else None


def _may_become(have: np.dtype[Any], wanted: np.dtype[Any], label: bool) -> bool:
    if wanted.kind in "iu":
        return have.kind in "iu" and np.can_cast(have, wanted, "safe")
    if have.kind in "biu":
        return label and wanted.kind == "f"
    return wanted.kind == "f" and (np.can_cast(have, wanted, "safe") or _rounds(have, wanted))


def _rounds(have: np.dtype[Any], wanted: np.dtype[Any] | None) -> bool:
    return have == np.float64 and wanted == np.float32
