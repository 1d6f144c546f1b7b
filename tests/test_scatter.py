"""No backward may be built of ScatterND(reduction=add): the runtime loses updates of an index that comes twice."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import gradcut
from tests.written import parse

GATHERS = {
    "Gather": ("int64[N] i", "float[N, 64] y", "y = Gather(w, i)"),
    "GatherND": ("int64[N, 1] i", "float[N, 64] y", "y = GatherND(w, i)"),
    "GatherElements": ("int64[N, 64] i", "float[N, 64] y", "y = GatherElements<axis = 0>(w, i)"),
}


def adding(model: onnx.ModelProto) -> list[str]:
    nodes = (node for node in model.graph.node if any(a.s == b"add" for a in node.attribute))
    return [node.op_type for node in nodes if node.op_type == "ScatterND"]


@pytest.mark.parametrize("kind", GATHERS)
def test_repeated_indices_add_up_on_several_threads(kind: str) -> None:
    indices, out, body = GATHERS[kind]
    model = gradcut.vjp(parse(f"g (float[2, 64] w, {indices}) => ({out}) {{ {body} }}"), wrt=["w"], of=["y"])
    assert adding(model) == []
    shape = {"Gather": (4096,), "GatherND": (4096, 1), "GatherElements": (4096, 64)}[kind]
    feeds = {
        "w": np.zeros((2, 64), np.float32),
        "i": np.random.default_rng(0).integers(0, 2, shape),
        "y_grad": np.ones((4096, 64), np.float32),
    }
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    runner = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for _ in range(20):
        total = runner.run(None, feeds)[1].sum()
        assert total == 4096 * 64
