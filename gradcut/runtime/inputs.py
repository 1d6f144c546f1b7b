"""From data to what the training graph is fed: names, casts that lose nothing a user would miss, checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

    Integers become other integers where those hold their values; floats widen, and float64 becomes float32 (both are
    what numpy and parquet files hold by default); integer and boolean labels become floats where the loss takes floats
    and the values are exact. Nothing else is cast: a float where the graph takes a class index stays an error, and so
    do raw integers (pixels) for a float input.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        ports = [p for p in manifest["graphs"]["training_model"]["inputs"] if p["role"] in ("user", "label")]
        self._ports = {port["name"]: port for port in ports}
        self._loss = manifest["loss"]
        self._wanted = {name: _dtype(port) for name, port in self._ports.items()}
        self.whole, self.fixed = batch_of(ports)
        opened = [port if port["name"] in self.whole else _opened(port) for port in ports]
        self._check_rows, self._check_batch = FeedCheck(opened, self._loss), FeedCheck(ports, self._loss)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._ports)

    def count(self, feeds: Mapping[str, Array]) -> int:
        """The rows of a batch; 0 where no input has any."""
        names = sorted(self._ports, key=lambda name: self._ports[name]["role"] != "label")
        return next((len(feeds[name]) for name in names if name not in self.whole), 0)

    def require_rows(self) -> None:
        """Raise DataError where no file can hold what the graph takes, a function's batches can."""
        advice = "write a function that yields batches, and give it as --data module:function"
        if len(self.whole) == len(self._ports):
            raise DataError(f"no input of the graph has a batch as its first dimension; {advice}")
        shapes = {name: port["shape"] for name, port in self._ports.items() if port["shape"]}
        batches = {shape[0] for shape in shapes.values() if isinstance(shape[0], str)}
        for name, shape in shapes.items():
            axis = next((axis for axis, size in enumerate(shape) if size in batches), 0)
            if axis and not isinstance(shape[0], str):
                raise DataError(
                    f"the batch of {name!r} is its axis {axis} ({shape[axis]}), and files hold a row per example; "
                    f"{advice}"
                )

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
        return Rows(rows.name, arrays, rows.checksum, rows.whole)

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
        large = {n for n, a in arrays.items() if isinstance(a, np.memmap) and n not in self.whole}
        feeds = {n: a[:1] if n in large else a for n, a in arrays.items() if n not in labels}
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


def batch_of(ports: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], int | None]:
    """Which inputs have no row per example, and the batch that the file fixes, None where it is open.

    A scalar has none. The batch is the first dimension of the labels where that is a number; otherwise it is open where
    some input's first dimension is, and else that of the first input. An input with another number there has none: it
    is the same for every batch, such as a table of means.
    """
    firsts = {port["name"]: port["shape"][0] if port["shape"] else None for port in ports}
    scalars = {port["name"] for port in ports if port["shape"] == []}
    labels = [port["name"] for port in ports if port["role"] == "label" and port["name"] not in scalars]
    users = [port["name"] for port in ports if port["role"] == "user" and port["name"] not in scalars]
    fixed = [firsts[name] for name in labels if isinstance(firsts[name], int)]
    if not fixed and all(isinstance(firsts[name], int) for name in users):
        fixed = [firsts[name] for name in users]
    batch = fixed[0] if fixed else None
    constant = {name for name in users if isinstance(firsts[name], int) and firsts[name] != batch}
    return tuple(name for name in firsts if name in scalars | constant), batch


def _opened(port: Mapping[str, Any]) -> dict[str, Any]:
    """The port for any number of rows."""
    return {**port, "shape": [None, *port["shape"][1:]] if port["shape"] else None}


def _dtype(port: Mapping[str, Any]) -> np.dtype[Any] | None:
    known = port["dtype"] not in (None, "STRING")
    return np.dtype(ir.DataType[port["dtype"]].numpy()) if known else None


def _may_become(have: np.dtype[Any], wanted: np.dtype[Any], label: bool) -> bool:
    if wanted.kind in "iu":
        return have.kind in "iu"
    if have.kind in "biu":
        return label and wanted.kind == "f"
    return wanted.kind == "f" and (np.can_cast(have, wanted, "safe") or _rounds(have, wanted))


def _rounds(have: np.dtype[Any], wanted: np.dtype[Any] | None) -> bool:
    return have == np.float64 and wanted == np.float32
