"""Arrays by name in one file: safetensors and parquet."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gradcut.errors import DataError, MissingExtraError
from gradcut.runtime.data import check_keys, check_lengths

Array = np.ndarray[Any, Any]


def load_safetensors(
    path: str | os.PathLike[str], names: Sequence[str], whole: Collection[str] = ()
) -> dict[str, Array]:
    """The tensors `names` of a safetensors file; others in it are not looked at.

    Raises:
        DataError: no such file or none of safetensors, a name that it lacks, tensors that differ in length.
    """
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            check_keys(dict.fromkeys(file.keys()), names, path)
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no readable safetensors file ({error})") from error
    check_lengths(path, arrays, whole)
    return arrays


def load_parquet(path: str | os.PathLike[str], names: Sequence[str], whole: Collection[str] = ()) -> dict[str, Array]:
    """The columns `names` of a parquet file: numbers as vectors, lists of one length as rows of an array.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: no parquet file, a column that it lacks, that is not of numbers, that has nulls, or whose lists
            differ in length.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("a parquet file", "parquet") from error
    try:
        with pq.ParquetFile(path) as file:
            check_keys(dict.fromkeys(file.schema_arrow.names), names, path)
            table = file.read(columns=list(names))
    except (OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is no readable parquet file ({first})") from error
    arrays = {name: _column(pa, f"{path}: the column {name!r}", table.column(name)) for name in names}
    check_lengths(path, arrays, whole)
    return arrays


def _column(pa: Any, where: str, column: Any) -> Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(array, pa.FixedShapeTensorArray):
        _require_values(array, where)
        return np.asarray(array.to_numpy_ndarray())
    return _values(pa, where, array)


def _values(pa: Any, where: str, array: Any) -> Array:
    """An array of numbers, or of lists of what is one again; the lists become the next axis."""
    _require_values(array, where)
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        length = _length(where, array)
        inner = _values(pa, where, array.flatten())
        return inner.reshape(len(array), length, *inner.shape[1:])
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"{where} is of {kind}; columns of numbers, or of lists of numbers, are taken")
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _require_values(array: Any, where: str) -> None:
    if array.null_count:
        row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{where} has no value (null) at row {row}; fill or drop such rows")


def _length(where: str, array: Any) -> int:
    """The length of every list; 0 where there is none."""
    lengths = np.asarray(array.value_lengths().to_numpy(zero_copy_only=False)) if len(array) else np.zeros(1, int)
    other = np.flatnonzero(lengths != lengths[0])
    if other.size:
        raise DataError(
            f"{where} has {lengths[other[0]]} values at row {other[0]} and {lengths[0]} at row 0; "
            "pad or cut its lists to one length"
        )
    return int(lengths[0])
