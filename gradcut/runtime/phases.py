"""Which phase a run is in."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from gradcut.artifacts import MANIFEST, TrainingArtifacts
from gradcut.errors import ArtifactsError, DataError
from gradcut.runtime.plan import Plan
from gradcut.runtime.session import TrainingSession
from gradcut.text import counted


class Phases:
    """The phases of a session's artifacts, by epoch; without any, a run is one stretch.

    Raises:
        ArtifactsError: the artifacts have players, which take turns by a loop of the user's, or are one step alone.
    """

    def __init__(self, session: TrainingSession) -> None:
        self._session = session
        _require_run(session.artifacts)
        said: dict[str, int] = session.artifacts.manifest.get("phases") or {}
        self._ends = dict(zip(said, accumulate(said.values()), strict=True))
        self._first = session.plan.base.lr  # of the first phase, wherever a resumed run is

    def lasting(self, plan: Plan) -> Plan:
        """The plan with the epochs that the phases say.

        Raises:
            DataError: it asks for another number.
        """
        if not self._ends:
            return plan
        total = max(self._ends.values())
        if plan.epochs not in (None, total):
            raise DataError(f"the phases last {counted(total, 'epoch')} together; leave --epochs away")
        return replace(plan, epochs=total)

    def enter(self, epoch: int) -> None:
        """Go on to the phase of an epoch, counted from 0; behind the last one nothing changes."""
        now = next((name for name, end in self._ends.items() if epoch < end), None)
        if now is not None and now != self._session.phase:
            self._session.phase = now

    @property
    def factor(self) -> float:
        """The rate of the current phase as a multiple of the first one's."""
        return self._session.optimizer.lr / self._first if self._ends and self._first else 1.0


def _require_run(artifacts: TrainingArtifacts) -> None:
    """Raise where artifacts are steps that a loop orders, or one of several: its checkpoint is that of all."""
    folder = artifacts.folder or Path()
    if not (folder / MANIFEST).exists():
        raise ArtifactsError(f"{folder} is one step of {folder.parent}, and its state is there: train {folder.parent}")
    if artifacts.steps and not artifacts.manifest.get("phases"):
        raise ArtifactsError(
            f"{folder} has the steps {', '.join(artifacts.steps)}, and only you know when each is due: call "
            "gradcut.TrainingSession.step(NAME, feeds) in a loop of yours in place of gradcut train"
        )
