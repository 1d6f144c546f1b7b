"""Files: written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path

_BEHIND = 1 << 30


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file beside `path`, flush it to disk, and rename it over `path`.

    A failure, or a kill at any moment, leaves the old file as it was.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        sync(temporary)
        temporary.chmod(_default_mode())
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """`atomic_write` of bytes at hand."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    atomic_write(path, write)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], ours: Container[str]) -> Iterator[Path]:
    """A fresh directory to fill; on success it takes the place of `path`, on failure nothing changes.

    Args:
        ours: names that are replaced; whatever else lies in the directory moves over.
    """
    target = Path(path).resolve()  # where a link leads, so that the link stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield staging
        staging.chmod(_default_mode() | 0o111)
        _swap(staging, target, ours)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path, ours: Container[str]) -> None:
    if not target.exists():
        staging.rename(target)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    old = retired / "old"
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        retired.rmdir()
        raise
    for entry in [entry for entry in old.iterdir() if entry.name not in ours]:
        entry.rename(target / entry.name)
    shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that ask for the same lock off a file; the system lets go of it when a process ends.

    Where the file system knows no locks, nothing is kept off.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)  # NFS locks only what may be written
    except OSError:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _BEHIND, os.SEEK_SET)  # locked bytes cannot be read: one behind the content
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks


def sync(path: Path) -> None:
    """Flush a file or a directory entry to disk, where the platform can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows opens no directory; the rename is still atomic there
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
