"""From a model with its loss attached to graphs and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from gradcut import ort_graphs
from gradcut.activity import Activity
from gradcut.blocked import blocked_by
from gradcut.cost import Cost, estimate
from gradcut.dialect.relatives import settings_inputs
from gradcut.errors import NothingTrainsError, SpecError
from gradcut.exporters import BETTER
from gradcut.graphs import (
    NEXT,
    SlotNames,
    StepNames,
    Trained,
    append_state,
    name_trained,
    optimizer_graph,
    sign,
    step_graph,
)
from gradcut.marked import mark_given
from gradcut.ops import Builder, Names
from gradcut.optimizers import UpdatePlan
from gradcut.parameters import Decision, is_bias_or_norm
from gradcut.passes import Capture, Emit, Lower, Pass, Pipeline, Simplify, Specialize
from gradcut.passes.base import ACTIVITY, DECISIONS, DECLARED, GRADIENTS, HELD, LOSS, read_json, write_json
from gradcut.passes.pipeline import Watch
from gradcut.passes.propagate import main_values
from gradcut.passes.random import DRAWS
from gradcut.passes.specialize import MODES, STATE
from gradcut.passes.stop_gradient import frozen_names
from gradcut.request import Request
from gradcut.starts import Starts, array
from gradcut.state import State
from gradcut.state_graph import Move, state_graph
from gradcut.text import join_names


class Compilation:
    """From a model with its loss attached to artifacts."""

    def __init__(
        self,
        request: Request,
        given: ir.Model,
        work: ir.Model,
        head: Pipeline,
        moves: Sequence[Move] = (),
        states: Sequence[State] = (),
        verify_each: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.request, self.given, self.work = request, given, work
        self.moves, self.starts = moves, Starts(given, states)
        self.declared: dict[str, ir.Value] = work.meta[DECLARED]
        self.loss = read_json(work, LOSS)
        if request.target == ort_graphs.TARGET:
            ort_graphs.require(work, request.update, self.loss is not None)
        backward = request.backward(self.loss is not None)
        self.pipeline = Pipeline((*head.passes, *backward.passes, *request.emission().passes))
        self.forward = work.clone()
        self.values = main_values(self.forward.graph)
        self.decisions = self._chosen_from(work.meta[DECISIONS])
        inputs = (value.name for value in given.graph.inputs if value.name not in given.graph.initializers)
        self.user_inputs = [name for name in inputs if name not in self.declared]
        self.cost: Cost | None = None
        self._verify_each, self._watch = verify_each, self._watched(watch)
        backward.run(work, verify_each=verify_each, watch=self._watch)
        self.activity: Activity = work.meta[ACTIVITY]
        self.gradients = read_json(work, GRADIENTS)
        self.state = read_json(work, STATE) or {}
        self.draws = read_json(work, DRAWS) or {}
        self.modes = read_json(work, MODES) or {}
        self.held: list[str] = []
        self.state_next: dict[str, str] = {}
        self._captured = {name for one in head.passes if isinstance(one, Capture) for name in one.values} - {
            value.name for value in given.graph.outputs
        }
        self._check_reached()
        self.plan, self.groups, self.spared = self._resolved()

    @property
    def moved(self) -> dict[str, None]:
        """What the training graph and the optimizer move: parameters that get a gradient, then running statistics."""
        return dict.fromkeys([*self.gradients["wrt"], *self.state])

    def finish(self, moved: Iterable[str] = ()) -> None:
        """Lower and emit.

        Args:
            moved: what other steps over the same parameters move: inputs of this one's graphs, as declared state is.
        """
        others = dict.fromkeys((*self.declared, *moved))
        self.held = [name for name in others if name not in self.moved]
        if self.held:
            for model in (self.work, self.forward):
                write_json(model, HELD, self.held)
        self.request.emission().run(self.work, verify_each=self._verify_each, watch=self._watch)

    def _resolved(self) -> tuple[UpdatePlan, dict[str, list[int]], list[str]]:
        known = self.values
        return self.request.update.resolve(
            self.forward.graph, list(self.gradients["wrt"]), lambda name: is_bias_or_norm(known[name])
        )

    def _chosen_from(self, decisions: dict[str, Decision]) -> dict[str, Decision]:
        """As when the trainables were chosen: what `fold` makes a Constant, or a loss brings, is no parameter."""
        kept = {name: value for name, value in self.values.items() if name not in self.declared}
        return {name: replace(one, value=kept.get(name, one.value)) for name, one in decisions.items()}

    def _watched(self, watch: Watch | None) -> Watch:
        """Costs are estimated on the simplified graph, before lowering."""

        def see(one: Pass, model: ir.Model, seconds: float) -> None:
            if isinstance(one, Simplify):
                self.cost = estimate(model.graph)
            if watch is not None:
                watch(one, model, seconds)

        return see

    def _check_reached(self) -> None:
        lost = self.overlooked()
        if lost and self.request.strict:
            raise SpecError(
                f"strict: {join_names(lost, 4)} stand where weights do, but the file does not name them parameters; "
                f"export it with {BETTER}, or name in --train what is to train"
            )
        unreached = self.gradients["unreached"]
        if unreached and (self.request.strict or not self.gradients["wrt"]):
            by_reason: dict[str, list[str]] = {}
            for name, reason in self.blocked.items():
                by_reason.setdefault(reason, []).append(name)
            why = "; ".join(f"{join_names(names, 4)}: {reason}" for reason, names in by_reason.items())
            what = (
                "no trainable reaches the loss"
                if not self.gradients["wrt"]
                else "strict: some trainables do not reach the loss"
            )
            raise NothingTrainsError(f"{what} ({why})")

    # --- graphs ----------------------------------------------------------------------------------------------

    def graphs(self, slots: SlotNames) -> tuple[list[Trained], StepNames, dict[str, ir.Model]]:
        """What trains, the names of the scalars of a step, and the graphs by name; after `finish`."""
        request, work = self.request, self.work
        names = Names.of(work)
        scalars = StepNames(
            learning_rate=names.fresh("learning_rate"),
            step=self.draws.get("step") or names.fresh("step"),
            step_next=names.fresh("step_next"),
            seed=self.draws.get("seed"),
            gradient_norm=names.fresh("gradient_norm") if self.plan.clip_norm is not None else None,
            clocks={
                clock: (names.fresh(f"updates_{clock}"), names.fresh(f"updates_{clock}{NEXT}"))
                for clock in dict.fromkeys(self.plan.clocks.values())
            },
        )
        if request.target == ort_graphs.TARGET:
            trained, graphs = ort_graphs.build(work, request.update.optimizer, self.gradients["wrt"], self.state)
        else:
            trained = name_trained(work, self.gradients["wrt"], self.plan, names, slots)
            graphs = {
                "training_model": work,
                "optimizer_model": optimizer_graph(self.plan, trained, scalars, work.opset_imports[""]),
                "step_model": step_graph(work, self.plan, trained, scalars, self.state),
            }
            if self.moves:
                graphs["state_model"] = self._state_graph(scalars, names)
                after = {one.name: one.next[one.name] for one in trained} | self.state
                append_state(graphs["step_model"], graphs["state_model"], after, self.captured)
        graphs["eval_model"] = self._evaluation([one.name for one in trained])
        for graph in graphs.values():
            sign(graph, str(self.pipeline))
        return trained, scalars, graphs

    @property
    def captured(self) -> list[str]:
        """The names, in the training graph, of values that it gives for the updates of state alone."""
        return [now for name, now in self.gradients["of"].items() if name in self._captured]

    def _state_graph(self, scalars: StepNames, names: Names) -> ir.Model:
        now = {value.name: value for value in self.work.graph.outputs}
        renamed = {name: now[output] for name, output in self.gradients["of"].items() if output in now}
        moving = {*self.moved, *self.held}
        still = {name: value.const_value for name, value in self.values.items() if name not in moving}
        model, self.state_next = state_graph(
            self.moves,
            self.work,
            {**self.values, **self.declared, **renamed},
            {name: tensor for name, tensor in still.items() if tensor is not None},
            scalars.step,
            names,
        )
        return model

    def _evaluation(self, trained: Sequence[str]) -> ir.Model:
        passes = (
            Specialize(batch_norm="eval", dropout="eval", draws=False),
            Lower(target=self.request.target),
            Emit(inputs=(*trained, *self.state)),
        )
        forward = self.forward.clone()
        forward.graph.outputs[:] = [value for value in forward.graph.outputs if value.name not in self._captured]
        settings = settings_inputs(forward.graph)
        model = Pipeline(passes).run(forward)
        model.graph.inputs[:] = [value for value in model.graph.inputs if value not in settings or value.uses()]
        b = Builder(Names.of(model))
        for position, value in enumerate(model.graph.outputs):
            if value.producer() is None:  # an input or a weight, copied under the name it has in the training graph
                copy = b.op("Identity", value, dtype=value.dtype, shape=value.shape)
                copy.name = self.gradients["of"][value.name]
                model.graph.outputs[position] = copy
        model.graph.extend(b.nodes)
        return model

    def marked(self, trained: Sequence[str]) -> ir.Model:
        """The model as it was given, with the marks and freezes that were asked for."""
        return mark_given(self.given, self.request.stop_at, trained, self.frozen)

    @property
    def frozen(self) -> list[str]:
        """The parameters that are frozen, by the model or by what was asked."""
        return sorted(frozen_names(self.forward))

    def tensors(self, trained: Sequence[Trained]) -> dict[str, np.ndarray]:
        """What the checkpoint starts with: every trained parameter, its slots, the state that moves."""
        tensors: dict[str, np.ndarray] = {}
        for one in trained:
            tensors[one.name] = array(self.values[one.name])
            for slot, name in one.slots.items():
                tensors[name] = self.plan.initial(one.name, slot, tensors[one.name], one.slot_dtype.numpy())
        for name in self.state:
            tensors[name] = array(self.values[name])
        for name in self.declared:
            tensors[name] = self.starts.of(self.declared[name])
        return tensors

    def overlooked(self) -> list[str]:
        """Weights that nobody named, where every parameter was to train."""
        if self.request.train:
            return []
        return [name for name, decision in self.decisions.items() if decision.overlooked]

    @cached_property
    def blocked(self) -> dict[str, str]:
        """For each trainable that the loss does not reach: what cut it off."""
        of = [self.loss["loss"]] if self.loss else list(self.gradients["seeds"])
        return blocked_by(self.forward, of, self.gradients["unreached"])
