"""What `compile` gives: graphs, tensors and a manifest, in memory or in a directory.

DIR/model.onnx              the model as it was given, with its marks
DIR/training_model.onnx     loss, outputs, gradients and next state from inputs, trainables and state
DIR/optimizer_model.onnx    the next parameters and slots
DIR/state_model.onnx        the next of declared state, from the updated parameters; where state is declared
DIR/step_model.onnx         all of that in one; not for the target ort-training
DIR/eval_model.onnx         loss and outputs in inference mode
DIR/checkpoint.safetensors  parameters, optimizer state, running statistics, step, seed
DIR/weights.bin             large weights, once for all graphs
DIR/best.safetensors        the checkpoint of the best evaluation, by gradcut train
DIR/manifest.json           the roles of every input and output, what was cut and why, hashes

Of several steps over one set of parameters, each has a folder of its own, DIR/STEP/, with its four graphs; the model,
the checkpoint and the manifest are there once, at the top. Large weights that a step's graphs hold, as nothing moves
them, lie in its folder: runtimes read none from outside of a model's folder, nor by a link.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut import checkpoint
from gradcut.errors import ArtifactsError, CheckpointError
from gradcut.io import atomic_directory, locked, sha256
from gradcut.marked import mark_given

SCHEMA, VERSION = "gradcut.artifacts", 2
#: What the manifests of several steps have in common.
SHARED = ("schema", "version", "producer", "target", "opset", "runtime", "seed")
MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.bin"
GRAPHS = ("training_model", "optimizer_model", "state_model", "step_model", "eval_model")
METRICS = "metrics.jsonl"
BEST = "best.safetensors"
#: What compiling and training write; saving again replaces these, and leaves what else lies there.
OURS = frozenset({"model.onnx", *(f"{name}.onnx" for name in GRAPHS), WEIGHTS, CHECKPOINT, MANIFEST, METRICS, BEST})
#: A tensor of at least this many bytes that graphs share is written once, beside them.
SHARED_BYTES = 1 << 16
_ALIGNMENT = 4096


@dataclass(frozen=True, repr=False)
class TrainingArtifacts:
    """A compiled training program.

    Attributes:
        models: ``model``, the model as it was given, with its marks; ``training_model``, ``optimizer_model``,
            ``state_model``, ``step_model`` and ``eval_model``, the graphs; there is a state_model where state is
            declared, and no step_model for the target ort-training. Each is an attribute too. Those of a directory are
            read when they are first asked for.
        tensors: what the checkpoint holds, by the names that the graphs' inputs have.
        manifest: everything a host needs to know, as JSON; see the README.
        start: the checkpoint's record: ``step``, ``seed``, and ``extra``, such as the position in the data.
        folder: where the artifacts were loaded from, None for fresh ones.
        steps: of several named steps, the artifacts of each, over the same tensors; empty where there is one alone. The
            graphs are theirs then, `models` holds the model alone, and `manifest` what they have in common.
    """

    models: Mapping[str, ir.Model]
    tensors: Mapping[str, np.ndarray]
    manifest: dict[str, Any]
    start: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)
    steps: Mapping[str, TrainingArtifacts] = field(default_factory=dict)

    @property
    def model(self) -> ir.Model:
        return self.models["model"]

    @property
    def training_model(self) -> ir.Model:
        self.require_one("training_model")
        return self.models["training_model"]

    @property
    def optimizer_model(self) -> ir.Model:
        self.require_one("optimizer_model")
        return self.models["optimizer_model"]

    @property
    def state_model(self) -> ir.Model | None:
        return self.models.get("state_model")

    @property
    def eval_model(self) -> ir.Model:
        self.require_one("eval_model")
        return self.models["eval_model"]

    @property
    def step_model(self) -> ir.Model | None:
        return self.models.get("step_model")

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Write the directory whole or not at all; files there that are not ours stay.

        Raises:
            ArtifactsError: `path` holds something else than artifacts, or artifacts that were trained, and not
                `force`.
        """
        target = Path(path)
        check_target(target, force)
        with atomic_directory(target, OURS | {*self.steps} | _steps_in(target)) as staging:
            self._write(staging)
            for name, step in self.steps.items():
                (staging / name).mkdir()
                step._write(staging / name, GRAPHS)
            checkpoint.save(staging / CHECKPOINT, self.tensors, self.start)
            every = (file.relative_to(staging).as_posix() for file in staging.rglob("*") if file.is_file())
            files = sorted(name for name in every if name != CHECKPOINT)
            manifest = {**self.manifest, "files": {name: sha256(staging / name) for name in files}}
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _write(self, folder: Path, names: Sequence[str] = ("model", *GRAPHS)) -> None:
        """The graphs of these names, and the weights that they share beside them."""
        graphs = {name: self.models[name] for name in names if name in self.models}
        shared = _write_weights(graphs, folder)
        for name, graph in graphs.items():
            ir.save(_with_external(graph, shared, folder), folder / f"{name}.onnx")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainingArtifacts:
        """Artifacts from their directory, or from that of one of several steps; files are checked against hashes.

        Raises:
            ArtifactsError: no artifacts there, of another version, or a file changed since.
        """
        folder = Path(path)
        if not (folder / MANIFEST).exists() and folder.name in _steps_in(folder.parent):
            return cls.load(folder.parent).steps[folder.name]
        manifest = read_manifest(folder)
        for name, digest in manifest["files"].items():
            if not (folder / name).is_file():
                raise ArtifactsError(f"{folder}: {name} is missing; compile again")
            if sha256(folder / name) != digest:
                raise ArtifactsError(f"{folder}: {name} is not the file that was compiled; compile again")
        names = ["model", *(name for name in GRAPHS if f"{name}.onnx" in manifest["files"])]
        tensors, start = checkpoint.load(folder / CHECKPOINT)
        models = _Files(folder, names)
        steps = {
            name: cls(
                _StepFiles(folder / name, models, said), tensors, _manifest_of(manifest, name), start, folder / name
            )
            for name, said in manifest.get("steps", {}).items()
        }
        return cls(models, tensors, manifest, start, folder, steps)

    def graphs(self) -> dict[str, ir.Model]:
        """The graphs there are, by name."""
        return {name: self.models[name] for name in GRAPHS if name in self.models}

    def require_one(self, what: str) -> None:
        """Raise where there are several steps; `what` wants one."""
        if self.steps:
            several = ", ".join(str((self.folder or Path()) / name) for name in self.steps)
            raise ArtifactsError(f"these artifacts have several steps, and {what} takes one: {several}")

    def save_ort_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write ONNX Runtime Training's own checkpoint; see `gradcut.runtime.ort_training`."""
        # By name: the runtime is on a floor above, and not everyone has it.
        importlib.import_module("gradcut.runtime.ort_training").save_ort_checkpoint(self, path)

    def __repr__(self) -> str:
        place = "in memory" if self.folder is None else str(self.folder)
        graphs = ", ".join(self.steps or (name for name in GRAPHS if name in self.models))
        return f"<TrainingArtifacts: {len(self.trainable)} trainable tensors, {graphs}; {place}>"

    @property
    def trainable(self) -> tuple[str, ...]:
        """The parameters that get a gradient and are updated, by the names of the given file."""
        return tuple(one["name"] for one in self.manifest["trainable"])

    def tensors_of(self, graph: str) -> dict[str, np.ndarray]:
        """The checkpoint's tensors that one of the graphs takes as inputs."""
        inputs = {port["name"] for port in self.manifest["graphs"][graph]["inputs"]}
        return {name: np.asarray(array) for name, array in self.tensors.items() if name in inputs}


class _Files(Mapping[str, ir.Model]):
    """Models of a directory, read when they are first asked for: a session needs none of them in Python."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._read: dict[str, ir.Model | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> ir.Model:
        found = self._read[name]
        if found is None:
            found = self._read[name] = self._load(name)
        return found

    def _load(self, name: str) -> ir.Model:
        return ir.load(self._folder / f"{name}.onnx")

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, name: object) -> bool:
        return name in self._read


class _StepFiles(_Files):
    """Graphs of one of several steps; its model is the one at the top with the step's own marks and freezes."""

    def __init__(self, folder: Path, top: Mapping[str, ir.Model], said: Mapping[str, Any]) -> None:
        super().__init__(folder, ["model", *said["graphs"]])
        self._top, self._said = top, said

    def _load(self, name: str) -> ir.Model:
        if name != "model":
            return super()._load(name)
        trained = [one["name"] for one in self._said["trainable"]]
        return mark_given(self._top["model"].clone(), self._said["stop_at"], trained, self._said["frozen"])


def _manifest_of(whole: Mapping[str, Any], step: str) -> dict[str, Any]:
    """The manifest of one of several steps, as if it were alone."""
    return {**{key: whole[key] for key in SHARED}, **whole["steps"][step]}


def _steps_in(folder: Path) -> frozenset[str]:
    """The folders of steps in a directory of artifacts."""
    try:
        return frozenset(read_manifest(folder).get("steps", {}))
    except ArtifactsError:
        return frozenset()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a directory of artifacts."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactsError(f"{folder} holds no artifacts ({MANIFEST} is missing); make them with gradcut compile")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactsError(f"{path} is damaged ({error}); compile again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ArtifactsError(f"{path} is no manifest of gradcut's")
    if manifest.get("version") != VERSION:
        raise ArtifactsError(
            f"{folder} was made by another version (manifest version {manifest.get('version')}, this one reads "
            f"{VERSION}); compile again"
        )
    if not isinstance(manifest.get("files"), dict):
        raise ArtifactsError(f"{path} is damaged (it lists no files); compile again")
    return manifest


def check_target(target: Path, force: bool) -> None:
    """Raise where artifacts may not be written to `target`: it is something else, or was trained and not `force`."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / MANIFEST).is_file():
        raise ArtifactsError(f"{target} is there already and holds no artifacts; choose another place")
    if not force and _was_trained(target):
        raise ArtifactsError(f"{target} was trained; it is overwritten only with --force (in Python, force=True)")
    with exclusive(target):
        pass  # to know that nobody trains there


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Have a directory of artifacts to oneself: nobody else trains in it or compiles over it.

    What a kill left half written is removed. The lock is the manifest's and ends with the process, however that ends.

    Raises:
        ArtifactsError: another process has it.
    """
    with contextlib.ExitStack() as stack:
        if (folder / MANIFEST).is_file():
            try:
                stack.enter_context(locked(folder / MANIFEST))
            except BlockingIOError as error:
                raise ArtifactsError(
                    f"{folder} is being trained by another process; wait for its end, or stop it"
                ) from error
            for name in (CHECKPOINT, BEST, METRICS):
                for left in folder.glob(f".{name}.*.tmp"):
                    left.unlink(missing_ok=True)
        yield


def check_output(path: str | os.PathLike[str]) -> None:
    """Raise where `path` cannot be written, or where writing it would overwrite a file of artifacts."""
    target = Path(path).resolve()
    if target.is_dir():
        raise ArtifactsError(f"{path} is a directory; name the file to write")
    if not target.parent.is_dir():
        raise ArtifactsError(f"{path} cannot be written: there is no directory {Path(path).parent}")
    if target.name in OURS and (target.parent / MANIFEST).is_file():
        raise ArtifactsError(f"{path} is a file of the artifacts in {target.parent}; write to another place")


def _was_trained(folder: Path) -> bool:
    """Whether anything there was won by training; a checkpoint that cannot be read may be, and is not thrown away."""
    if (folder / METRICS).exists():
        return True
    if not (folder / CHECKPOINT).exists():
        return False
    try:
        _, record = checkpoint.load(folder / CHECKPOINT)
    except CheckpointError:
        return True
    return int(record.get("step", 0)) > 0


# --- weights, once -------------------------------------------------------------------------------------------


def _large(graph: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The initializers that go into the weights' file: large ones, and all that lie in another file."""
    found = {}
    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.nbytes >= SHARED_BYTES or isinstance(tensor, ir.ExternalTensor):
            found[name] = tensor
    return found


def _write_weights(graphs: Mapping[str, ir.Model], folder: Path) -> dict[int, tuple[int, int]]:
    """Write each large tensor once; offset and length by the tensor's identity (graphs share the objects)."""
    places: dict[int, tuple[int, int]] = {}
    tensors = {id(t): t for graph in graphs.values() for t in _large(graph).values()}
    if not tensors:
        return places
    with open(folder / WEIGHTS, "wb") as file:
        for key, tensor in tensors.items():
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            places[key] = (file.tell(), tensor.nbytes)
            tensor.tofile(file) if hasattr(tensor, "tofile") else file.write(tensor.tobytes())
    return places


def _with_external(model: ir.Model, places: Mapping[int, tuple[int, int]], folder: Path) -> ir.Model:
    if not places:
        return model
    copy = model.clone()
    for name, tensor in _large(model).items():
        offset, length = places[id(tensor)]
        copy.graph.initializers[name].const_value = ir.ExternalTensor(
            WEIGHTS, offset, length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=folder
        )
    return copy
