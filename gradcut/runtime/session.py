"""A training session: the emitted graphs on a device, and the state that moves.

A step runs the training graph, which reads parameters and writes gradients, and then the optimizer, as a compiled host
kernel in place over the same memory (CPU) or as the emitted graph. No buffer is ever both read and written by one run:
state that a run writes goes into a spare, and the two are swapped afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from gradcut import checkpoint
from gradcut.artifacts import TrainingArtifacts
from gradcut.errors import ArtifactsError, CheckpointError, FeedError, LossError, SpecError
from gradcut.optimizers import Optimizer
from gradcut.parameters import constant_tensor
from gradcut.passes.propagate import main_values
from gradcut.report import NO_LOSS
from gradcut.runtime import accumulation, backend
from gradcut.runtime.backend import Slot
from gradcut.runtime.ema import averages
from gradcut.runtime.export import export, written_back
from gradcut.runtime.finite import require_finite_state
from gradcut.runtime.program import Memory, Program, StepResult
from gradcut.subgraphs import body_tensors
from gradcut.text import join_names, nearest

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Any] | Sequence[Mapping[str, Any]]
#: The name of the only step there is.
ONLY = ""

__all__ = ["ONLY", "StepResult", "TrainingSession"]


class TrainingSession:
    """Trains compiled artifacts.

    Of artifacts with several named steps, `step`, `evaluate` and `gradients` take the step's name before the feeds.

    Args:
        artifacts: from `gradcut.compile`, or the directory of saved ones; training goes on from their checkpoint.
            What it holds of a directory, as `artifacts`, is without tensors: they live in the session alone.
        device: ``cpu`` or ``cuda``.
        threads: of the runtime and of the host optimizer; None: the cores this process may use.
        optimizer_backend: ``host``: a numba kernel in place (CPU, float32 and float64); ``graph``: the emitted graph;
            ``auto``: host where it can be.
        provider_options: handed to the runtime, such as ``{"use_tf32": "0"}`` on CUDA.

    Attributes:
        programs: the graphs of each step by its name; of an only one, by the empty name.
    """

    def __init__(
        self,
        artifacts: TrainingArtifacts | str | os.PathLike[str],
        device: str = "cpu",
        threads: int | None = None,
        optimizer_backend: str = "auto",
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        backend.require(device)
        if threads is not None and threads < 1:
            raise SpecError(f"threads is {threads}; it is at least 1, or None for the cores there are")
        artifacts, loaded = _opened(artifacts)
        if artifacts.manifest["target"] != "onnx":
            raise ArtifactsError(
                f"these artifacts are of the target {artifacts.manifest['target']}, which onnxruntime.training.api "
                "trains (gradcut.runtime.ort_training shows how); compile for the target onnx to train them here"
            )
        self.artifacts, self.device = artifacts, device
        self._seed = int(artifacts.start.get("seed", artifacts.manifest["seed"]))
        self._slots = {name: Slot(np.asarray(loaded.pop(name)), device) for name in tuple(loaded)}
        self._memory = Memory(self._slots, device, threads, provider_options)
        self.programs = {
            name: Program(one, self._memory, optimizer_backend)
            for name, one in (artifacts.steps or {ONLY: artifacts}).items()
        }
        self._phases = list(artifacts.manifest.get("phases") or ())
        self._phase = self._phases[0] if self._phases else ONLY
        self._count(artifacts.start)
        if not artifacts.steps:
            _ = self.program().training  # what a runtime does not take is said now
        first = next(iter(self.programs.values()))
        self.plan, self.optimizer_backend = first.updater.plan, first.updater.backend

    @property
    def phase(self) -> str:
        """Of phases, the name of the one that is stepped where none is named; set it to go on to the next."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        if name not in self._phases:
            raise SpecError(f"there is no phase {name!r}; there are {join_names(self._phases) or 'none'}")
        self._require_ahead(name)
        for one in self._phases[: self._phases.index(name)]:
            self.programs[one].release()
        self._phase = name

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the artifacts; of phases, that of the current one."""
        return self.program().manifest if self.phase else self.artifacts.manifest

    @property
    def optimizer(self) -> Optimizer:
        """The base optimizer; of several steps the first one's, of phases the current one's."""
        return self.program().updater.plan.base if self.phase in self.programs else self.plan.base

    # --- running ---------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Updates done, those of all named steps together."""
        return sum(one.steps for one in self.programs.values())

    @overload
    def step(self, feeds: Feeds, lr: float | None = None) -> StepResult: ...
    @overload
    def step(self, name: str, feeds: Feeds, lr: float | None = None) -> StepResult: ...
    def step(self, *args: Any, **named: Any) -> StepResult:
        """One forward, backward and update: ``step(feeds)``, or of several steps ``step("generator", feeds)``.

        Several micro-batches give the update of the one large batch that they are parts of, in the memory of one: their
        gradients are averaged by what each loss was averaged over (labels that are not ignored, else rows), or added
        where there is no loss and the cotangents are fed. The result's loss is the large batch's, its outputs lie end
        to end. What looks at a whole batch sees a micro-batch: BatchNormalization in training mode normalises each by
        itself, and running statistics move with each. Each has random draws of its own, from (seed, step, its number).

        Args:
            name: of the step, where there are several.
            feeds: arrays by the graph's input names; or a list of such, one a micro-batch.
            lr: the optimizer's own by default; groups with another rate keep their proportion to it.

        Raises:
            FeedError: before anything moves. SpecError: a learning rate below 0 or not finite, or no such step.
            NotFiniteError: the loss, of one micro-batch even, or the norm of the gradients where they are clipped by it
                is NaN or infinite; nothing was updated.
        """
        program, feeds, (lr,) = self._said("step", args, named, lr=None)
        return program.step(feeds, lr)

    @overload
    def evaluate(self, feeds: Mapping[str, Any], ema: bool = False) -> StepResult: ...
    @overload
    def evaluate(self, name: str, feeds: Mapping[str, Any], ema: bool = False) -> StepResult: ...
    def evaluate(self, *args: Any, **named: Any) -> StepResult:
        """Loss and outputs in inference mode; the state is untouched.

        Args:
            name, feeds: as of `step`.
            ema: with the running averages of the parameters in their place; running statistics are as they are.

        Raises:
            SpecError: averages are asked for, and the artifacts were compiled without `ema`.
        """
        program, feeds, (ema,) = self._said("evaluate", args, named, ema=False)
        return program.evaluate(feeds, ema)

    @overload
    def gradients(self, feeds: Mapping[str, Any]) -> dict[str, Array]: ...
    @overload
    def gradients(self, name: str, feeds: Mapping[str, Any]) -> dict[str, Array]: ...
    def gradients(self, *args: Any, **named: Any) -> dict[str, Array]:
        """The gradient of each trainable, not clipped, by the parameter's own name; the state is untouched.

        Args:
            name, feeds: as of `step`.
        """
        program, feeds, _ = self._said("gradients", args, named)
        return program.gradients(feeds)

    def _said(
        self, what: str, args: Sequence[Any], named: Mapping[str, Any], **defaults: Any
    ) -> tuple[Program, Any, list[Any]]:
        """The step that is meant, its feeds, and the options behind them."""
        with_name = "name" in named or (args and isinstance(args[0], str))
        wanted = [*(["name"] if with_name else []), "feeds", *defaults]
        said = {**defaults, **dict(zip(wanted, args, strict=False)), **named}
        if len(args) > len(wanted) or "feeds" not in said or {*said} - {*wanted}:
            raise FeedError(f"session.{what} takes {', '.join(wanted)}; feeds are arrays by the names of the inputs")
        return self.program(said.get("name")), said["feeds"], [said[name] for name in defaults]

    def program(self, name: str | None = None) -> Program:
        """One of the steps; None: the only one, or of phases the current one.

        Raises:
            SpecError: there is no such one, or a phase that a later one has left behind.
        """
        name = self.phase if name is None else name
        if name in self.programs:
            self._require_ahead(name)
            return self.programs[name]
        if ONLY in self.programs:
            raise SpecError(f"these artifacts have one step, without a name, and no {name!r}: give the feeds alone")
        missing = f"there is no step {name!r}" if name else "the name of a step comes before the feeds"
        hint = nearest(name, self.programs, 1)
        raise SpecError(f"{missing}; there are {join_names(self.programs)}" + (f". Nearest: {hint[0]}" if hint else ""))

    def _require_ahead(self, name: str) -> None:
        """A phase holds what only later ones train as it was before them."""
        behind = self._phases[self._phases.index(name) + 1 :] if name in self._phases else ()
        later = next((one for one in behind if self.programs[one].steps), None)
        if later is not None:
            raise SpecError(f"{name} lies behind: {later} has trained already, and phases only go forward")

    # --- state -----------------------------------------------------------------------------------------------

    def parameters(self, ema: bool = False) -> dict[str, Array]:
        """Every parameter, trained and frozen, by its name in the given file, as copies.

        Args:
            ema: those that train as their running averages.

        Raises:
            SpecError: averages are asked for, and the artifacts were compiled without `ema`.
        """
        graph = self.artifacts.model.graph
        values = {**body_tensors(graph), **main_values(graph)}
        moved = averages(self.artifacts, {name: slot.peek() for name, slot in self._slots.items()}) if ema else {}
        found = {}
        for one in self.artifacts.manifest["parameters"]:
            name = one["name"]
            if name in self._slots:
                found[name] = moved[name] if name in moved else self._slots[name].numpy()
            else:
                tensor = constant_tensor(values[name])
                assert tensor is not None
                found[name] = np.array(tensor.numpy(), copy=True)
        return found

    def state(self) -> dict[str, Array]:
        """What moves and does not train, running statistics and declared state, by its name in the file, as copies."""
        said = self.artifacts.manifest
        return {name: self._slots[name].numpy() for name in (*said["state"], *said["declared"])}

    def save_checkpoint(self, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
        """Write parameters, optimizer state, statistics, step and seed, atomically.

        Args:
            extra: JSON of the caller's, such as the position in the data.

        Raises:
            NotFiniteError: what was trained holds NaN or infinity. CheckpointError: the file cannot be written.
        """
        tensors = {name: slot.peek() for name, slot in self._slots.items()}
        require_finite_state(tensors.items(), self.steps, path)
        record = {"step": self.steps, "seed": self._seed, "extra": dict(extra or {})}
        if ONLY in self.programs:
            record |= {"optimizer": self.optimizer.spec()}
        else:
            done = {name: one.steps for name, one in self.programs.items()}
            record |= {"steps": done, "clocks": dict(self._memory.clocks)}
        checkpoint.save(path, tensors, record)

    def load_checkpoint(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Go on from a checkpoint; gives back what `save_checkpoint` was handed as `extra`.

        Raises:
            CheckpointError: damaged, or of another model. The session is then as it was.
        """
        tensors, record = checkpoint.load(path)
        _check_fits(tensors, self._slots, path)
        for name, array in tensors.items():
            self._slots[name].assign(array)
        self._seed = int(record.get("seed", self._seed))
        self._count(record)
        return dict(record.get("extra", {}))

    def _count(self, record: Mapping[str, Any]) -> None:
        """Updates done by each step, and what each draws from: no two steps draw alike."""
        done = record.get("steps", {ONLY: record.get("step", 0)})
        for number, (name, program) in enumerate(self.programs.items()):
            program.steps = int(done.get(name, 0))
            program.seed = accumulation.seed_of(self._seed, -number)
        self._memory.clocks.clear()
        self._memory.clocks.update({clock: int(count) for clock, count in record.get("clocks", {}).items()})
        begun = [name for name in self._phases if self.programs[name].steps]
        self._phase = begun[-1] if begun else self._phase

    def export(self, path: str | os.PathLike[str], keep_marks: bool = False, ema: bool = False) -> None:
        """Write the given model with the trained parameters, or their running averages, and running statistics in it.

        Raises:
            SpecError: averages are asked for, and the artifacts were compiled without `ema`.
            NotFiniteError: one of them holds NaN or infinity. ArtifactsError: `path` cannot be written, or is a file
            of artifacts.
        """
        moved = written_back(self.artifacts)
        tensors = {name: slot.peek() for name, slot in self._slots.items()}
        require_finite_state(tensors.items(), self.steps, path)
        tensors |= averages(self.artifacts, tensors) if ema else {}
        export(self.artifacts.model, {name: np.array(tensors[name]) for name in moved}, path, keep_marks)

    def require_loss(self) -> None:
        """Raise where the artifacts were compiled without an objective."""
        if any(one.manifest["loss"] is None for one in self.programs.values()):
            raise LossError(NO_LOSS)


def _opened(
    given: TrainingArtifacts | str | os.PathLike[str],
) -> tuple[TrainingArtifacts, dict[str, Array]]:
    """Artifacts, and their tensors: of a directory nobody else has them, and one copy, the session's, is enough."""
    if isinstance(given, TrainingArtifacts):
        return given, dict(given.tensors)
    if not isinstance(given, (str, os.PathLike)):
        raise SpecError(f"a session trains TrainingArtifacts or their directory, not {given!r}")
    artifacts = TrainingArtifacts.load(given)
    steps = {name: replace(one, tensors={}) for name, one in artifacts.steps.items()}
    return replace(artifacts, tensors={}, steps=steps), dict(artifacts.tensors)


def _check_fits(tensors: Mapping[str, Array], slots: Mapping[str, Slot], path: str | os.PathLike[str]) -> None:
    for name in sorted({*tensors} ^ {*slots}):
        side = "lacks" if name in slots else "holds, and this model does not,"
        raise CheckpointError(f"{path} {side} {name!r}; it is of another model or another choice of what trains")
    for name, array in tensors.items():
        have = slots[name].array
        if array.shape != have.shape or array.dtype != have.dtype:
            raise CheckpointError(
                f"{path}: {name!r} is {array.dtype}{list(array.shape)}, "
                f"and the model's is {have.dtype}{list(have.shape)}"
            )
