"""A training session: the emitted graphs on a device, and the state that moves.

A step runs the training graph, which reads parameters and writes gradients, and then the optimizer, as a compiled host
kernel in place over the same memory (CPU) or as the emitted graph. No buffer is ever both read and written by one run:
state that a run writes goes into a spare, and the two are swapped afterwards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradcut import checkpoint
from gradcut.artifacts import TrainingArtifacts
from gradcut.errors import ArtifactsError, CheckpointError, FeedError, LossError, SpecError
from gradcut.optimizers import check_rate
from gradcut.parameters import constant_tensor
from gradcut.passes.propagate import main_values
from gradcut.report import NO_LOSS
from gradcut.runtime import accumulation, backend
from gradcut.runtime.backend import Runner, Slot, scalar, to_device
from gradcut.runtime.ema import averages
from gradcut.runtime.ema import slots as ema_slots
from gradcut.runtime.export import export
from gradcut.runtime.feeds import FeedCheck
from gradcut.runtime.finite import require_finite_loss, require_finite_state
from gradcut.runtime.updater import Updater
from gradcut.subgraphs import body_tensors

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StepResult:
    """What a step or an evaluation gives.

    Attributes:
        loss: the objective; nan where the artifacts have none.
        outputs: the model's outputs by name.
        step: updates done after the call.
        gradient_norm: where a step clips by it, the norm of all gradients together before it did; else None.
    """

    loss: float
    outputs: dict[str, Array] = field(repr=False)
    step: int
    gradient_norm: float | None = None


class TrainingSession:
    """Trains compiled artifacts.

    Args:
        artifacts: from `gradcut.compile`, or the directory of saved ones; training goes on from their checkpoint.
            What it holds of a directory, as `artifacts`, is without tensors: they live in the session alone.
        device: ``cpu`` or ``cuda``.
        threads: of the runtime and of the host optimizer; None: the cores this process may use.
        optimizer_backend: ``host``: a numba kernel in place (CPU, float32 and float64); ``graph``: the emitted graph;
            ``auto``: host where it can be.
        provider_options: handed to the runtime, such as ``{"use_tf32": "0"}`` on CUDA.
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
        if not isinstance(artifacts, TrainingArtifacts):
            if not isinstance(artifacts, (str, os.PathLike)):
                raise SpecError(f"a session trains TrainingArtifacts or their directory, not {artifacts!r}")
            artifacts = TrainingArtifacts.load(artifacts)
            loaded = dict(artifacts.tensors)
            artifacts = replace(artifacts, tensors={})  # nobody else has them: one copy, the session's, is enough
        else:
            loaded = dict(artifacts.tensors)
        if artifacts.manifest["target"] != "onnx":
            raise ArtifactsError(
                f"these artifacts are of the target {artifacts.manifest['target']}, which onnxruntime.training.api "
                "trains (gradcut.runtime.ort_training shows how); compile for the target onnx to train them here"
            )
        self.artifacts, self.device = artifacts, device
        self.manifest = artifacts.manifest
        self._threads, self._options = threads, provider_options
        self.steps = int(artifacts.start.get("step", 0))
        self._seed = int(artifacts.start.get("seed", self.manifest["seed"]))
        self._slots = {name: Slot(np.asarray(loaded.pop(name)), device) for name in tuple(loaded)}
        self._training = self._runner("training_model")
        self._evaluation: Runner | None = None
        self._checks: dict[str, FeedCheck] = {}
        self._gradients = {
            one["gradient"]: Slot(np.zeros_like(self._slots[one["name"]].array), device)
            for one in self.manifest["trainable"]
        }
        self._updater = Updater(
            self.manifest, self._slots, self._gradients, optimizer_backend, device, threads, self._runner
        )
        self.plan, self.optimizer_backend = self._updater.plan, self._updater.backend
        self.optimizer = self.plan.base

    # --- running ---------------------------------------------------------------------------------------------

    def step(self, feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]], lr: float | None = None) -> StepResult:
        """One forward, backward and update.

        Several micro-batches give the update of the one large batch that they are parts of, in the memory of one: their
        gradients are averaged by what each loss was averaged over (labels that are not ignored, else rows), or added
        where there is no loss and the cotangents are fed. The result's loss is the large batch's, its outputs lie end
        to end. What looks at a whole batch sees a micro-batch: BatchNormalization in training mode normalises each by
        itself, and running statistics move with each. Each has random draws of its own, from (seed, step, its number).

        Args:
            feeds: arrays by the graph's input names; or a list of such, one a micro-batch.
            lr: the optimizer's own by default; groups with another rate keep their proportion to it.

        Raises:
            FeedError: before anything moves. SpecError: a learning rate below 0 or not finite.
            NotFiniteError: the loss, of one micro-batch even, or the norm of the gradients where they are clipped by it
                is NaN or infinite; nothing was updated.
        """
        rate = self.optimizer.lr if lr is None else check_rate(lr)
        batches: list[Any] = list(feeds) if isinstance(feeds, (list, tuple)) else [feeds]
        if not batches:
            raise FeedError("there is no micro-batch in the list to step on")
        before = {name: self._slots[name].numpy() for name in self.manifest["state"]} if len(batches) > 1 else {}
        try:
            result = self._run_batches(batches, rate)
            norm = self._updater.step(rate, self.steps)
        except BaseException:
            for name, array in before.items():
                self._slots[name].assign(array)
            raise
        for name in self.manifest["state"]:
            self._slots[name].swap()
        self.steps += 1
        return StepResult(result.loss, result.outputs, self.steps, norm)

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

    def evaluate(self, feeds: Mapping[str, Any], ema: bool = False) -> StepResult:
        """Loss and outputs in inference mode; the state is untouched.

        Args:
            ema: with the running averages of the parameters in their place; running statistics are as they are.

        Raises:
            SpecError: averages are asked for, and the artifacts were compiled without `ema`.
        """
        if self._evaluation is None:
            self._evaluation = self._runner("eval_model")
        inputs = self._inputs(self._checked("eval_model", feeds))
        if ema:
            inputs |= {name: self._average(name, slot) for name, slot in ema_slots(self.manifest).items()}
        return self._result("eval_model", self._evaluation.run(inputs, {}))

    def gradients(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """The gradient of each trainable, not clipped, by the parameter's own name; the state is untouched."""
        self._run_training(self._checked("training_model", feeds))
        return {one["name"]: self._gradients[one["gradient"]].numpy() for one in self.manifest["trainable"]}

    def _average(self, name: str, slot: str) -> Any:
        """A running average on the device, in its parameter's dtype."""
        dtype, average = self._slots[name].array.dtype, self._slots[slot]
        if average.array.dtype == dtype:
            return average.current
        return to_device(average.numpy().astype(dtype), self.device)

    def _run_training(self, feeds: Mapping[str, Array], part: int = 0) -> StepResult:
        """Gradients into their buffers and the next statistics into the spares; `part`: which micro-batch it is."""
        outputs = {name: slot.current for name, slot in self._gradients.items()}
        outputs |= {after: self._slots[name].spare for name, after in self.manifest["state"].items()}
        results = self._training.run(self._inputs(feeds, part), outputs)
        return self._result("training_model", results)

    def _checked(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Array]:
        if graph not in self._checks:
            ports = self.manifest["graphs"][graph]["inputs"]
            given = [port for port in ports if port["role"] in ("user", "label", "cotangent")]
            self._checks[graph] = FeedCheck(given, self.manifest["loss"])
        return self._checks[graph](feeds)

    def _inputs(self, feeds: Mapping[str, Array], part: int = 0) -> dict[str, Any]:
        values = {name: to_device(array, self.device) for name, array in feeds.items()}
        values |= {name: slot.current for name, slot in self._slots.items()}
        names = self.manifest["names"]
        values[names["step"]] = scalar(self.steps, np.int64)
        if names["seed"] is not None:
            values[names["seed"]] = scalar(accumulation.seed_of(self._seed, part), np.int64)
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
        folder = self.artifacts.folder
        source = self.artifacts.models[graph] if folder is None else Path(folder) / f"{graph}.onnx"
        return Runner(source, self.device, self._threads, self._options)

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
        moved = averages(self.manifest, {name: slot.peek() for name, slot in self._slots.items()}) if ema else {}
        found = {}
        for one in self.manifest["parameters"]:
            name = one["name"]
            if name in self._slots:
                found[name] = moved[name] if name in moved else self._slots[name].numpy()
            else:
                tensor = constant_tensor(values[name])
                assert tensor is not None
                found[name] = np.array(tensor.numpy(), copy=True)
        return found

    def save_checkpoint(self, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
        """Write parameters, optimizer state, statistics, step and seed, atomically.

        Args:
            extra: JSON of the caller's, such as the position in the data.

        Raises:
            NotFiniteError: what was trained holds NaN or infinity. CheckpointError: the file cannot be written.
        """
        tensors = {name: slot.peek() for name, slot in self._slots.items()}
        require_finite_state(tensors.items(), self.steps, path)
        record = {
            "step": self.steps,
            "seed": self._seed,
            "optimizer": self.optimizer.spec(),
            "extra": dict(extra or {}),
        }
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
        self.steps, self._seed = int(record["step"]), int(record.get("seed", self._seed))
        return dict(record.get("extra", {}))

    def export(self, path: str | os.PathLike[str], keep_marks: bool = False, ema: bool = False) -> None:
        """Write the given model with the trained parameters, or their running averages, and running statistics in it.

        Raises:
            SpecError: averages are asked for, and the artifacts were compiled without `ema`.
            NotFiniteError: one of them holds NaN or infinity. ArtifactsError: `path` cannot be written, or is a file
            of artifacts.
        """
        moved = [*(one["name"] for one in self.manifest["trainable"]), *self.manifest["state"]]
        tensors = {name: slot.peek() for name, slot in self._slots.items()}
        require_finite_state(tensors.items(), self.steps, path)
        tensors |= averages(self.manifest, tensors) if ema else {}
        export(self.artifacts.model, {name: np.array(tensors[name]) for name in moved}, path, keep_marks)

    def require_loss(self) -> None:
        """Raise where the artifacts were compiled without an objective."""
        if self.manifest["loss"] is None:
            raise LossError(NO_LOSS)


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
