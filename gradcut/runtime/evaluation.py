"""Loss and metrics over held-out batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcut.errors import SpecError
from gradcut.runtime import averaging
from gradcut.runtime.metrics import LOSS, Metric, default_metrics, maker, task_of
from gradcut.runtime.session import TrainingSession

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; `loss` is None without held-out batches, `metrics` are in the order asked for."""

    loss: float | None
    metrics: dict[str, float | None]


class Evaluator:
    """Evaluates a session.

    Args:
        metrics: names; none: the default ones of the loss.

    Raises:
        SpecError: a metric that does not fit the loss, or whose output the graph does not give.
    """

    def __init__(self, session: TrainingSession, metrics: Sequence[str]) -> None:
        self._session, self._loss = session, session.manifest["loss"]
        self._judged = _judged(self._loss)
        given = self._judged.get("output") in _outputs(session.manifest)
        self.names = tuple(metrics) or (default_metrics(self._judged) if given else ())
        self._makers = {name: maker(name, self._judged) for name in self.names if name != LOSS}
        if self._makers and not given:
            raise SpecError(
                f"--metric {next(iter(self._makers))} judges {self._judged.get('output')!r}, which the loss reads and "
                "which is no output of the model; take --metric loss"
            )

    def __call__(self, batches: Iterable[Mapping[str, Array]]) -> Evaluation:
        """The figures over all `batches`, each counted by what its loss was averaged over."""
        made: dict[str, Metric] = {name: make() for name, make in self._makers.items()}
        total = weights = 0.0
        for feeds in batches:
            result = self._session.evaluate(feeds)
            weight = averaging.weight(self._loss, feeds)
            if weight:  # the mean over no labels is NaN, and counts for nothing
                total, weights = total + result.loss * weight, weights + weight
            for metric in made.values():
                metric.add(result.outputs[self._judged["output"]], feeds[self._judged["labels"]])
        loss = total / weights if weights else None
        values = {name: loss if name == LOSS else made[name].value() for name in self.names}
        return Evaluation(loss, values)


def _judged(loss: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of several terms the first that says a task."""
    terms = loss.get("terms") or [loss]
    return next((term for term in terms if task_of(term)), terms[0])


def _outputs(manifest: Mapping[str, Any]) -> set[str]:
    """The model's outputs by the names that a result has."""
    ports = manifest["graphs"]["eval_model"]["outputs"]
    return {manifest["renamed"].get(port["name"], port["name"]) for port in ports if port["role"] == "output"}
