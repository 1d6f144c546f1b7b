"""Loss and metrics over held-out batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcut.errors import SpecError
from gradcut.runtime import averaging
from gradcut.runtime.ema import slots as ema_slots
from gradcut.runtime.metrics import LOSS, Metric, default_metrics, maker, term_of
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
        ema: evaluate the running averages of the parameters.

    Raises:
        SpecError: a metric that does not fit the loss, or whose output the graph does not give; no averages are kept.
    """

    def __init__(self, session: TrainingSession, metrics: Sequence[str], ema: bool = False) -> None:
        if ema:
            ema_slots(session.manifest)
        self._ema = ema
        self._session, self._loss = session, session.manifest["loss"]
        terms, outputs = self._loss.get("terms") or [self._loss], _outputs(session.manifest)
        seen = [term for term in terms if term.get("output") in outputs]
        self.names = tuple(metrics) or default_metrics(seen)
        self._terms = {name: term_of(name, terms) for name in self.names if name != LOSS}
        self._makers = {name: maker(name, term) for name, term in self._terms.items()}
        for name, term in self._terms.items():
            if term not in seen:
                raise SpecError(
                    f"--metric {name} judges {term['output']!r}, which the loss reads and which is no output of the "
                    "model; take --metric loss"
                )

    def __call__(self, batches: Iterable[Mapping[str, Array]]) -> Evaluation:
        """The figures over all `batches`, each counted by what its loss was averaged over."""
        made: dict[str, Metric] = {name: make() for name, make in self._makers.items()}
        total = weights = 0.0
        for feeds in batches:
            result = self._session.evaluate(feeds, ema=self._ema)
            weight = averaging.weight(self._loss, feeds)
            if weight:  # the mean over no labels is NaN, and counts for nothing
                total, weights = total + result.loss * weight, weights + weight
            for name, metric in made.items():
                term = self._terms[name]
                metric.add(result.outputs[term["output"]], feeds[term["labels"]])
        loss = total / weights if weights else None
        values = {name: loss if name == LOSS else made[name].value() for name in self.names}
        return Evaluation(loss, values)


def _outputs(manifest: Mapping[str, Any]) -> set[str]:
    """The model's outputs by the names that a result has."""
    ports = manifest["graphs"]["eval_model"]["outputs"]
    return {manifest["renamed"].get(port["name"], port["name"]) for port in ports if port["role"] == "output"}
