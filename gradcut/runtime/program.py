"""One step's graphs over the memory of a session: what runs them, and where their gradients go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradcut.artifacts import TrainingArtifacts
from gradcut.errors import FeedError
from gradcut.optimizers import check_rate
from gradcut.runtime import accumulation
from gradcut.runtime.backend import Runner, Slot, scalar, to_device
from gradcut.runtime.ema import slots as ema_slots
from gradcut.runtime.feeds import FeedCheck
from gradcut.runtime.finite import require_finite_loss
from gradcut.runtime.updater import Updater
from gradcut.text import join_names

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StepResult:
    """What a step or an evaluation gives.

    Attributes:
        loss: the objective; nan where the artifacts have none.
        outputs: the model's outputs by name.
        step: updates done after the call; of several named steps, those of the step at hand.
        gradient_norm: where a step clips by it, the norm of all gradients together before it did; else None.
    """

    loss: float
    outputs: dict[str, Array] = field(repr=False)
    step: int
    gradient_norm: float | None = None


@dataclass(frozen=True)
class Memory:
    """What the programs of a session share: the state by name, and how graphs are run.

    Attributes:
        clocks: counts of updates that parameters of several steps go by, and declared state.
    """

    slots: dict[str, Slot]
    device: str
    threads: int | None
    options: Mapping[str, str] | None
    clocks: dict[str, int] = field(default_factory=dict)


class Program:
    """The graphs of one step.

    Args:
        artifacts: of the step alone. backend: of the optimizer, see `TrainingSession`.

    Attributes:
        steps: updates done. seed: what the graphs draw from.
    """

    def __init__(self, artifacts: TrainingArtifacts, memory: Memory, backend: str) -> None:
        self.artifacts, self.manifest, self.memory = artifacts, artifacts.manifest, memory
        self.seed = self.steps = 0
        self._slots, self._checks = memory.slots, dict[str, FeedCheck]()
        graphs = self.manifest["graphs"]
        given = {port["name"]: port["role"] for port in graphs["training_model"]["outputs"]}
        read = {port["name"] for port in graphs.get("state_model", {"inputs": ()})["inputs"]}
        self._captured = [name for name, role in given.items() if role == "captured"]
        self._read_by_state = [name for name in given if name in read]
        self._left: dict[str, Any] = {}
        self._backend = backend

    def release(self) -> None:
        """Let go of everything that can be made again: graphs, buffers of gradients, the optimizer's tables."""
        for name in ("training", "state", "evaluation", "_gradients", "updater"):
            self.__dict__.pop(name, None)

    @cached_property
    def _gradients(self) -> dict[str, Slot]:
        return {
            one["gradient"]: Slot(np.zeros_like(self._slots[one["name"]].array), self.memory.device)
            for one in self.manifest["trainable"]
        }

    @cached_property
    def updater(self) -> Updater:
        device, threads = self.memory.device, self.memory.threads
        return Updater(self.manifest, self._slots, self._gradients, self._backend, device, threads, self._runner)

    @cached_property
    def training(self) -> Runner:
        return self._runner("training_model")

    @cached_property
    def state(self) -> Runner:
        return self._runner("state_model")

    @cached_property
    def evaluation(self) -> Runner:
        return self._runner("eval_model")

    def step(self, feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]], lr: float | None) -> StepResult:
        """See `TrainingSession.step`."""
        rate = self.updater.plan.base.lr if lr is None else check_rate(lr)
        batches: list[Any] = list(feeds) if isinstance(feeds, (list, tuple)) else [feeds]
        if not batches:
            raise FeedError("there is no micro-batch in the list to step on")
        if self._read_by_state and len(batches) > 1:
            raise FeedError("declared state reads values of the batch, so a step takes one batch, not micro-batches")
        before = {name: self._slots[name].numpy() for name in self.manifest["state"]} if len(batches) > 1 else {}
        try:
            result = self._run_batches(batches, rate)
            if self._may_fail:
                self._next_declared()  # an update of declared state that does not run is said before anything moves
            norm = self.updater.step(rate, self.steps, self.memory.clocks)
        except BaseException:
            for name, array in before.items():
                self._slots[name].assign(array)
            raise
        for name in self.manifest["state"]:
            self._slots[name].swap()
        self._move_declared()
        self.steps += 1
        for clock in self.manifest["names"]["clocks"]:
            self.memory.clocks[clock] = self.memory.clocks.get(clock, 0) + 1
        return StepResult(result.loss, result.outputs, self.steps, norm)

    def _next_declared(self) -> None:
        """The next of declared state into the spares, from the tensors of now and what the training graph has left."""
        values = {name: slot.current for name, slot in self._slots.items()} | self._left
        declared = self.manifest["declared"]
        done = max(self.steps, *(self.memory.clocks.get(_clock(name), 0) for name in declared))
        values[self.manifest["names"]["step"]] = scalar(done, np.int64)
        try:
            self.state.run(values, {after: self._slots[name].spare for name, after in declared.items()})
        except FeedError as error:
            raise FeedError(
                f"the update of declared state ({join_names(declared, 4)}) does not run: {error}"
            ) from error

    def _move_declared(self) -> None:
        """Declared state goes on; what reads tensors that the step has moved is computed of them."""
        if self.manifest["declared"] and not self._moved.isdisjoint(self.state.inputs):
            self._next_declared()
        for name in self.manifest["declared"]:
            self._slots[name].swap()
            self.memory.clocks[_clock(name)] = self.memory.clocks.get(_clock(name), 0) + 1
        self._left = {}

    @cached_property
    def _moved(self) -> set[str]:
        """What the step moves before it comes to declared state."""
        return {one["name"] for one in self.manifest["trainable"]} | {*self.manifest["state"]}

    @property
    def _may_fail(self) -> bool:
        """Whether an update of declared state may fail on one batch and not on another; averages alone do not."""
        return bool(self.manifest["declared"]) and (
            bool(self._read_by_state) or self._moved.isdisjoint(self.state.inputs)
        )

    def _run_batches(self, batches: Sequence[Mapping[str, Any]], rate: float) -> StepResult:
        """Loss, outputs and gradients of the micro-batches together; the last one's statistics are in the spares."""
        checked = [self._checked("training_model", feeds) for feeds in batches]
        if len(checked) == 1:
            result = self._run_training(checked[0])
            self._require_finite(result.loss, rate, checked[0])
            return result
        parts = accumulation.shares(self.manifest["loss"], checked)
        results, last = [], len(checked) - 1
        for number, (feeds, share) in enumerate(zip(checked, parts, strict=True)):
            results.append(self._run_training(feeds, number))
            if share:
                where = f" in micro-batch {number + 1} of {len(checked)}"
                self._require_finite(results[-1].loss, rate, feeds, where)
            for slot in self._gradients.values():
                accumulation.fold(slot, share, number == 0, number == last)
            for name in self.manifest["state"] if number < last else ():
                self._slots[name].swap()
        loss = sum(one.loss * share for one, share in zip(results, parts, strict=True) if share)
        return StepResult(loss, accumulation.joined([one.outputs for one in results]), self.steps)

    def _require_finite(self, loss: float, rate: float, feeds: Mapping[str, Array], where: str = "") -> None:
        if self.manifest["loss"] is not None:
            require_finite_loss(loss, self.steps + 1, rate, where, self.manifest["loss"], feeds)

    def evaluate(self, feeds: Mapping[str, Any], ema: bool) -> StepResult:
        """See `TrainingSession.evaluate`."""
        inputs = self._inputs(self._checked("eval_model", feeds))
        if ema:
            inputs |= {name: self._average(name, slot) for name, slot in ema_slots(self.manifest).items()}
        return self._result("eval_model", self.evaluation.run(inputs, {}))

    def gradients(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """See `TrainingSession.gradients`."""
        self._run_training(self._checked("training_model", feeds))
        return {one["name"]: self._gradients[one["gradient"]].numpy() for one in self.manifest["trainable"]}

    def _average(self, name: str, slot: str) -> Any:
        """A running average on the device, in its parameter's dtype."""
        dtype, average = self._slots[name].array.dtype, self._slots[slot]
        if average.array.dtype == dtype:
            return average.current
        return to_device(average.numpy().astype(dtype), self.memory.device)

    def _run_training(self, feeds: Mapping[str, Array], part: int = 0) -> StepResult:
        """Gradients into their buffers and the next statistics into the spares; `part`: which micro-batch it is."""
        outputs = {name: slot.current for name, slot in self._gradients.items()}
        outputs |= {after: self._slots[name].spare for name, after in self.manifest["state"].items()}
        results = self.training.run(self._inputs(feeds, part), outputs, self._captured)
        self._left = {name: results[name] for name in self._read_by_state}
        return self._result("training_model", results)

    def _checked(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Array]:
        if graph not in self._checks:
            ports = self.manifest["graphs"][graph]["inputs"]
            given = [port for port in ports if port["role"] in ("user", "label", "cotangent")]
            self._checks[graph] = FeedCheck(given, self.manifest["loss"])
        return self._checks[graph](self._without_settings(feeds) if graph == "eval_model" else feeds)

    def _without_settings(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """Feeds of a step serve to evaluate too: without what only the backward reads, such as a condition."""
        ports = {name: one["inputs"] for name, one in self.manifest["graphs"].items()}
        evaluated = {port["name"] for port in ports["eval_model"]}
        settings = {port["name"] for port in ports["training_model"] if port["role"] == "user"} - evaluated
        if not settings or not isinstance(feeds, Mapping):
            return feeds
        return {name: array for name, array in feeds.items() if name not in settings}

    def _inputs(self, feeds: Mapping[str, Array], part: int = 0) -> dict[str, Any]:
        values = {name: to_device(array, self.memory.device) for name, array in feeds.items()}
        values |= {name: slot.current for name, slot in self._slots.items()}
        names = self.manifest["names"]
        values[names["step"]] = scalar(self.steps, np.int64)
        if names["seed"] is not None:
            values[names["seed"]] = scalar(accumulation.seed_of(self.seed, part), np.int64)
        return values

    def _result(self, graph: str, results: Mapping[str, Any]) -> StepResult:
        loss, outputs = math.nan, {}
        renamed = self.manifest["renamed"]
        for port in self.manifest["graphs"][graph]["outputs"]:
            if port["role"] == "loss":
                loss = float(results[port["name"]].numpy().reshape(()))
            if port["role"] == "output" and port["name"] in results:
                outputs[renamed.get(port["name"], port["name"])] = results[port["name"]].numpy()
        return StepResult(loss, outputs, self.steps)

    def _runner(self, graph: str) -> Runner:
        folder, memory = self.artifacts.folder, self.memory
        source = self.artifacts.models[graph] if folder is None else Path(folder) / f"{graph}.onnx"
        return Runner(source, memory.device, memory.threads, memory.options)


def _clock(state: str) -> str:
    """The count of the updates of a declared state: a name of its own, since files call tensors 1, 2, ... too."""
    return f"state {state}"
