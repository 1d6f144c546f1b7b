"""From requests to artifacts: of the only step, or of several over one set of parameters.

Several steps are compiled up to their backward each; what one of them moves, its parameters and running statistics, is
an input of the others' graphs, so that all of them read the one state that the checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from gradcut.artifacts import TrainingArtifacts
from gradcut.compilation import Compilation
from gradcut.errors import GradcutError, PatternError, SpecError
from gradcut.graphs import SlotNames
from gradcut.losses import Objective, as_text
from gradcut.manifest import manifest, manifest_of_steps
from gradcut.marked import mark_given
from gradcut.ops import Names
from gradcut.optimizers import UpdateRequest
from gradcut.passes import AttachLoss, Capture, Import, Narrow, Pass, Pipeline
from gradcut.passes.base import TRAINABLE, read_json
from gradcut.passes.loss import attach_graph
from gradcut.passes.pipeline import Watch
from gradcut.passes.propagate import main_values
from gradcut.request import Request
from gradcut.source import Source, own
from gradcut.state import State
from gradcut.state_graph import Move, declared_moves, is_weight, moves_here
from gradcut.text import join_names

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Asked:
    """One step as it was asked for; `states` are those declared for all steps."""

    request: Request
    loss: Objective
    states: tuple[State, ...] = ()


def with_loss(
    given: ir.Model, asked: Asked, verify_each: bool = False, watch: Watch | None = None
) -> tuple[ir.Model, Pipeline, list[Move]]:
    """A copy of the model with its loss attached; the passes that did it; the updates of state that go with it."""
    loss, request = asked.loss, asked.request
    work, passed = given.clone(), list[Pass]()

    def run(*passes: Pass) -> None:
        Pipeline(passes).run(work, verify_each=verify_each, watch=watch)
        passed.extend(passes)

    run(Import())
    weights = [name for name, value in main_values(work.graph).items() if is_weight(value)]
    moves = declared_moves(work, asked.states)
    run(*request.chosen([name for move in moves for name in move.states]))
    if as_text(loss) is None:
        attach_graph(work, own(cast(Source, loss)), {}, "the loss graph")
    else:
        run(AttachLoss(spec=request.loss))
    if request.narrow:
        run(Narrow(outputs=request.outputs))
        values, trainable = main_values(work.graph), read_json(work, TRAINABLE)
        moves = [move for move in moves if moves_here(move, values, weights, trainable)]
    captured = dict.fromkeys(name for move in moves for name in move.reads if name not in weights)
    if captured:
        run(Capture(values=tuple(captured)))
    return work, Pipeline(tuple(passed)), moves


def of_one(given: ir.Model, asked: Asked, verify_each: bool, watch: Watch | None) -> TrainingArtifacts:
    """Artifacts of the only step there is."""
    compilation = _differentiated(given, asked, verify_each, watch)
    compilation.finish()
    return _artifacts(compilation, SlotNames(Names.of(compilation.work)))


def of_steps(given: ir.Model, asked: Sequence[Asked], verify_each: bool, watch: Watch | None) -> TrainingArtifacts:
    """Artifacts of several players over the parameters of one model; each has optimizer state of its own."""
    steps = _each(given, asked, verify_each, watch)
    _require_moved(asked[0].states, steps.values())
    moved = dict.fromkeys(name for one in steps.values() for name in one.moved)
    for one in steps.values():
        one.finish(moved)
    names = _taken(steps.values())
    built = {name: _artifacts(one, SlotNames(names, owner=name)) for name, one in steps.items()}
    return _joined(given, built)


def of_phases(
    given: ir.Model, asked: Sequence[Asked], epochs: Sequence[int], verify_each: bool, watch: Watch | None
) -> TrainingArtifacts:
    """Artifacts of phases that follow each other: optimizer state is shared by parameter.

    What only a later phase trains has not moved yet, and lies in a phase's graphs as what is frozen does.
    """
    phases = _each(given, asked, verify_each, watch)
    _require_groups(asked[0].request.update, phases.values())
    trained_in: dict[str, list[str]] = {}
    moved: dict[str, None] = {}
    for number, one in enumerate(phases.values(), 1):
        moved |= one.moved
        one.finish(moved)
        for name in one.gradients["wrt"]:
            trained_in.setdefault(name, []).append(str(number))
    clocks = {name: "_".join(numbers) for name, numbers in trained_in.items()}
    slots = SlotNames(_taken(phases.values()))
    for one in phases.values():
        one.plan = replace(one.plan, clocks={name: clocks[name] for name in one.gradients["wrt"]})
    artifacts = _joined(given, {name: _artifacts(one, slots) for name, one in phases.items()})
    artifacts.manifest["phases"] = dict(zip(phases, epochs, strict=True))
    return artifacts


def _each(given: ir.Model, asked: Sequence[Asked], verify_each: bool, watch: Watch | None) -> dict[str, Compilation]:
    found = {}
    every = tuple(dict.fromkeys(pattern for one in asked for pattern in one.request.train))
    for one in asked:
        try:
            known = replace(one, request=replace(one.request, beside=every))
            found[one.request.step] = _differentiated(given.clone(), known, verify_each, watch)
        except GradcutError as error:
            error.args = (f"{one.request.step}: {error}", *error.args[1:])
            raise
    return found


def _taken(steps: Iterable[Compilation]) -> Names:
    """The names of all their graphs."""
    return Names(name for one in steps for name in Names.of(one.work).taken)


def _require_groups(update: UpdateRequest, phases: Iterable[Compilation]) -> None:
    used = {number for one in phases for numbers in one.groups.values() for number in numbers}
    idle = [group.pattern for number, group in enumerate(update.groups) if number not in used]
    if idle:
        raise PatternError(idle[0], "parameter that any phase trains (--group)", ())


def _joined(given: ir.Model, steps: Mapping[str, TrainingArtifacts]) -> TrainingArtifacts:
    """One directory's worth: the model and the tensors are there once."""
    tensors: dict[str, Array] = {}
    for one in steps.values():
        tensors |= {name: array for name, array in one.tensors.items() if name not in tensors}
    first = next(iter(steps.values()))
    start = {"step": 0, "seed": first.start["seed"], "extra": {}}
    shared = {name: replace(one, tensors=tensors, start=start) for name, one in steps.items()}
    trained = {name for one in steps.values() for name in one.trainable}
    frozen = set.intersection(*(set(one.manifest["frozen"]) for one in steps.values()))
    model = mark_given(given, (), trained, sorted(frozen))  # marks of one step are not the others'
    return TrainingArtifacts({"model": model}, tensors, manifest_of_steps(steps), start, steps=shared)


def _require_moved(states: Iterable[State], steps: Iterable[Compilation]) -> None:
    moved = {name for one in steps for move in one.moves for name in move.states}
    idle = [name for state in states for name in state.names if "*" not in name and name not in moved]
    if idle:
        raise SpecError(
            f"no step moves the state {join_names(idle)}: a step does where it has what the update reads, and trains "
            "one of the parameters among that"
        )


def _differentiated(given: ir.Model, asked: Asked, verify_each: bool, watch: Watch | None) -> Compilation:
    work, head, moves = with_loss(given, asked, verify_each, watch)
    return Compilation(asked.request, given, work, head, moves, asked.states, verify_each, watch)


def _artifacts(compilation: Compilation, slots: SlotNames) -> TrainingArtifacts:
    trained, scalars, graphs = compilation.graphs(slots)
    request = compilation.request
    return TrainingArtifacts(
        {"model": compilation.marked([one.name for one in trained]), **graphs},
        tensors=compilation.tensors(trained),
        manifest=manifest(compilation, graphs, trained, scalars),
        start={"step": 0, "seed": request.seed, "optimizer": request.update.optimizer.spec(), "extra": {}},
    )
