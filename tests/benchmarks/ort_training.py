"""ONNX Runtime Training's own generator and runtime as a side of the benchmark, in an environment of its own.

As a script, run by that environment's Python: ``ort_training.py MODEL.onnx DATA.npz THREADS [PATTERN ...]`` makes the
artifacts of its own generator, and then takes one step for each line that it reads, and writes its seconds.
"""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IR_VERSION, OPSET = 10, 21  # the last that its runtime loads


class Peer:
    """The other side of the pipe; `step` gives the seconds of one step, measured there."""

    def __init__(self, python: Path, model: Path, data: Path, threads: int, train: tuple[str, ...] | None) -> None:
        command = [str(python), str(Path(__file__)), str(model), str(data), str(threads), *(train or ())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def step(self) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer.startswith("seconds "):
            raise RuntimeError(f"ONNX Runtime Training did not start: {answer or 'it ended'}")
        return float(answer.split()[1])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def legacy_export(module: Any, inputs: dict[str, Any], path: Path) -> Path:
    """The file as its generator wants it: torch's legacy exporter in training mode, no dropout."""
    import torch

    for layer in module.train().modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    torch.onnx.export(
        module,
        tuple(torch.from_numpy(array) for array in inputs.values()),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.TRAINING,
        do_constant_folding=False,
        opset_version=17,
        input_names=list(inputs),
        output_names=["logits"],
        dynamic_axes={name: {0: "batch"} for name in inputs},
    )
    return path


def _generate(model: Any, patterns: list[str], folder: str) -> None:
    """Its artifacts, with what its generator and its runtime trip over put right.

    A LayerNormalization must have all its outputs, and its files must not be of onnx's newest versions.
    """
    import onnx
    from onnxruntime.training import artifacts

    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            node.output.extend(f"{node.output[0]}_{name}" for name in ("mean", "deviation")[len(node.output) - 1 :])
    floats = [one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT and one.dims]
    parameters = [name for name in floats if not name.endswith(("running_mean", "running_var"))]
    trained = [p for p in parameters if not patterns or any(fnmatch.fnmatch(p, one) for one in patterns)]
    artifacts.generate_artifacts(
        model,
        requires_grad=trained,
        frozen_params=[name for name in floats if name not in trained],
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.AdamW,
        artifact_directory=folder,
    )
    for name in ("training_model", "optimizer_model"):
        made = onnx.load(f"{folder}/{name}.onnx")
        made.ir_version = IR_VERSION
        for opset in made.opset_import:
            opset.version = min(opset.version, OPSET) if not opset.domain else opset.version
        onnx.save(made, f"{folder}/{name}.onnx")


def _stepper(path: str, data: str, threads: int, patterns: list[str]) -> Callable[[], object]:
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    folder = tempfile.mkdtemp()
    _generate(onnx.load(path), patterns, folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    module = Module(
        f"{folder}/training_model.onnx",
        CheckpointState.load_checkpoint(f"{folder}/checkpoint"),
        session_options=options,
    )
    optimizer = Optimizer(f"{folder}/optimizer_model.onnx", module)
    module.train()
    arrays = np.load(data)
    feeds = [arrays[name] for name in module.input_names()]

    def step() -> object:
        loss = module(*feeds)
        optimizer.step()
        module.lazy_reset_grad()
        return loss

    return step


def _serve(path: str, data: str, threads: str, *patterns: str) -> None:
    step = _stepper(path, data, int(threads), list(patterns))
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print("seconds", time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
