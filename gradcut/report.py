"""What a compilation did, in figures and in the few lines that a person reads."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.artifacts import TrainingArtifacts
from gradcut.build import Asked, with_loss
from gradcut.cost import NOMINAL, Cost, estimate
from gradcut.errors import GradcutError
from gradcut.heads import new_parameters
from gradcut.losses import Objective, as_text
from gradcut.optimizers import AdamW, UpdateRequest
from gradcut.passes import Pass, Simplify
from gradcut.passes.base import FROZEN, LOSS, read_json
from gradcut.passes.pipeline import collection_held
from gradcut.request import Request
from gradcut.source import Source, own
from gradcut.text import counted, human, join_names

#: What is said of artifacts without an objective, by every command.
NO_LOSS = "these artifacts have no loss; compile with one: gradcut compile ... --loss cross_entropy"


def full_cost(
    model: Source,
    loss: Objective = None,
    target: str = "onnx",
    batch_norm: str = "auto",
    dropout: str = "auto",
) -> Cost:
    """What a step costs where every parameter trains and nothing stops but the marks that the model came with.

    `backward_nodes` counts those of the emitted graph, after lowering; the rest is estimated before it, as in the
    manifest.

    Raises:
        GradcutError: full training is refused, such as for an operator without a gradient.
    """
    request = Request(as_text(loss) or "", (), (), (), UpdateRequest(AdamW()), target, False, batch_norm, dropout, 0)
    given = own(model)
    given.metadata_props.pop(FROZEN, None)
    costs: list[Cost] = []

    def see(one: Pass, work: ir.Model, seconds: float) -> None:
        if isinstance(one, Simplify):
            costs.append(estimate(work.graph))

    with collection_held():
        work, *_ = with_loss(given, Asked(request, loss))
        request.tail(read_json(work, LOSS) is not None).run(work, watch=see)
    return replace(costs[0], backward_nodes=estimate(work.graph).backward_nodes)


@dataclass(frozen=True)
class Summary:
    """A compilation against full training.

    Attributes:
        cost: of a step as compiled, `backward_nodes` counted in the emitted graph.
        full: the same for full training; None where that is refused, and then `refused` says why.
        head: the tensors of heads that were replaced, by name, with their shapes.
    """

    manifest: Mapping[str, Any]
    cost: Cost
    full: Cost | None
    refused: str
    head: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Lines for a person: a heading of one word, and a sentence."""
        yield "trains", _parameters(self.manifest, "trained")
        if self.head:
            yield "new head", f"{', '.join(self.head.values())}{self._alone()}"
        yield from self._frozen()
        yield "backward", f"{self.cost.backward_nodes} nodes emitted" + self._against("backward_nodes", "")
        yield "step", f"{human(self.cost.flops, 'FLOP')}" + self._against("flops", "FLOP")
        yield "saved", f"{human(self.cost.saved_bytes, 'B')} of activations" + self._against("saved_bytes", "B")
        if self.full is None:
            yield "", f"full training is refused: {self.refused}"
        if _has_symbols(self.manifest):
            yield "", f"(estimated with {NOMINAL} for every dimension that is open)"
        modes = list(self.manifest["batch_norm"].values())
        if modes:
            yield "batch norm", _modes(modes)
        yield from _updates(self.manifest)
        yield "data", ", ".join(_inputs(self.manifest))
        if self.manifest["loss"] is None:
            yield "loss", NO_LOSS

    def warnings(self) -> Iterator[str]:
        every = [one["name"] for one in self.manifest["parameters"]]
        by_reason: dict[str, list[str]] = {}
        for name, why in self.manifest["unreached"].items():
            by_reason.setdefault(why, []).append(name)
        for why, names in by_reason.items():
            are = "gets no gradient and is" if len(names) == 1 else "get no gradient and are"
            yield f"{join_names(condensed(names, every), 4)} {are} left out of training: {why}"
        yield from self.manifest["warnings"]

    def _alone(self) -> str:
        """How to train a new head alone, where more than it trains."""
        every = {one["name"]: one["status"] for one in self.manifest["parameters"]}
        if all(name in self.head for name, status in every.items() if status == "trained"):
            return ""
        return "; to train it alone: " + " ".join(f"--train {shlex.quote(one)}" for one in condensed(self.head, every))

    def _frozen(self) -> Iterator[tuple[str, str]]:
        for status, why in (("frozen", "by --freeze or the model"), ("not-trained", "not named by --train")):
            if any(one["status"] == status for one in self.manifest["parameters"]):
                yield "frozen", f"{_parameters(self.manifest, status)} ({why})"
        statistics = len(self.manifest["state"])
        if statistics:
            yield "state", f"{statistics} running statistics move"

    def _against(self, field: str, unit: str) -> str:
        if self.full is None:
            return ""
        mine, full = getattr(self.cost, field), getattr(self.full, field)
        if mine == full:
            return ", as in full training"
        return f"; {human(full, unit)} in full training ({mine / max(full, 1):.0%})"


def _updates(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What an update does beside the optimizer."""
    said = manifest["optimizer"]
    for number, group in enumerate(said["groups"]):
        options = ", ".join(f"{name}={value}" for name, value in group["options"].items())
        members = sum(number in one["groups"] for one in manifest["trainable"])
        yield "group", f"{group['pattern']}: {options} ({counted(members, 'tensor')})"
    if said["no_decay"]:
        yield "no decay", f"{counted(len(said['no_decay']), 'tensor')}: {join_names(said['no_decay'], 4)}"
    for name, what in (("clip_value", "each element"), ("clip_norm", "the norm of all gradients")):
        if said[name] is not None:
            yield "clip", f"{what} to {said[name]:g}"
    if said["ema"] is not None:
        yield "averages", f"of {counted(len(manifest['trainable']), 'tensor')}, by {said['ema']:g}; export --ema"


def summarize(
    artifacts: TrainingArtifacts,
    model: Source,
    loss: Objective = None,
    batch_norm: str = "auto",
    dropout: str = "auto",
    everything: bool = False,
) -> Summary:
    """The summary of artifacts that were compiled from `model` with these options.

    Args:
        everything: no option froze or stopped anything; what the model itself freezes is looked up.
    """
    manifest = artifacts.manifest
    emitted = estimate(artifacts.training_model.graph).backward_nodes
    cost = replace(Cost(**manifest["cost"]), backward_nodes=emitted)
    full: Cost | None = cost
    refused = ""
    if not everything or any(one["status"] == "frozen" for one in manifest["parameters"]):
        full, refused = _full_or_why_not(model, loss, manifest["target"], batch_norm, dropout)
    return Summary(manifest, cost, full, refused, new_parameters(artifacts.model))


def _full_or_why_not(
    model: Source, loss: Objective, target: str, batch_norm: str, dropout: str
) -> tuple[Cost | None, str]:
    try:
        return full_cost(model, loss, target, batch_norm, dropout), ""
    except GradcutError as error:
        return None, str(error)


def _parameters(manifest: Mapping[str, Any], status: str) -> str:
    listed = [one for one in manifest["parameters"] if one["status"] == status]
    numbers = sum(int(np.prod(one["shape"], dtype=np.int64)) for one in listed)
    noun = "parameter" if len(listed) == 1 else "parameters"
    names = condensed([one["name"] for one in listed], [one["name"] for one in manifest["parameters"]])
    return f"{len(listed)} {noun}, {human(numbers)} numbers: {join_names(names, 4)}"


def condensed(names: Iterable[str], everything: Iterable[str]) -> list[str]:
    """`names` with ``scope.*`` in place of those of a scope whose names in `everything` are all among them."""
    chosen = list(names)
    others = [name for name in everything if name not in set(chosen)]
    whole = {prefix for name in chosen for prefix in _scopes(name)} - {p for name in others for p in _scopes(name)}
    sizes = Counter(prefix for name in chosen for prefix in _scopes(name))
    short = {name: next((p for p in _scopes(name) if p in whole and sizes[p] > 1), "") for name in chosen}
    return list(dict.fromkeys(f"{short[name]}*" if short[name] else name for name in chosen))


def _scopes(name: str) -> list[str]:
    """``a.b.c`` -> ``a.``, ``a.b.``"""
    return [name[: found.end()] for found in re.finditer(r"[./]", name)]


def _modes(modes: Iterable[str]) -> str:
    counted = list(modes)
    train, still = counted.count("train"), counted.count("eval")
    parts = [f"{train} train and move their statistics"] if train else []
    return ", ".join(parts + ([f"{still} in inference mode"] if still else []))


def _inputs(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What a batch must have: each input with its dtype and shape."""
    for port in manifest["graphs"]["training_model"]["inputs"]:
        if port["role"] in ("user", "label", "cotangent"):
            shape = "[?]" if port["shape"] is None else f"[{', '.join(str(size or '?') for size in port['shape'])}]"
            dtype = {"FLOAT": "float32", "DOUBLE": "float64"}.get(port["dtype"], str(port["dtype"]).lower())
            yield f"{port['name']} {dtype}{shape}"


def _has_symbols(manifest: Mapping[str, Any]) -> bool:
    ports = manifest["graphs"]["training_model"]["inputs"]
    return any(not isinstance(dim, int) for port in ports for dim in port["shape"] or ())
