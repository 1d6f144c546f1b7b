"""A model over 2 GB: ``python -m tests.benchmarks.big [--gigabytes 3]`` compiles, trains and exports one, head only.

Each command is a process of its own. Printed are its seconds, the most memory that was its own (anonymous), and the
most that was resident; the latter counts the pages of weight files that the system had mapped in for it, which it
takes back where something else needs them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDE, NARROW, CLASSES = 8192, 4096, 10
_LAYER = WIDE * NARROW * 4
TRAIN_STEP = """
import sys, numpy as np, gradcut
session = gradcut.TrainingSession(sys.argv[1], threads=1)
x = np.random.default_rng(0).standard_normal((4, 4096)).astype(np.float32)
losses = [session.step({"x": x, "labels": np.arange(4)}).loss for _ in range(2)]
assert losses[1] < losses[0], losses
session.save_checkpoint(sys.argv[1] + "/checkpoint.safetensors")
"""


@dataclass(frozen=True)
class Usage:
    """What a process took: bytes, and seconds."""

    own: int
    resident: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:6.1f} s  {self.own / 1e9:5.2f} GB its own  {self.resident / 1e9:5.2f} GB resident"


def write_model(path: Path, gigabytes: float) -> int:
    """A stack of frozen layers with a head of ten classes, its weights beside it in one file; the bytes of those."""
    layers = max(2, round(gigabytes * 1e9 / _LAYER))
    data = path.with_suffix(".data")
    block = np.random.default_rng(0).standard_normal(WIDE * NARROW, np.float32) * WIDE**-0.5
    with open(data, "wb") as file:
        for index in range(layers):  # no two alike: onnxruntime keeps what it packs once where it is equal
            file.write(block[index:].data)
            file.write(block[:index].data)
    nodes, weights, hidden = [], [], "x"
    for index in range(layers):
        shape = (NARROW, WIDE) if index % 2 == 0 else (WIDE, NARROW)
        weights.append(_external(f"body.{index}.weight", shape, data.name, index * _LAYER))
        nodes.append(helper.make_node("MatMul", [hidden, weights[-1].name], [f"m{index}"], name=f"matmul{index}"))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [f"h{index}"], name=f"tanh{index}"))
        hidden = f"h{index}"
    width = WIDE if layers % 2 else NARROW
    head = np.random.default_rng(1).standard_normal((width, CLASSES), np.float32) * width**-0.5
    weights += [numpy_helper.from_array(head, "head.weight"), numpy_helper.from_array(head[0], "head.bias")]
    nodes.append(helper.make_node("Gemm", [hidden, "head.weight", "head.bias"], ["logits"], name="head"))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "big",
        [info("x", TensorProto.FLOAT, ["batch", NARROW])],
        [info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return data.stat().st_size


def _external(name: str, shape: Sequence[int], location: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": int(np.prod(shape)) * 4}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def measured(command: Sequence[str], cwd: Path) -> Usage:
    """Run Python with these arguments; a failure is one here.

    The own memory is sampled every few milliseconds, the resident one is the kernel's high-water mark.
    """
    here = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    start, own = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *command], cwd=cwd, env={**os.environ, "PYTHONPATH": paths}) as process:
        while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            own = max(own, _anonymous(process.pid))
            time.sleep(0.005)
        process.returncode = os.waitstatus_to_exitcode(found[1])
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Usage(own, found[2].ru_maxrss * 1024, time.perf_counter() - start)


def _anonymous(pid: int) -> int:
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:  # it has just ended
        return 0
    return int(found.group(1)) * 1024 if found is not None else 0


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_model(folder / "big.onnx", options.gigabytes)
        gradcut = ["-m", "gradcut"]
        compiling = [*gradcut, "compile", "big.onnx", "--loss", "cross_entropy", "--train", "head.*", "-o", "out"]
        print(f"weights   {size / 1e9:.2f} GB")
        print("compile  ", measured(compiling, folder))
        print(f"          {folder_size(folder / 'out') / size:.3f} of the weights' size written")
        print("two steps", measured(["-c", TRAIN_STEP, "out"], folder))
        (folder / "big.data").unlink()
        print("export   ", measured([*gradcut, "export", "out", "-o", "tuned.onnx"], folder))
        written = folder_size(folder) - folder_size(folder / "out")
        print(f"          {written / size:.3f} of the weights' size written")


if __name__ == "__main__":
    main()
