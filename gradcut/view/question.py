"""The question that artifacts answer, asked again of the model that was given: what is active now, what was in full.

Full training is every parameter with nothing stopped but the marks that the model came with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from gradcut.activity import Activity, Flow, FlowGraph, analyze_graph
from gradcut.artifacts import TrainingArtifacts
from gradcut.dialect import is_mark, mark_reason, stand_for
from gradcut.dims import is_float
from gradcut.losses import terms_of
from gradcut.parameters import decide
from gradcut.passes import Fold, Import
from gradcut.passes.pipeline import collection_held
from gradcut.passes.propagate import main_values
from gradcut.passes.stop_gradient import frozen_names
from gradcut.rules import REGISTRY
from gradcut.source import Source, own


@dataclass(frozen=True)
class Question:
    """One (of, wrt) over the main graph of an imported model.

    Attributes:
        status: of each parameter: ``trained``, ``frozen``, ``not-trained`` or ``unreached``; state is ``state``.
        active, full: values with a cotangent, as asked and in full training. A mark's output is in neither.
    """

    model: ir.Model
    flows: FlowGraph
    of: tuple[ir.Value, ...]
    status: Mapping[str, str]
    activity: Activity
    active: Collection[ir.Value]
    full: Collection[ir.Value]
    varied: Collection[ir.Value]
    useful: Collection[ir.Value]

    def carried(self, flow: Flow) -> bool:
        """Whether a use carries a cotangent."""
        return flow.blocked is None and flow.source in self.active and flow.target in self.active

    def carried_in_full(self, flow: Flow) -> bool:
        return _unmarked(flow) and flow.source in self.full and flow.target in self.full


def of_artifacts(artifacts: TrainingArtifacts) -> Question:
    """The question of artifacts, without their loss: it is asked of what the loss reads."""
    artifacts.require_one("a picture or an explanation")
    manifest = artifacts.manifest
    status = {one["name"]: one["status"] for one in manifest["parameters"]}
    status |= dict.fromkeys(manifest["state"], "state")
    return _ask(_imported(artifacts.model), _read_by_loss(manifest), status)


def of_model(model: Source) -> Question:
    """What compiling a model with nothing said would ask: every parameter that is not frozen, every float output."""
    work = _imported(own(model))
    frozen = frozen_names(work)
    decisions = decide(work.graph, REGISTRY)
    status = {n: "frozen" if n in frozen else "trained" for n, d in decisions.items() if d.kind == "parameter"}
    status |= {name: "state" for name, decision in decisions.items() if decision.kind == "state"}
    question = _ask(work, (), status)
    carried = {value.name for value in question.active}
    unreached = {name: "unreached" for name, kind in status.items() if kind == "trained" and name not in carried}
    return replace(question, status=status | unreached)


def _imported(model: ir.Model) -> ir.Model:
    work = model.clone()
    with collection_held():
        Import()(work)
        Fold()(work)
    for node in work.graph.all_nodes():
        if is_mark(node) and mark_reason(node) == "stop-at" and node.inputs[0] is not None:
            _call_by_what_it_marks(node.inputs[0], node.outputs[0])
    return work


def _call_by_what_it_marks(value: ir.Value, marked: ir.Value) -> None:
    """Cuts name the value that the user named; a mark on a graph output has that output's name itself."""
    if marked.is_graph_output():
        stand_for(value, marked)
    else:
        stand_for(marked, value)


def _read_by_loss(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    loss = manifest["loss"]
    if loss is None:
        return ()
    read: list[str] = []
    for term in terms_of(loss):
        output = term.get("output") or loss["loss"]
        read += output.split(",") if term["kind"] == "graph" else [output]
    return tuple(dict.fromkeys(read))


def _ask(model: ir.Model, of: Collection[str], status: Mapping[str, str]) -> Question:
    known = main_values(model.graph)
    outputs = tuple(known[n] for n in of) or tuple(v for v in model.graph.outputs if is_float(v))
    parameters = [known[name] for name, kind in status.items() if kind != "state"]
    wanted = [known[name] for name, kind in status.items() if kind in ("trained", "unreached")]
    frozen = [known[name] for name, kind in status.items() if kind == "frozen"]
    flows = FlowGraph(model.graph, REGISTRY)
    plain = lambda flow: flow.blocked is None
    varied, useful = flows.forward(wanted, plain), flows.backward(outputs, plain)
    return Question(
        model=model,
        flows=flows,
        of=outputs,
        status=status,
        activity=analyze_graph(model.graph, outputs, wanted, REGISTRY, parameters, frozen),
        active=varied & useful,
        full=flows.forward(parameters, _unmarked) & flows.backward(outputs, _unmarked),
        varied=varied,
        useful=useful,
    )


def _unmarked(flow: Flow) -> bool:
    return flow.blocked in (None, "stop-at")
