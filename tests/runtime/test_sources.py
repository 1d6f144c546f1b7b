"""Data of every kind: what is read, how it is cast, and what is refused with the file's name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

import gradcut
from gradcut.errors import DataError, FeedError, MissingExtraError
from gradcut.runtime.inputs import Inputs
from gradcut.runtime.sources import Rows, Stream, open_data
from tests.exported import text

NAMES = ("x", "labels")


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(7, 3)).astype(np.float32), "labels": rng.integers(0, 3, 7)}


def opened(*given: object) -> Rows:
    source = open_data([str(one) for one in given], NAMES)
    assert isinstance(source, Rows)
    return source


def write(kind: str, folder: Path, arrays: dict[str, Any]) -> list[str]:
    """The arrays in a file or files of a kind; what stands behind --data."""
    target = folder / f"data.{kind}"
    if kind == "npz":
        np.savez(target, **arrays)
    elif kind == "safetensors":
        save_file(arrays, target)
    elif kind == "parquet":
        pq.write_table(pa.table({name: _cells(array) for name, array in arrays.items()}), target)
    elif kind == "folder":
        folder = folder / "data"
        folder.mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return [str(folder)]
    else:
        for name, array in arrays.items():
            np.save(folder / f"my_{name}.npy", array)
        return [f"{name}={folder / f'my_{name}.npy'}" for name in arrays]
    return [str(target)]


def _cells(array: np.ndarray) -> Any:
    return array if array.ndim == 1 else array.tolist()


KINDS = ("npz", "safetensors", "parquet", "folder", "pairs")


# --- what is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(kind: str, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    if kind == "parquet":
        columns = {"x": pa.FixedSizeListArray.from_arrays(arrays["x"].ravel(), 3), "labels": arrays["labels"]}
        pq.write_table(pa.table(columns), tmp_path / "data.parquet", row_group_size=3)
        source = opened(tmp_path / "data.parquet")
    else:
        source = opened(*write(kind, tmp_path, arrays))
    assert len(source) == 7 and list(source.arrays) == ["x", "labels"]
    for name, array in source.take(np.array([5, 0, 2])).items():
        assert type(array) is np.ndarray and array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name][[5, 0, 2]])
    assert source.checksum == Rows.of("", arrays).checksum  # the same rows in another kind of file are the same data


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_graph_does_not_take_is_not_looked_at(kind: str, tmp_path: Path, arrays: dict[str, Any]) -> None:
    if kind == "pairs":
        with pytest.raises(DataError, match="the graph has no input 'more'; it takes 'x', 'labels'"):
            opened(*write(kind, tmp_path, {**arrays, "more": np.zeros(7)}))
        return
    assert list(opened(*write(kind, tmp_path, {"more": np.zeros(7), **arrays})).arrays) == ["x", "labels"]


def test_npy_files_are_mapped(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    source = opened(*write("pairs", tmp_path, arrays))
    assert all(isinstance(array, np.memmap) for array in source.arrays.values())


def test_parquet_columns(tmp_path: Path) -> None:
    """Nested lists, fixed sizes, tensors, dictionaries, booleans; slices of larger arrays; several row groups."""
    images = np.arange(48, dtype=np.float32).reshape(4, 3, 4)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    sizes = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(images.ravel(), 4), 3)
    table = pa.table(
        {
            "nested": pa.array(images.tolist() * 2).slice(2, 4),
            "large": pa.array([[1.5], [2.5], [3.5], [4.5]], pa.large_list(pa.float64())),
            "sizes": pa.concat_arrays([sizes, sizes]).slice(4, 4),
            "tensors": tensors,
            "names": pa.array([7, 8, 7, 9]).dictionary_encode(),
            "flags": [True, False, True, True],
        }
    )
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=3)
    source = open_data([str(tmp_path / "f.parquet")], table.column_names)
    assert isinstance(source, Rows)
    found = source.arrays
    np.testing.assert_array_equal(found["nested"], np.concatenate([images, images])[2:6])
    np.testing.assert_array_equal(found["sizes"], images)
    np.testing.assert_array_equal(found["tensors"], images)
    assert found["large"].tolist() == [[1.5], [2.5], [3.5], [4.5]]
    assert found["names"].tolist() == [7, 8, 7, 9] and found["flags"].tolist() == [True, False, True, True]


def test_a_checksum_tells_data_apart(tmp_path: Path, arrays: dict[str, np.ndarray], monkeypatch: Any) -> None:
    """Also of a file that is too large to be read whole, by samples; here of 80 bytes, each of 8."""
    seen = {opened(*write("pairs", tmp_path, arrays)).checksum}
    for name, index in (("x", (0, 0)), ("x", (6, 2)), ("labels", 3)):
        changed = {key: array.copy() for key, array in arrays.items()}
        changed[name][index] += 1
        seen.add(opened(*write("pairs", tmp_path, changed)).checksum)
    assert len(seen) == 4
    monkeypatch.setattr("gradcut.runtime.sources.rows.WHOLE", 80)
    monkeypatch.setattr("gradcut.runtime.sources.rows._SAMPLE", 8)
    monkeypatch.setattr("gradcut.runtime.sources.rows._SAMPLES", 4)
    first = opened(*write("pairs", tmp_path, arrays)).checksum
    assert first not in seen and first == opened(*write("pairs", tmp_path, arrays)).checksum
    for index in ((0, 0), (6, 2)):
        changed = {**arrays, "x": arrays["x"].copy()}
        changed["x"][index] += 1
        assert opened(*write("pairs", tmp_path, changed)).checksum != first


# --- refused files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_name_and_those_that_exist(kind: str, tmp_path: Path, arrays: dict[str, Any]) -> None:
    given = write(kind, tmp_path, {"x": arrays["x"], "label": arrays["labels"]})
    line = f"{given[0]} lacks 'labels' ('labels' may be 'label'); it has "
    with pytest.raises(DataError) as caught:
        opened(*given)
    if kind == "pairs":
        assert str(caught.value) == "the graph has no input 'label'; it takes 'x', 'labels'"
        with pytest.raises(DataError, match=r"no file for 'labels'; say labels=FILE.npy as well"):
            opened(given[0])
    else:
        assert str(caught.value).startswith(line) and "'x'" in str(caught.value).removeprefix(line)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_lengths(kind: str, tmp_path: Path, arrays: dict[str, Any]) -> None:
    if kind == "parquet":
        return  # a table has one length
    given = write(kind, tmp_path, {"x": arrays["x"], "labels": arrays["labels"][:5]})
    with pytest.raises(DataError, match="'x' has 7 rows and 'labels' has 5; every array needs one row per example"):
        opened(*given)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(kind: str, tmp_path: Path) -> None:
    empty = {"x": np.zeros((0, 3), np.float32), "labels": np.zeros(0, np.int64)}
    if kind == "parquet":
        schema = pa.schema({"x": pa.list_(pa.float32()), "labels": pa.int64()})
        pq.write_table(schema.empty_table(), tmp_path / "data.parquet")
        given = [str(tmp_path / "data.parquet")]
    else:
        given = write(kind, tmp_path, empty)
    with pytest.raises(DataError, match="the arrays have no rows"):
        opened(*given)


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"\x93NUMPY\x01\x00v\x00{'descr'"])
@pytest.mark.parametrize("suffix", ["npz", "safetensors", "parquet"])
def test_files_that_are_empty_or_something_else(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"f.{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=rf"f\.{suffix} is no readable {suffix} file \(.+\)") as caught:
        opened(tmp_path / f"f.{suffix}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_npy_files_that_are_empty_or_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npy is no readable npy file \(.+\); write it with np.save"):
        opened(f"x={tmp_path / 'x.npy'}", f"labels={tmp_path / 'x.npy'}")


def test_npy_files_cut_short_of_objects_or_absent(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    given = write("pairs", tmp_path, arrays)
    whole = (tmp_path / "my_x.npy").read_bytes()
    (tmp_path / "my_x.npy").write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"my_x\.npy is no readable npy file"):
        opened(*given)
    np.save(tmp_path / "my_x.npy", np.array([None] * 7, object))
    with pytest.raises(DataError, match=r"my_x\.npy is an array of Python objects"):
        opened(*given)
    (tmp_path / "my_x.npy").unlink()
    with pytest.raises(DataError, match=r"my_x\.npy: no such file"):
        opened(*given)
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(DataError, match=r"f\.npz is an npz file; give it alone, without a name"):
        opened(f"x={tmp_path / 'f.npz'}", given[1])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0], [2.0, 3.0]], "has 2 values at row 1 and 1 at row 0; pad or cut its lists to one length"),
        ([[[1.0], [2.0]], [[1.0], [2.0, 3.0]]], "has 2 values at row 3 and 1 at row 0"),
        ([1.0, None], r"has no value \(null\) at row 1; fill or drop such rows"),
        ([[1.0], None], r"has no value \(null\) at row 1"),
        ([[1.0], [None]], r"has no value \(null\) at row 1"),
        (["a", "b"], "is of string; columns of numbers, or of lists of numbers, are taken"),
        ([["a"], ["b"]], "is of string"),
    ],
)
def test_parquet_columns_that_are_no_arrays(column: list[Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": column, "labels": [0, 1]}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=rf"f\.parquet: the column 'x' {message}"):
        opened(tmp_path / "f.parquet")


def test_what_stands_behind_data(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    pairs = write("pairs", tmp_path, arrays)
    (tmp_path / "f.csv").write_text("x,y\n")
    (tmp_path / "none").mkdir()
    for given, message in [
        ([tmp_path / "no.npz"], r"no\.npz: no such file"),
        ([tmp_path / "my_x.npy"], r"my_x\.npy is a single npy array; say NAME=.*my_x\.npy for the input it is of"),
        ([tmp_path / "f.csv"], r"f\.csv is not of a kind that is read; data are an \.npz, "),
        ([tmp_path / "none"], r"none holds no \.npy file; it needs one per graph input: x, labels"),
        ([pairs[0], tmp_path / "my_labels.npy"], r"NAME=FILE\.npy is said for every input or for none"),
        ([tmp_path / "a.npz", tmp_path / "b.npz"], "2 sources of data are given; they are an"),
        ([*pairs, pairs[0]], "the input 'x' is given two files"),
    ]:
        with pytest.raises(DataError, match=message):
            opened(*given)


def test_pyarrow_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"a parquet file needs an extra .* pip install 'gradcut\[parquet\]'"):
        opened(tmp_path / "f.parquet")


# --- functions -----------------------------------------------------------------------------------------------

MODULE = """
import numpy as np
CLOSED = []

def plain():
    try:
        for n in range(3):
            yield {"x": np.full((2, 3), n, np.float32), "labels": [0, 1], "more": None}
    finally:
        CLOSED.append(True)

def told(seed, epoch=5):
    yield {"x": [seed, epoch], "labels": 0}

def everything(**options):
    yield {"x": sorted(options), "labels": 0}

def wants(path):
    yield {}

def nothing():
    return iter(())

def one():
    return {"x": 1}

def number():
    return 3

def pairs():
    yield (1, 2)

def lacks():
    yield {"x": 1}

def fails():
    yield {"x": 1, "labels": 2}
    raise KeyError("deep")

class Batches:
    def __iter__(self):
        return iter([{"x": 1, "labels": 2}])
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_batches.py").write_text(MODULE)
    (tmp_path / "broken_batches.py").write_text("import numpy\nnumpy.nope")
    (tmp_path / "needing_batches.py").write_text("import not_there_at_all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    yield "my_batches"
    for name in ("my_batches", "broken_batches", "needing_batches"):
        sys.modules.pop(name, None)


def stream(name: str) -> Stream:
    source = open_data([name], NAMES)
    assert isinstance(source, Stream)
    return source


def test_a_function_of_the_current_directory(module: str) -> None:
    batches = list(stream("my_batches:plain").batches(0, 0))
    assert [batch["x"][0, 0] for batch in batches] == [0, 1, 2]
    assert list(batches[0]) == ["x", "labels"] and isinstance(batches[0]["labels"], np.ndarray)
    assert sys.modules[module].CLOSED == [True]
    assert next(stream("my_batches:Batches").batches(0, 0))["labels"] == 2


def test_epoch_and_seed_are_told_where_they_are_taken(module: str) -> None:
    assert next(stream("my_batches:told").batches(2, 7))["x"].tolist() == [7, 2]
    assert next(stream("my_batches:everything").batches(0, 0))["x"].tolist() == ["epoch", "seed"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_batches:f", "there is no module 'no_such_batches', installed or in "),
        ("my_batches:plan", "my_batches has no function 'plan'; it has 'plain'"),
        ("my_batches:CLOSED", "my_batches has no function 'CLOSED'"),
        ("broken_batches:f", r"importing broken_batches failed with AttributeError: .*broken_batches\.py:2\)"),
        ("needing_batches:f", r"importing needing_batches failed with ModuleNotFoundError: .*needing_batches\.py:1\)"),
        ("my_batches:wants", "wants 'path'; it is called with epoch= and seed= at most"),
        ("my_batches:nothing", "yields no batch at epoch 1"),
        ("my_batches:one", "gives one dict; it should yield batches, a dict of arrays each"),
        ("my_batches:number", "gives one int; it should yield batches"),
        ("my_batches:pairs", "batch 1 is no dict but tuple; yield a dict with an array per graph input"),
        ("my_batches:lacks", "batch 1 lacks 'labels'; it has 'x'"),
        ("my_batches:fails", r"failed with KeyError: 'deep' \(.*my_batches\.py:\d+\)"),
    ],
)
def test_functions_that_yield_no_batches(name: str, message: str, module: str) -> None:
    with pytest.raises(DataError, match=f"^{name}.*{message}") as caught:
        list(stream(name).batches(0, 0))
    assert "\n" not in str(caught.value)


# --- casts and checks ----------------------------------------------------------------------------------------

LINEAR = "g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,0,0,0,1,0,0,0,1}> { y = MatMul (x, w) }"


@pytest.fixture(scope="module")
def classes() -> Inputs:
    return Inputs(gradcut.compile(text(LINEAR), loss="cross_entropy").manifest)


@pytest.fixture(scope="module")
def values() -> Inputs:
    return Inputs(gradcut.compile(text(LINEAR), loss="mse").manifest)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int16, np.uint32, np.uint64, ">i4"])
def test_class_indices_become_int64(dtype: Any, classes: Inputs, arrays: dict[str, np.ndarray]) -> None:
    checked = classes.checked(Rows.of("f", {**arrays, "labels": arrays["labels"].astype(dtype)}))
    assert checked.arrays["labels"].dtype == np.int64
    np.testing.assert_array_equal(checked.arrays["labels"], arrays["labels"])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4", ml_dtypes.bfloat16])
def test_floats_become_the_graphs(dtype: Any, classes: Inputs, arrays: dict[str, np.ndarray]) -> None:
    given = Rows.of("f", {**arrays, "x": arrays["x"].astype(dtype)})
    checked = classes.checked(given)
    assert checked.arrays["x"].dtype == np.dtype(np.float32) and checked.checksum == given.checksum
    np.testing.assert_array_equal(checked.arrays["x"], given.arrays["x"].astype(np.float32))
    assert classes.rounded(given.arrays) == (["x"] if dtype is np.float64 else [])


def test_whole_labels_of_a_loss_that_takes_floats(values: Inputs, arrays: dict[str, np.ndarray]) -> None:
    for dtype in (np.int64, np.uint8, bool):
        labels = np.eye(3, dtype=dtype)[arrays["labels"]]
        checked = values.checked(Rows.of("f", {**arrays, "labels": labels})).arrays["labels"]
        assert checked.dtype == np.float32 and np.array_equal(checked, labels)
    with pytest.raises(DataError, match="f: 'labels' holds 16777217 at row 6, which float32, what the graph takes, ca"):
        values.checked(Rows.of("f", {**arrays, "labels": np.full((7, 3), [[1]] * 6 + [[2**24 + 1]])}))


def test_what_is_not_cast(classes: Inputs, arrays: dict[str, np.ndarray]) -> None:
    for changed, message in [
        ({"labels": arrays["labels"].astype(np.float32)}, "f: .*labels.*float32"),
        ({"x": arrays["x"].astype(np.uint8)}, "f: .*'x'.*uint8"),
        ({"labels": arrays["labels"] + 1}, r"f: .*label 3 at row \d; the model has 3 classes"),
        ({"x": arrays["x"][:, :2]}, r"f: .*'x' has shape \[7, 2\]"),
    ]:
        with pytest.raises(FeedError, match=message):
            classes.checked(Rows.of("f", {**arrays, **changed}))
    with pytest.raises(DataError, match=r"f: 'x' holds 1e[+]?300 at row 4, which float32"):
        classes.checked(Rows.of("f", {**arrays, "x": np.where(np.arange(7)[:, None] == 4, 1e300, np.eye(7, 3))}))


def test_integers_become_those_of_the_graph_where_they_fit() -> None:
    """numpy's int64 for a graph that takes int32."""
    port = {"name": "ids", "role": "user", "dtype": "INT32", "shape": ["N", 2]}
    inputs = Inputs({"graphs": {"training_model": {"inputs": [port]}}, "loss": None})
    ids = np.array([[1, 2], [-3, 2**31 - 1]])
    checked = inputs.checked(Rows.of("f", {"ids": ids})).arrays["ids"]
    assert checked.dtype == np.int32 and np.array_equal(checked, ids)
    with pytest.raises(
        DataError, match="f: 'ids' holds 2147483648 at row 1, which int32, what the graph takes, cannot"
    ):
        inputs.checked(Rows.of("f", {"ids": np.array([[1, 2], [3, 2**31]])}))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mapped_files_are_checked_and_cast_as_they_are_taken(
    dtype: Any, classes: Inputs, tmp_path: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradcut.runtime.inputs._PIECE", 3)
    given = {"x": np.asfortranarray(arrays["x"].astype(dtype)), "labels": arrays["labels"].astype(np.int32)}
    source = classes.checked(opened(*write("pairs", tmp_path, given)))
    assert isinstance(source.arrays["x"], np.memmap) and source.arrays["x"].dtype == dtype
    taken = classes.cast(source.take([4, 1]), source.name)
    assert (taken["x"].dtype, taken["labels"].dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(taken["x"], arrays["x"][[4, 1]])
    given["labels"][5] = 3
    with pytest.raises(FeedError, match=r"my_labels\.npy, rows from 3 on: .*label 3 at row 2; the model has 3 classes"):
        classes.checked(opened(*write("pairs", tmp_path, given)))
