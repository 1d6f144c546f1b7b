"""Compile time over the length of a chain."""

from __future__ import annotations

import gc
import statistics
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import gradcut

LENGTHS = (1_000, 3_000, 10_000)
REPEATS = 3


def chain(nodes: int) -> onnx.ModelProto:
    """Gemm and Relu by turns, [batch, 8] all along; every Gemm has a weight and a bias of its own."""
    made, weights = [], []
    rng = np.random.default_rng(0)
    for index in range(nodes):
        source, target = f"h{index}", f"h{index + 1}"
        if index % 2:
            made.append(helper.make_node("Relu", [source], [target], name=f"relu{index}"))
            continue
        names = [f"w{index}", f"b{index}"]
        arrays = rng.standard_normal((8, 8)), rng.standard_normal(8)
        weights += [numpy_helper.from_array(a.astype(np.float32), n) for a, n in zip(arrays, names, strict=True)]
        made.append(helper.make_node("Gemm", [source, *names], [target], name=f"gemm{index}"))
    shape = ["batch", 8]
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"h{nodes}", TensorProto.FLOAT, shape)],
        initializer=weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def compile_times() -> dict[str, float]:
    """Median seconds of compiling each length for full training."""
    found = {}
    for nodes in LENGTHS:
        model = chain(nodes)
        found[str(nodes)] = statistics.median(_seconds(model) for _ in range(REPEATS))
    return found


def _seconds(model: onnx.ModelProto) -> float:
    gc.collect()  # what the compile before left behind is not this one's
    start = time.perf_counter()
    gradcut.compile(model, loss="cross_entropy")
    return time.perf_counter() - start
