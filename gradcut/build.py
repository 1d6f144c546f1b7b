"""From requests to artifacts: of the only step, or of several over one set of parameters.

Several steps are compiled up to their backward each; what one of them moves, its parameters and running statistics, is
an input of the others' graphs, so that all of them read the one state that the checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from gradcut.artifacts import TrainingArtifacts
from gradcut.compilation import Compilation
from gradcut.graphs import SlotNames
from gradcut.losses import Objective, as_text
from gradcut.manifest import manifest, manifest_of_steps
from gradcut.ops import Names
from gradcut.passes import Pipeline
from gradcut.passes.loss import attach_graph
from gradcut.passes.pipeline import Watch
from gradcut.request import Request
from gradcut.source import Source, own

Array = np.ndarray[Any, Any]


def with_loss(
    given: ir.Model, request: Request, loss: Objective, verify_each: bool, watch: Watch | None
) -> tuple[ir.Model, Pipeline]:
    """A copy of the model with its loss attached, and the passes that did it."""
    graph = cast(Source, loss) if as_text(loss) is None else None
    work, head, narrowed = given.clone(), request.head(attach=graph is None), request.narrowed()
    head.run(work, verify_each=verify_each, watch=watch)
    if graph is not None:
        attach_graph(work, own(graph), {}, "the loss graph")
    narrowed.run(work, verify_each=verify_each, watch=watch)
    return work, Pipeline((*head.passes, *narrowed.passes))


def of_one(
    given: ir.Model, request: Request, loss: Objective, verify_each: bool, watch: Watch | None
) -> TrainingArtifacts:
    """Artifacts of the only step there is."""
    compilation = _differentiated(given, request, loss, verify_each, watch)
    compilation.finish()
    return _artifacts(compilation, SlotNames(Names.of(compilation.work)))


def of_steps(
    given: ir.Model,
    asked: Sequence[tuple[Request, Objective]],
    verify_each: bool,
    watch: Watch | None,
    owner: Callable[[str], str] = lambda step: step,
) -> TrainingArtifacts:
    """Artifacts of several steps over the parameters of one model.

    Args:
        asked: each step's request, which holds its name, and its loss.
        owner: of a step: who has its optimizer's state; steps of one owner share it by parameter.
    """
    compilations = {
        request.step: _differentiated(given.clone(), request, loss, verify_each, watch) for request, loss in asked
    }
    moved = dict.fromkeys(name for one in compilations.values() for name in one.moves)
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


def _differentiated(
    given: ir.Model, request: Request, loss: Objective, verify_each: bool, watch: Watch | None
) -> Compilation:
    work, head = with_loss(given, request, loss, verify_each, watch)
    return Compilation(request, given, work, head, verify_each, watch)


def _artifacts(compilation: Compilation, slots: SlotNames) -> TrainingArtifacts:
    trained, scalars, graphs = compilation.graphs(slots)
    request = compilation.request
    return TrainingArtifacts(
        {"model": compilation.marked([one.name for one in trained]), **graphs},
        tensors=compilation.tensors(trained),
        manifest=manifest(compilation, graphs, trained, scalars),
        start={"step": 0, "seed": request.seed, "optimizer": request.update.optimizer.spec(), "extra": {}},
    )
