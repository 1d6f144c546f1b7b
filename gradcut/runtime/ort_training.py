"""ONNX Runtime Training's own checkpoint, from artifacts of the target ``ort-training``.

    art = gradcut.compile("model.onnx", loss="cross_entropy", target="ort-training")
    art.save("build/")
    art.save_ort_checkpoint("build/checkpoint")

    state = CheckpointState.load_checkpoint("build/checkpoint")
    module = Module("build/training_model.onnx", state, "build/eval_model.onnx")
    optimizer = Optimizer("build/optimizer_model.onnx", module)
    optimizer.set_learning_rate(art.manifest["optimizer"]["lr"])
    for x, labels in batches:
        module.train()
        loss, logits = module(x, labels)  # in the order of the graph's inputs and outputs
        optimizer.step()
        module.lazy_reset_grad()

Running statistics are parameters there that require no gradient; every training run moves them in place, and nobody
has to write them back.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx.numpy_helper

from gradcut.artifacts import TrainingArtifacts
from gradcut.errors import ArtifactsError, MissingExtraError
from gradcut.io import sync

TARGET = "ort-training"


def save_ort_checkpoint(artifacts: TrainingArtifacts, path: str | os.PathLike[str]) -> None:
    """Write the parameters and running statistics of artifacts as `CheckpointState.load_checkpoint` reads them.

    Raises:
        ArtifactsError: compiled for another target.
        MissingExtraError: onnxruntime-training is not installed.
    """
    if artifacts.manifest["target"] != TARGET:
        raise ArtifactsError(
            f"these artifacts are of the target {artifacts.manifest['target']}; compile with target={TARGET!r}"
        )
    try:
        from onnxruntime.training.onnxblock import save_checkpoint
    except ImportError as error:
        raise MissingExtraError("ONNX Runtime Training's checkpoint", TARGET) from error
    moved = [_tensors(artifacts, names) for names in (artifacts.trainable, artifacts.manifest["state"])]
    target = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as folder:
        save_checkpoint((moved[0], moved[1]), os.fspath(Path(folder, target.name)), False)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # large weights, in a file beside it, come first
            sync(file)
            file.replace(target.with_name(file.name))


def _tensors(artifacts: TrainingArtifacts, names: tuple[str, ...] | dict[str, str]) -> list[onnx.TensorProto]:
    return [onnx.numpy_helper.from_array(np.asarray(artifacts.tensors[name]), name) for name in names]
