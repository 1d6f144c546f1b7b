"""A training session: the emitted graphs on a device, and the state that moves.

A step runs the training graph, which reads parameters and writes gradients, and then the optimizer, as a compiled host
kernel in place over the same memory (CPU) or as the emitted graph. No buffer is ever both read and written by one run:
state that a run writes goes into a spare, and the two are swapped afterwards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradcut import checkpoint
from gradcut.artifacts import TrainingArtifacts
from gradcut.errors import ArtifactsError, CheckpointError, LossError, MissingExtraError, NotFiniteError, SpecError
from gradcut.optimizers import check_rate, parse_optimizer
from gradcut.parameters import constant_tensor
from gradcut.passes.propagate import main_values
from gradcut.report import NO_LOSS
from gradcut.runtime import backend
from gradcut.runtime.backend import Runner, Slot, to_device
from gradcut.runtime.export import export
from gradcut.runtime.feeds import FeedCheck

Array = np.ndarray[Any, Any]
BACKENDS = ("auto", "graph", "host")
_HOST_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class StepResult:
    """What a step or an evaluation gives.

    Attributes:
        loss: the objective; nan where the artifacts have none.
        outputs: the model's outputs by name.
        step: updates done after the call.
    """

    loss: float
    outputs: dict[str, Array] = field(repr=False)
    step: int


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
        self.optimizer = parse_optimizer(self.manifest["optimizer"]["spec"])
        self.optimizer_backend = self._choose(optimizer_backend)
        self._updater = self._host() if self.optimizer_backend == "host" else None
        self._update_graph = self._runner("optimizer_model") if self._updater is None else None

    # --- running ---------------------------------------------------------------------------------------------

    def step(self, feeds: Mapping[str, Any], lr: float | None = None) -> StepResult:
        """One forward, backward and update.

        Args:
            feeds: arrays by the graph's input names. lr: the optimizer's own by default.

        Raises:
            FeedError: before anything runs. SpecError: a learning rate below 0 or not finite.
            NotFiniteError: the loss is NaN or infinite; nothing was updated.
        """
        rate = self.optimizer.lr if lr is None else check_rate(lr)
        result = self._run_training(feeds)
        if self.manifest["loss"] is not None and not math.isfinite(result.loss):
            raise NotFiniteError(
                f"the loss is {result.loss} at step {self.steps + 1} (learning rate {rate:g}); the step was not "
                f"taken. {self._advice(feeds)}"
            )
        for name in self.manifest["state"]:
            self._slots[name].swap()
        self._update(rate)
        self.steps += 1
        return StepResult(result.loss, result.outputs, self.steps)

    def evaluate(self, feeds: Mapping[str, Any]) -> StepResult:
        """Loss and outputs in inference mode; the state is untouched."""
        if self._evaluation is None:
            self._evaluation = self._runner("eval_model")
        inputs = self._inputs("eval_model", feeds)
        return self._result("eval_model", self._evaluation.run(inputs, {}))

    def gradients(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """The gradient of each trainable by the parameter's own name; the state is untouched."""
        self._run_training(feeds)
        return {one["name"]: self._gradients[one["gradient"]].numpy() for one in self.manifest["trainable"]}

    def _advice(self, feeds: Mapping[str, Any]) -> str:
        """What makes a loss that is not finite go away."""
        loss = self.manifest["loss"]
        empty = [name for name, feed in feeds.items() if np.size(feed) == 0]
        if empty:
            return f"The mean over no elements has no value: the feed {empty[0]!r} is empty."
        ignored = loss.get("ignore_index")
        if loss.get("labels") in feeds and ignored is not None and np.all(np.asarray(feeds[loss["labels"]]) == ignored):
            return f"The mean over no labels has no value: every label is {ignored}, the ignore_index."
        return "Try a smaller learning rate, or look at the batch."

    def _run_training(self, feeds: Mapping[str, Any]) -> StepResult:
        outputs = {name: slot.current for name, slot in self._gradients.items()}
        outputs |= {after: self._slots[name].spare for name, after in self.manifest["state"].items()}
        results = self._training.run(self._inputs("training_model", feeds), outputs)
        return self._result("training_model", results)

    def _inputs(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        if graph not in self._checks:
            ports = self.manifest["graphs"][graph]["inputs"]
            given = [port for port in ports if port["role"] in ("user", "label", "cotangent")]
            self._checks[graph] = FeedCheck(given, self.manifest["loss"])
        values = {name: to_device(array, self.device) for name, array in self._checks[graph](feeds).items()}
        values |= {name: slot.current for name, slot in self._slots.items()}
        names = self.manifest["names"]
        values[names["step"]] = _scalar(self.steps, np.int64)
        if names["seed"] is not None:
            values[names["seed"]] = _scalar(self._seed, np.int64)
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
        path = None if folder is None else Path(folder) / f"{graph}.onnx"
        return Runner(getattr(self.artifacts, graph), path, self.device, self._threads, self._options)

    # --- the optimizer ---------------------------------------------------------------------------------------

    def _choose(self, wanted: str) -> str:
        if wanted not in BACKENDS:
            raise SpecError(f"optimizer_backend is one of {', '.join(BACKENDS)}, not {wanted!r}")
        fits = self.device == "cpu" and all(slot.array.dtype in _HOST_DTYPES for slot in self._trained_slots())
        if wanted == "host" and not fits:
            raise SpecError("optimizer_backend='host' takes float32 and float64 parameters on the CPU; use 'graph'")
        if wanted == "graph" or not fits:
            return "graph"
        try:
            import gradcut.runtime.host_optimizer  # noqa: F401
        except MissingExtraError:
            if wanted == "host":
                raise
            return "graph"
        return "host"

    def _trained_slots(self) -> list[Slot]:
        return [self._slots[one["name"]] for one in self.manifest["trainable"]]

    def _host(self) -> Any:
        from gradcut.runtime.host_optimizer import HostOptimizer

        trained = self.manifest["trainable"]
        parameters = {one["name"]: self._slots[one["name"]].array for one in trained}
        slots = {one["name"]: {s: self._slots[n].array for s, n in one["slots"].items()} for one in trained}
        return HostOptimizer(self.optimizer, parameters, slots, threads=self._threads or backend.cores())

    def _update(self, lr: float) -> None:
        trained = self.manifest["trainable"]
        if self._updater is not None:
            arrays = {one["name"]: self._gradients[one["gradient"]].array for one in trained}
            self._updater.step(arrays, lr, self.steps)
            return
        assert self._update_graph is not None
        names = self.manifest["names"]
        moving = [name for one in trained for name in one["next"]]
        inputs = {name: self._slots[name].current for name in moving}
        inputs |= {name: slot.current for name, slot in self._gradients.items()}
        inputs |= {names["learning_rate"]: _scalar(lr, np.float32), names["step"]: _scalar(self.steps, np.int64)}
        outputs = {after: self._slots[name].spare for one in trained for name, after in one["next"].items()}
        self._update_graph.run(inputs, outputs)
        for name in moving:
            self._slots[name].swap()

    # --- state -----------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Array]:
        """Every parameter, trained and frozen, by its name in the given file, as copies."""
        values = main_values(self.artifacts.model.graph)
        found = {}
        for one in self.manifest["parameters"]:
            name = one["name"]
            if name in self._slots:
                found[name] = self._slots[name].numpy()
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
        self._require_finite(path)
        tensors = {name: slot.array if self.device == "cpu" else slot.numpy() for name, slot in self._slots.items()}
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

    def export(self, path: str | os.PathLike[str], keep_marks: bool = False) -> None:
        """Write the given model with the trained parameters and running statistics in it.

        Raises:
            NotFiniteError: one of them holds NaN or infinity. ArtifactsError: `path` cannot be written, or is a file
            of artifacts.
        """
        self._require_finite(path)
        trained = {one["name"] for one in self.manifest["trainable"]} | set(self.manifest["state"])
        export(self.artifacts.model, {name: self._slots[name].numpy() for name in trained}, path, keep_marks)

    def _require_finite(self, path: str | os.PathLike[str]) -> None:
        """A gradient may be NaN where the loss is not; the weights that it made are worth nothing."""
        for name, slot in self._slots.items():
            if not np.all(np.isfinite(slot.array if self.device == "cpu" else slot.numpy())):
                raise NotFiniteError(
                    f"{name!r} is not finite after step {self.steps}, though the loss was; {path} was not written. "
                    "Try a smaller learning rate, or look at session.gradients(batch)."
                )

    def require_loss(self) -> None:
        """Raise where the artifacts were compiled without an objective."""
        if self.manifest["loss"] is None:
            raise LossError(NO_LOSS)


def _scalar(value: float, dtype: Any) -> Any:
    return to_device(np.asarray(value, dtype=dtype), "cpu")


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
