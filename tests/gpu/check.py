"""The onnx target on CUDA against the CPU: gradients, five steps, where parameters live, what fell back to the CPU."""

from __future__ import annotations

import collections
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

import gradcut

MODELS = Path(__file__).parents[2] / "models"
CASES = {
    "digits": {"full": None, "head": ["head.*"]},
    "mlp": {"full": None, "head": ["head.*"]},
    "bert_tiny": {"full": None, "head": ["classifier.*"]},
}
TOLERANCE = 1e-3
EXACT = {"use_tf32": "0"}
BATCH, STEPS = 8, 5


def main() -> int:
    """Run every case; the number of failures is the exit code."""
    failures = 0
    for name, masks in CASES.items():
        path = _model(name)
        for mask, train in masks.items():
            problems = check(path, train)
            failures += bool(problems)
            print(f"{name:10} {mask:5} {'ok' if not problems else '; '.join(problems)}", flush=True)
    return failures


def check(path: Path, train: list[str] | None) -> list[str]:
    """What differs between the two devices for one model and mask."""
    artifacts = gradcut.compile(
        path, loss="cross_entropy", train=train, optimizer=gradcut.SGD(lr=1e-2), clip_norm=10.0, ema=0.9
    )
    feeds = _feeds(artifacts)
    cpu = gradcut.TrainingSession(artifacts, device="cpu")
    cuda = gradcut.TrainingSession(artifacts, device="cuda", provider_options=EXACT)
    problems = _differences("gradient", cpu.gradients(feeds), cuda.gradients(feeds))
    for given in (*[feeds] * STEPS, [feeds, feeds]):  # the last in two micro-batches
        a, b = cpu.step(given).loss, cuda.step(given).loss
        if abs(a - b) > TOLERANCE * max(1.0, abs(a)):
            problems.append(f"loss {b} on CUDA, {a} on the CPU")
    problems += _differences("parameter", cpu.parameters(), cuda.parameters())
    problems += _differences("average of", cpu.parameters(ema=True), cuda.parameters(ema=True))
    away = [name for name, slot in cuda._slots.items() if slot.current.device_name().lower() != "cuda"]
    problems += [f"{name} left the device" for name in away]
    print(f"           on the CPU in a step: {_fallen(artifacts, feeds) or 'nothing'}")
    return problems


def _differences(what: str, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[str]:
    largest = max(np.linalg.norm(array) for array in expected.values())
    problems = []
    for name, array in expected.items():
        error = np.linalg.norm(found[name] - array)
        if not error <= TOLERANCE * max(np.linalg.norm(array), 1e-3 * largest):
            problems.append(f"{what} {name} differs by {error:.2e}")
    return problems


def _fallen(artifacts: gradcut.TrainingArtifacts, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """Operators that ran on the CPU in one step of the training graph, by the runtime's own profile."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/step"
        graph = ir.to_proto(artifacts.training_model).SerializeToString()
        session = ort.InferenceSession(graph, options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        session.run(None, {**feeds, **artifacts.tensors_of("training_model")})
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = (event["args"] for event in events if event.get("cat") == "Node" and "provider" in event.get("args", {}))
    return dict(collections.Counter(a["op_name"] for a in ran if a["provider"] == "CPUExecutionProvider"))


def _feeds(artifacts: gradcut.TrainingArtifacts) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    classes = artifacts.manifest["loss"]["classes"]
    feeds = {}
    for port in artifacts.manifest["graphs"]["training_model"]["inputs"]:
        shape = [dim if isinstance(dim, int) else BATCH for dim in port["shape"]]
        if port["role"] == "label":
            feeds[port["name"]] = rng.integers(0, classes, shape)
        elif port["role"] == "user" and port["dtype"] == "FLOAT":
            feeds[port["name"]] = rng.standard_normal(shape).astype(np.float32)
        elif port["role"] == "user":
            feeds[port["name"]] = rng.integers(1, 2 if "mask" in port["name"] else 900, shape)
    return feeds


def _model(name: str) -> Path:
    path = MODELS / f"{name}.onnx"
    if not path.is_file():
        from models import zoo

        zoo.export(name, path)
    onnx.checker.check_model(str(path))
    return path


if __name__ == "__main__":
    sys.exit(main())
