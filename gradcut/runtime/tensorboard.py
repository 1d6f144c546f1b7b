"""TensorBoard event files, by tensorboardX's record writer.

Events are written by the thread that trains: tensorboardX's SummaryWriter has a thread and a queue, and where a full
disk ends the one, whoever fills the other waits for ever.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gradcut.errors import ArtifactsError, MissingExtraError
from gradcut.runtime.records import Record

_FLUSH = 10.0  # seconds between two flushes to the disk


class Board:
    """Writes the scalars of a run: ``loss``, ``lr`` and ``samples_per_second`` by step, ``eval/<metric>``.

    Args:
        folder: for the event file, which gets a name of its own. step: of the run so far; what an earlier file has
            after it is shown no more.

    Raises:
        MissingExtraError: tensorboardX is not installed. ArtifactsError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder = folder
        self._failed = False
        self._last = self._flushed = time.monotonic()
        with self._told():
            os.makedirs(folder, exist_ok=True)
            # The name ends in the second: a run that is resumed within it must not overwrite the file before.
            self._file: Any = EventsWriter(os.path.join(folder, "events"), f".{os.getpid()}.{step}")
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def step(self, step: int, loss: float, lr: float, rows: int) -> None:
        """An update of `rows` rows."""
        now = time.monotonic()
        self._scalars(step, {"loss": loss, "lr": lr, "samples_per_second": rows / max(now - self._last, 1e-9)})
        self._last = now
        if now - self._flushed > _FLUSH:
            self._flush()

    def record(self, record: Record) -> None:
        """An evaluation, whose time is none of the next step's."""
        figures = {"loss": record.eval_loss, **record.metrics}
        self._scalars(record.step, {f"eval/{name}": value for name, value in figures.items() if value is not None})
        self._flush()
        self._last = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        if not self._failed:
            with self._told():
                self._file.close()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        pairs = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=pairs))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with self._told():
            self._file.write_event(Event(wall_time=time.time(), step=step, **content))

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        with self._told():
            self._file.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            raise ArtifactsError(
                f"--log-dir {self._folder}: its event file could not be written ({error.strerror or error}); the last "
                "checkpoint is good"
            ) from error


def require_writer() -> None:
    """Raise MissingExtraError where tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("--log-dir (TensorBoard)", "tensorboard") from error
