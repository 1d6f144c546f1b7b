"""``metrics.jsonl``: a line for every evaluation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradcut.errors import ArtifactsError
from gradcut.io import atomic_write_bytes


@dataclass(frozen=True)
class Record:
    """One line, where NaN is null.

    Attributes:
        epoch: which one it is of, from 1. step: updates done.
        loss: the mean over the epoch so far, all of it at its end.
        eval_loss, metrics: of the held-out rows. accuracy: the metric of that name.
        seconds: of the epoch so far. lr: the rate of the last update.
    """

    epoch: int
    step: int
    loss: float | None
    eval_loss: float | None
    accuracy: float | None
    seconds: float
    metrics: dict[str, float | None] = field(default_factory=dict)
    lr: float | None = None


def read_records(path: Path, step: int) -> list[Record]:
    """The lines up to `step`; later ones are of steps that a kill took back."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # cut short by a kill
    return [record for record in records if record.step <= step]


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write the file, whole or not at all.

    Raises:
        ArtifactsError: it cannot be written; the one that was there is untouched.
    """
    try:
        atomic_write_bytes(path, b"".join(map(_line, records)))
    except OSError as error:
        raise _not_written(path, error) from error


def append_record(path: Path, record: Record) -> None:
    """Add a line at the end of the file.

    Raises:
        ArtifactsError: it cannot be written; the file is as it was.
    """
    before = path.stat().st_size if path.exists() else None
    try:
        with open(path, "ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True) if before is None else os.truncate(path, before)
        raise _not_written(path, error) from error


def _line(record: Record) -> bytes:
    return (json.dumps(_plain(asdict(record))) + "\n").encode()


def _not_written(path: Path, error: OSError) -> ArtifactsError:
    return ArtifactsError(
        f"{path} could not be written ({error.strerror or error}); what was there is untouched, and so is the "
        "checkpoint. Free some space, and go on with --resume"
    )


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
