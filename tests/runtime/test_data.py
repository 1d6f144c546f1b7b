"""Training data: reading it, splitting it, and an order that a resumed run repeats."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradcut.errors import DataError
from gradcut.runtime.data import Batches, check_keys, load_npz, split_indices


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(100, 0.2, 20), (7, 0.5, 4), (5, 0.0, 0), (3, 1.0, 3), (0, 0.2, 0)]
)
def test_split_covers_every_row_once(n: int, fraction: float, held: int) -> None:
    train, rest = split_indices(n, fraction, seed=1)
    assert (len(train), len(rest)) == (n - held, held)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, rest])), np.arange(n))
    assert (np.diff(train) > 0).all() and (np.diff(rest) > 0).all()


def test_split_depends_on_the_seed_alone() -> None:
    assert split_indices(10, 0.3, 0)[1].tolist() == split_indices(10, 0.3, 0)[1].tolist() == [2, 4, 6]
    assert split_indices(1000, 0.3, 0)[1].tolist() != split_indices(1000, 0.3, 1)[1].tolist()


def test_load(path: Path) -> None:
    np.savez(path, x=np.zeros((3, 2), np.float32), labels=np.arange(3))
    data = load_npz(path)
    assert list(data) == ["x", "labels"]
    assert data["x"].dtype == np.float32 and data["labels"].tolist() == [0, 1, 2]


def save(**arrays: Any) -> Any:
    return lambda path: np.savez(path, **arrays)


def save_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def cut_short(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=1000))
    path.write_bytes(path.read_bytes()[:2000])


def flip(path: Path) -> None:
    np.savez(path, x=np.zeros(1000))
    damaged = bytearray(path.read_bytes())
    damaged[4000] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "no readable npz file"),
        (lambda path: path.write_bytes(b""), "no readable npz file"),
        (lambda path: path.write_text("x,y\n1,2\n"), "no readable npz file"),
        (cut_short, "no readable npz file"),
        (flip, "no readable npz file"),
        (save_npy, "is a single npy array"),
        (save(), "holds no array"),
        (save(x=np.zeros((4, 2)), labels=np.zeros(3)), "'x' has 4 rows and 'labels' has 3"),
        (save(x=np.zeros(4), t=np.float32(1)), "'t' is a scalar"),
        (save(x=np.zeros((0, 4))), "have no rows"),
        (save(x=np.zeros(1), names=np.array([None], object)), "'names' is an array of Python objects"),
    ],
    ids=[
        "absent",
        "folder",
        "empty",
        "text",
        "cut",
        "flipped",
        "npy",
        "nothing",
        "mixed",
        "scalar",
        "no-rows",
        "object",
    ],
)
def test_files_that_cannot_be_used(path: Path, write: Any, message: str) -> None:
    write(path)
    with pytest.raises(DataError, match=message) as caught:
        load_npz(path)
    assert str(path) in str(caught.value)


def test_only_the_names_asked_for_are_looked_at(path: Path) -> None:
    np.savez(path, x=np.zeros((3, 2)), labels=np.arange(3), names=np.array([None, 1], object), more=np.float32(1))
    assert list(load_npz(path, ["labels", "x"])) == ["labels", "x"]
    with pytest.raises(DataError) as caught:
        load_npz(path, ["x", "label"])
    assert str(caught.value) == f"{path} lacks 'label' ('label' may be 'labels'); it has 'x', 'labels', 'names', 'more'"


def test_check_keys() -> None:
    check_keys({"x": 0, "labels": 0, "more": 0}, ["x", "labels"])
    with pytest.raises(DataError) as caught:
        check_keys({"x": 0, "label": 0}, ["x", "labels", "mask"])
    assert str(caught.value) == "the data lacks 'labels', 'mask' ('labels' may be 'label'); it has 'x', 'label'"


def make(n: int = 10, batch_size: int = 4, seed: int = 0, indices: Any = None) -> Batches:
    return Batches(np.arange(n) if indices is None else indices, batch_size, seed)


def labels(batches: Batches, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in batches.rows(epoch, start)]


def rows(epoch: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(epoch))


def test_an_epoch_has_every_row_once_and_the_ragged_end() -> None:
    batches = make()
    epoch = labels(batches, 0)
    assert [len(batch) for batch in epoch] == [4, 4, 2] and (len(batches), batches.last) == (3, 2)
    assert sorted(rows(epoch)) == list(range(10))


def test_only_the_given_rows() -> None:
    assert sorted(rows(labels(make(indices=np.array([1, 3, 8])), 0))) == [1, 3, 8]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    batches = make(n=50)
    first = labels(batches, 0)
    assert labels(batches, 1) != first and labels(make(n=50, seed=1), 0) != first
    assert labels(batches, 0) == labels(make(n=50), 0) == first
    assert sorted(rows(first)) != rows(first)


@pytest.mark.parametrize("start", range(5))
def test_resuming_in_the_middle(start: int) -> None:
    assert labels(make(), 3, start) == labels(make(), 3)[start:]


def test_batches_refuse() -> None:
    with pytest.raises(DataError, match="batch size 0"):
        make(batch_size=0)
    with pytest.raises(DataError, match="no rows"):
        make(indices=np.array([], int))


def test_a_text_that_is_called_npz(tmp_path: Path) -> None:
    """numpy would advise to unpickle it."""
    (tmp_path / "f.npz").write_text("hello")
    with pytest.raises(
        DataError, match=r"f.npz is no readable npz file \(it is no zip archive\); write it with np.savez"
    ):
        load_npz(tmp_path / "f.npz")
