"""The manifest: everything that a host needs to know of what was compiled, as JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import onnx_ir as ir

from gradcut import ort_graphs
from gradcut.artifacts import SCHEMA, SHARED, VERSION, TrainingArtifacts
from gradcut.compilation import Compilation
from gradcut.exporters import BETTER, folded, nameless
from gradcut.graphs import StepNames, Trained, own_version, signature
from gradcut.parameters import KEEPS_MODE, KIND
from gradcut.passes.base import FROZEN, TRAINABLE, read_json
from gradcut.passes.propagate import main_values
from gradcut.shared import merged, twins
from gradcut.subgraphs import body_tensors
from gradcut.text import join_names

#: The lowest onnxruntime that takes what is emitted, by opset.
RUNTIMES = {21: "1.20", 22: "1.20", 23: "1.22", 24: "1.23", 25: "1.25", 26: "1.26"}


def manifest(
    c: Compilation, graphs: Mapping[str, ir.Model], trained: Sequence[Trained], scalars: StepNames
) -> dict[str, Any]:
    request = c.request
    opset = c.work.opset_imports[""]
    roles = _roles(c, trained, scalars)
    on_ort = request.target == ort_graphs.TARGET
    own = {name: ort_graphs.roles(name, trained, c.state) if on_ort else {} for name in graphs}
    own |= {name: dict.fromkeys(c.state_next, "state") for name in ("state_model", "step_model") if c.state_next}
    signatures = {name: signature(graph, roles | own[name]) for name, graph in graphs.items()}
    ports = {port["name"] for one in signatures.values() for port in (*one["inputs"], *one["outputs"])}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "producer": _versions(),
        "target": request.target,
        "opset": opset,
        "runtime": ort_graphs.RUNTIME if on_ort else {"onnxruntime": f">={RUNTIMES.get(opset, '1.26')}"},
        "pipeline": str(c.pipeline),
        "loss": c.loss,
        "optimizer": _described(c),
        "seed": request.seed,
        "stop_at": list(request.stop_at),
        "frozen": c.frozen,
        "names": {key: name if key == "clocks" or name in ports else None for key, name in asdict(scalars).items()},
        "graphs": signatures,
        "trainable": [_trainable(c, one) for one in trained],
        "state": c.state,
        "declared": c.state_next,
        "renamed": {now: name for name, now in c.gradients["of"].items() if now != name},
        "parameters": _parameters(c, {one.name for one in trained}),
        "batch_norm": c.modes,
        "unreached": {name: c.blocked[name] for name in c.gradients["unreached"]},
        "warnings": list(_warnings(c)),
        "cut": [edge._asdict() for edge in c.activity.cut],
        "cost": c.cost.as_dict() if c.cost is not None else {},
    }


def manifest_of_steps(steps: Mapping[str, TrainingArtifacts]) -> dict[str, Any]:
    """Of several steps: what they share, and the manifest of each under its name."""
    each = {name: one.manifest for name, one in steps.items()}
    shared = {key: next(iter(each.values()))[key] for key in SHARED}
    trained = {one["name"]: {"name": one["name"]} for said in each.values() for one in said["trainable"]}
    state = {name: after for said in each.values() for name, after in said["state"].items()}
    declared = {name: after for said in each.values() for name, after in said["declared"].items()}
    warned = dict.fromkeys(f"{name}: {text}" for name, said in each.items() for text in said["warnings"])
    return {
        **shared,
        "phases": None,
        "trainable": list(trained.values()),
        "state": state,
        "declared": declared,
        "parameters": _over_steps([said["parameters"] for said in each.values()]),
        "warnings": list(warned),
        "steps": {name: {k: v for k, v in said.items() if k not in SHARED} for name, said in each.items()},
    }


def _over_steps(listed: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each parameter once: trained where a step trains it, else as the first step that knows it has it."""
    found: dict[str, dict[str, Any]] = {}
    for one in (one for parameters in listed for one in parameters):
        if one["name"] not in found or one["status"] == "trained":
            found[one["name"]] = one
    return list(found.values())


def _described(c: Compilation) -> dict[str, Any]:
    """How parameters are updated; the optimizer of each, with its options, is at the trainables."""
    update = c.request.update
    return {
        "spec": update.optimizer.spec(),
        "name": update.optimizer.name,
        "lr": update.optimizer.lr,
        "groups": [{"pattern": group.pattern, "options": dict(group.options)} for group in update.groups],
        "no_decay": c.spared,
        "clip_norm": update.clip_norm,
        "clip_value": update.clip_value,
        "ema": update.ema,
    }


def _trainable(c: Compilation, one: Trained) -> dict[str, Any]:
    return {
        "name": one.name,
        "gradient": one.gradient,
        "slots": dict(one.slots),
        "next": dict(one.next),
        "optimizer": c.plan.of(one.name).spec(),
        "groups": c.groups[one.name],
        "clock": c.plan.clock(one.name),
    }


def _warnings(c: Compilation) -> Iterator[str]:
    """What was asked for and cannot be, a sentence each."""
    lost = c.overlooked()
    if lost:
        yield (
            f"{join_names(lost, 3)} {'stands' if len(lost) == 1 else 'stand'} where weights do, but the file does "
            "not name them parameters, as torch's exporter leaves it with optimize=True: they stay as they are, "
            f"unless --train names them exactly; export with {BETTER} to keep every parameter"
        )
    elif not c.request.train:
        yield from nameless(c.given.graph)
    if not c.request.train:
        yield from folded(c.given.graph)
    yield from _kept_modes(c)
    yield from _merged(c)
    yield from _twins(c)
    if c.request.dropout == "train" and not any(n.op_type == "Dropout" for n in c.forward.graph.all_nodes()):
        yield "dropout=train, but the file holds no Dropout: the exporter has removed it"
    if c.request.batch_norm == "train" and not c.modes:
        yield "batch_norm=train, but the file holds no BatchNormalization"


def _kept_modes(c: Compilation) -> Iterator[str]:
    """Norms that a module had in inference mode, and whose scale or bias trains all the same."""
    trained = {*c.gradients["wrt"]}
    found = [
        node.name or ""
        for node in c.forward.graph.all_nodes()
        if KEEPS_MODE in node.metadata_props and c.modes.get(node.name or "") == "eval"
        if trained & {value.name for value in node.inputs[1:3] if value is not None}
        if all(value is not None and value.producer() is None for value in node.inputs[3:5])  # else of this batch
    ]
    if found and c.request.batch_norm == "auto":
        yield (
            f"BatchNormalization {join_names(found, 3)} {'stays' if len(found) == 1 else 'stay'} in inference mode, as "
            "in the torch module; export it in train mode, or say batch_norm=train, for batch statistics"
        )


def _merged(c: Compilation) -> Iterator[str]:
    """Weights of fresh modules, of which the exporter made one."""
    found = merged(c.given.graph, dict.fromkeys(c.gradients["wrt"]))
    if found:
        listed = join_names((f"{name} in {count} modules" for name, count in found.items()), 3)
        yield (
            f"weights of equal content seem merged by the exporter's optimizer, and train as one ({listed}): "
            f"export with {BETTER} to train each of them"
        )


def _twins(c: Compilation) -> Iterator[str]:
    """A tied weight that was written twice."""
    trained = {*c.gradients["wrt"]}
    said = {name for name, value in c.given.graph.initializers.items() if KIND in value.metadata_props}
    found = [pair for pair in twins(c.decisions.values()) if trained & {*pair} and not said >= {*pair}]
    if found:
        listed = join_names((" and ".join(pair) for pair in found), 3)
        yield (
            f"the file holds a weight twice, as exporters write a tied one ({listed}): trained, the two no longer "
            f"agree; export with {BETTER}, or freeze them"
        )


def _roles(c: Compilation, trained: Sequence[Trained], scalars: StepNames) -> dict[str, str]:
    roles = {name: "user" for name in c.user_inputs if name}
    loss = c.loss or {"inputs": [], "loss": None}
    roles |= dict.fromkeys(loss["inputs"], "label")
    roles |= dict.fromkeys(c.gradients["seeds"].values(), "cotangent")
    roles |= dict.fromkeys(c.gradients["of"].values(), "output")
    roles |= dict.fromkeys(c.captured, "captured") | dict.fromkeys(c.state_next.values(), "next")
    roles |= {one.name: "parameter" for one in trained}
    roles |= {one.gradient: "gradient" for one in trained}
    roles |= {slot: "slot" for one in trained for slot in one.slots.values()}
    roles |= {name: "next" for one in trained for name in one.next.values()}
    roles |= dict.fromkeys(c.state, "state") | dict.fromkeys(c.state.values(), "next") | dict.fromkeys(c.held, "held")
    roles |= {scalars.learning_rate: "learning_rate", scalars.step: "step", scalars.step_next: "next"}
    for clock, after in scalars.clocks.values():
        roles |= {clock: "step", after: "next"}
    if scalars.gradient_norm is not None:
        roles[scalars.gradient_norm] = "gradient_norm"
    if scalars.seed is not None:
        roles[scalars.seed] = "seed"
    if loss["loss"] is not None:
        roles[loss["loss"]] = "loss"
    return roles


def _parameters(c: Compilation, trained: set[str]) -> list[dict[str, Any]]:
    frozen = set(read_json(c.forward, FROZEN) or ())
    wanted = set(read_json(c.forward, TRAINABLE) or ())
    listed, given = [], {**body_tensors(c.given.graph), **main_values(c.given.graph)}
    for name, decision in c.decisions.items():
        hidden = name not in given  # inside a function of the model's, which stays one where nothing in it trains
        if hidden or (decision.kind != "parameter" and name not in wanted):
            continue
        status = "trained" if name in trained else "frozen" if name in frozen else "not-trained"
        if name in c.gradients["unreached"]:
            status = "unreached"
        if name in c.declared:
            status = "state"
        listed.append({"name": name, "shape": list(decision.shape), "status": status, "reason": decision.reason})
    return listed


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("onnx", "onnx_ir", "numpy")}
    return {"gradcut": own_version(), "python": platform.python_version(), **packages}
