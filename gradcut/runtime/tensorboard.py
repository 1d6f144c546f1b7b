"""TensorBoard event files, by tensorboardX."""

from __future__ import annotations

import os
import time
from typing import Any

from gradcut.errors import ArtifactsError, MissingExtraError
from gradcut.runtime.records import Record


class Board:
    """Writes the scalars of a run: ``loss``, ``lr`` and ``samples_per_second`` by step, ``eval/<metric>``.

    Args:
        folder: for the event file, which gets a name of its own. step: of the run so far; what an earlier file has
            after it is shown no more.

    Raises:
        MissingExtraError: tensorboardX is not installed. ArtifactsError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], step: int) -> None:
        try:
            self._writer: Any = _writer()(os.fspath(folder), purge_step=step + 1)
        except OSError as error:
            raise ArtifactsError(f"--log-dir {folder} cannot be written ({error.strerror or error})") from error
        self._last = time.monotonic()

    def step(self, step: int, loss: float, lr: float, rows: int) -> None:
        now = time.monotonic()
        scalars = {"loss": loss, "lr": lr, "samples_per_second": rows / max(now - self._last, 1e-9)}
        self._last = now
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def record(self, record: Record) -> None:
        for name, value in {"loss": record.eval_loss, **record.metrics}.items():
            if value is not None:
                self._writer.add_scalar(f"eval/{name}", value, record.step)
        self._last = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def require_writer() -> None:
    """Raise MissingExtraError where tensorboardX is not installed."""
    _writer()


def _writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("--log-dir (TensorBoard)", "tensorboard") from error
    return SummaryWriter
