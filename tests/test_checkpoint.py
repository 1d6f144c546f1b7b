"""Checkpoints: what goes in comes out, whole or not at all."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gradcut import checkpoint
from gradcut.errors import CheckpointError

DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int8, np.int32, np.int64, np.uint8, bool]
META: dict[str, Any] = {"step": 12, "seed": 3, "data": {"epoch": 1, "batch": 4}, "name": "große Welt"}


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    return {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.array(7, np.int64)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)], ids=str)
def test_round_trip(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    value = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    checkpoint.save(path, {"t": value}, META)
    loaded, meta = checkpoint.load(path)
    assert (loaded["t"].dtype, loaded["t"].shape) == (value.dtype, shape)
    np.testing.assert_array_equal(loaded["t"], value)
    assert meta == META
    assert loaded["t"].flags.writeable and loaded["t"].flags.c_contiguous


def test_bits_survive(path: Path) -> None:
    value = np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    checkpoint.save(path, {"t": value}, {})
    assert checkpoint.load(path)[0]["t"].tobytes() == value.tobytes()


def test_any_layout(path: Path) -> None:
    value = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"t": value.T, "step": value[::2, ::-1], "big endian": value.astype(">f4")}
    checkpoint.save(path, views, {})
    loaded, _ = checkpoint.load(path)
    for name, view in views.items():
        np.testing.assert_array_equal(loaded[name], view)


def test_nothing_at_all(path: Path) -> None:
    checkpoint.save(path, {}, {})
    assert checkpoint.load(path) == ({}, {})


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    ab = {f"t{i}": np.full(3, i, np.float32) for i in range(20)}
    checkpoint.save(tmp_path / "1", ab, META)
    checkpoint.save(tmp_path / "2", dict(reversed(ab.items())), dict(reversed(META.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_missing(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: no such checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_cut_short(path: Path, keep: int) -> None:
    checkpoint.save(path, tensors(), META)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: .* damaged or cut short .*good copy"):
        checkpoint.load(path)


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    """No damage passes for a good checkpoint, wherever it is."""
    checkpoint.save(path, tensors(), META)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            loaded, meta = checkpoint.load(path)
        except CheckpointError as error:
            assert path.name in str(error)
        else:
            pytest.fail(f"byte {position} ({whole[position : position + 1]!r}) changed unnoticed: {meta} {loaded}")


def test_not_ours(path: Path) -> None:
    save_file(tensors(), path)
    with pytest.raises(CheckpointError, match="no checkpoint of gradcut's"):
        checkpoint.load(path)


@pytest.mark.parametrize("record", ["{", "[]", "{}", json.dumps({"checksum": 0, "meta": 1})])
def test_record_that_is_not_ours(path: Path, record: str) -> None:
    save_file(tensors(), path, metadata={checkpoint.KEY: record})
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_unknown_dtype(path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor 'text' is <U1"):
        checkpoint.save(path, {"text": np.array(["a"])}, {})
    assert not path.exists()


def test_record_that_is_no_json(path: Path) -> None:
    with pytest.raises(CheckpointError, match="no JSON"):
        checkpoint.save(path, {}, {"array": np.zeros(3)})
    assert not path.exists()


def test_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(path, tensors(), META)
    before = path.read_bytes()

    def full(tensors: Any, temporary: Path, metadata: Any) -> None:
        temporary.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*untouched\. Free some space"):
        checkpoint.save(path, {"w": np.zeros(3)}, {})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_size_limit_leaves_the_old_file(path: Path) -> None:
    """The same with the real writer: the system refuses what goes beyond 100 kB."""
    checkpoint.save(path, tensors(), META)
    before = path.read_bytes()
    code = (
        "import resource, signal, sys, numpy\n"
        "from gradcut.errors import CheckpointError\n"
        "from gradcut import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: checkpoint.save(sys.argv[1], {'w': numpy.zeros(1_000_000)}, {})\n"
        "except CheckpointError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones are read in parts, and a run that goes on writes a new file in between."""
    path, some, parts = tmp_path / "c.safetensors", checkpoint._some, []
    of = lambda step: {name: np.full(3, step, np.float32) for name in "abc"}
    checkpoint.save(path, of(1), {"step": 1})
    monkeypatch.setattr(checkpoint, "_MAPPED_BYTES", 1)

    def interrupted(*arguments: Any) -> dict[str, np.ndarray]:
        parts.append(some(*arguments))
        if len(parts) == 2:
            checkpoint.save(path, of(2), {"step": 2})
        return parts[-1]

    monkeypatch.setattr(checkpoint, "_some", interrupted)
    tensors, record = checkpoint.load(path)
    assert record["step"] == 2 and all((tensors[name] == 2).all() for name in "abc")
