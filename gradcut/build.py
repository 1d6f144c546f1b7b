"""From requests to artifacts: of the only step, or of several over one set of parameters.

Several steps are compiled up to their backward each; what one of them moves, its parameters and running statistics, is
an input of the others' graphs, so that all of them read the one state that the checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from gradcut.artifacts import TrainingArtifacts
from gradcut.compilation import Compilation
from gradcut.errors import SpecError
from gradcut.graphs import SlotNames
from gradcut.losses import Objective, as_text
from gradcut.manifest import manifest, manifest_of_steps
from gradcut.ops import Names
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
    if request.step:
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


def of_steps(
    given: ir.Model,
    asked: Sequence[Asked],
    verify_each: bool,
    watch: Watch | None,
    owner: Callable[[str], str] = lambda step: step,
) -> TrainingArtifacts:
    """Artifacts of several steps over the parameters of one model.

    Args:
        asked: each step; its request holds its name.
        owner: of a step: who has its optimizer's state; steps of one owner share it by parameter.
    """
    compilations = {one.request.step: _differentiated(given.clone(), one, verify_each, watch) for one in asked}
    _require_moved(asked[0].states, compilations.values())
    moved = dict.fromkeys(name for one in compilations.values() for name in one.moved)
    names = Names()
    for one in compilations.values():
        one.finish(moved)
        names.take(Names.of(one.work).taken)
    state: dict[str, SlotNames] = {}
    steps = {
        name: _artifacts(one, state.setdefault(owner(name), SlotNames(names, owner(name))))
        for name, one in compilations.items()
    }
    return _joined(given, steps)


def _joined(given: ir.Model, steps: Mapping[str, TrainingArtifacts]) -> TrainingArtifacts:
    """One directory's worth: the model and the tensors are there once."""
    tensors: dict[str, Array] = {}
    for one in steps.values():
        tensors |= {name: array for name, array in one.tensors.items() if name not in tensors}
    first = next(iter(steps.values()))
    start = {"step": 0, "seed": first.start["seed"], "extra": {}}
    shared = {name: replace(one, tensors=tensors, start=start) for name, one in steps.items()}
    return TrainingArtifacts({"model": given}, tensors, manifest_of_steps(steps), start, steps=shared)


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
