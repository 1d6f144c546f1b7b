"""Why a value does or does not get a gradient, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from gradcut.activity import NO_PATH
from gradcut.artifacts import TrainingArtifacts
from gradcut.blocked import blocked_by
from gradcut.dims import is_float
from gradcut.errors import SpecError
from gradcut.passes.propagate import main_values
from gradcut.text import join_names, nearest
from gradcut.view.question import Question, of_artifacts

_STATUS = {
    "frozen": "is frozen, by --freeze or by the model itself",
    "not-trained": "is not among what --train names",
    "state": "is a running statistic: training moves it, no gradient does",
}
_CONSTANT = "gets no gradient: it depends on no input and no parameter"


def explain(artifacts: TrainingArtifacts, name: str) -> list[str]:
    """One or more sentences about a value of the model that was given.

    Raises:
        SpecError: the model has no such value.
    """
    question = of_artifacts(artifacts)
    known = main_values(question.model.graph)
    if name in (artifacts.manifest["loss"] or {}).get("inputs", ()):
        return [f"{name} gets no gradient: only the loss reads it, and nothing that trains lies before it"]
    if name not in known and name in main_values(artifacts.model.graph):
        return [f"{name} {_CONSTANT}"]
    if name not in known:
        hint = ", ".join(nearest(name, known))
        raise SpecError(f"the model has no value {name!r}." + (f" Nearest: {hint}." if hint else ""))
    return list(_sentences(artifacts, question, known[name]))


def _sentences(artifacts: TrainingArtifacts, question: Question, value: ir.Value) -> Iterator[str]:
    name = value.name or ""
    trained = {one["name"]: one["gradient"] for one in artifacts.manifest["trainable"]}
    objective = (artifacts.manifest["loss"] or {}).get("loss") or "the outputs"
    if name in trained:
        yield f"{name} trains: its gradient is the output {trained[name]} of training_model.onnx"
    elif question.status.get(name) in _STATUS:
        yield f"{name} gets no gradient: it {_STATUS[question.status[name]]}"
    elif name in artifacts.manifest["unreached"]:
        yield f"{name} gets no gradient: {artifacts.manifest['unreached'][name]}"
    elif not is_float(value):
        kind = value.dtype.name if value.dtype is not None else "of unknown type"
        yield f"{name} gets no gradient: it is {kind}, and only floats carry one"
    elif not _depends_on_something(question, value):
        yield f"{name} {_CONSTANT}"
    elif value in question.active:
        yield f"{name} carries a gradient: it lies between {_behind(question, value)} and {objective}"
    elif value.is_graph_input():
        yield f"{name} gets no gradient: it is an input of the model, and only parameters train"
    elif value not in question.varied:
        yield f"{name} gets no gradient: nothing that trains lies before it{_cut_before(question, value)}"
    else:
        yield f"{name} gets no gradient: {_why_not_useful(question, value, objective)}"


def _depends_on_something(question: Question, value: ir.Value) -> bool:
    before = question.flows.backward([value], lambda _: True)
    return any(one.is_graph_input() or (one.name or "") in question.status for one in before)


def _behind(question: Question, value: ir.Value) -> str:
    before = question.flows.backward([value], lambda flow: flow.blocked is None)
    names = [one.name or "" for one in before if question.status.get(one.name or "") == "trained"]
    return join_names(sorted(names), 4)


def _cut_before(question: Question, value: ir.Value) -> str:
    """What is before the value but does not train, and the marks among it."""
    before = question.flows.backward([value], lambda _: True)
    reasons = {question.status[one.name or ""] for one in before if (one.name or "") in question.status}
    blocks = {f.blocked for f in question.flows.flows if f.blocked in ("mark", "stop-at") and f.target in before}
    found = sorted((reasons - {"trained", "state"}) | {one for one in blocks if one})
    return f" ({', '.join(found)})" if found else ""


def _why_not_useful(question: Question, value: ir.Value, objective: str) -> str:
    name = value.name or ""
    why = blocked_by(question.model, [one.name or "" for one in question.of], [name])[name]
    if why == NO_PATH:
        return f"no path leads from it to {objective}"
    return f"every path from it to {objective} is cut: {why}"
