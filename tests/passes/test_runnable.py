"""Operators of the newest opsets that ONNX Runtime runs at older ones alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

import gradcut
from gradcut.passes.importing.runnable import UP_TO_21
from gradcut.runtime.check import check_gradients, imported, require
from tests.rules.sample import Array, Sample, build, normal, sample

ROIS = np.float32([[0, 0, 0, 3, 3], [0, 1, 1, 4, 3]])
CASES = [
    sample("RoiAlign", "plain", normal(1, 2, 5, 5), ROIS[:, 1:], np.int64([0, 0]), constant="rois", output_height=2,
           output_width=2),
    sample("MaxRoiPool", "plain", normal(1, 2, 5, 5), ROIS, constant="rois", pooled_shape=[2, 2]),
    sample("GlobalLpPool", "plain", normal(2, 3, 4, 4)),
    sample("Swish", "plain", normal(2, 3), opset=24),
    sample("Swish", "alpha", normal(2, 3), opset=24, alpha=1.7),
]  # fmt: skip


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def gradient(case: Sample, opset: int) -> Array:
    """Of X for a cotangent of ones, in ONNX Runtime itself."""
    built = build(case, opset=opset)
    proto = gradcut.vjp(built.model, ["X"], ["y0"])
    run, seed = session(proto), proto.graph.input[-1]
    shape = [dim.dim_value for dim in seed.type.tensor_type.shape.dim]
    return run.run(["X_grad"], {**built.feeds, seed.name: np.ones(shape, np.float32)})[0]


@pytest.mark.parametrize("opset", range(22, 27))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_such_a_model_runs(case: Sample, opset: int) -> None:
    if opset >= case.opset:
        np.testing.assert_allclose(gradient(case, opset), gradient(case, case.opset), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES[3:], ids=str)
def test_swish_has_right_gradients(case: Sample) -> None:
    built = build(case, "dynamic", opset=26)
    require(check_gradients(built.model, built.feeds, ["X"]))


@pytest.mark.parametrize("op", sorted(UP_TO_21 - {"RoiAlign", "MaxRoiPool", "GlobalLpPool"}))
def test_what_draws_runs(op: str) -> None:
    inputs = [] if op in ("RandomNormal", "RandomUniform") else ["x"]
    attributes = {} if inputs else {"shape": [2, 3]}
    kind = 6 if op == "Multinomial" else 1
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"], **attributes)], "g",
                              [helper.make_tensor_value_info(name, 1, [2, 3]) for name in inputs],
                              [helper.make_tensor_value_info("y", kind, None)])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):  # else it needs no lowering
        session(model)
    session(ir.to_proto(imported(model)))


def test_a_model_with_what_opset_21_has_not_stays() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2,3,4] x, float[4] s) => (float[2,3,1] y) '
        "{ n = RMSNormalization(x, s)  y = GlobalLpPool(n) }"
    )
    assert imported(model).opset_imports[""] == 23


def test_a_bfloat16_that_opset_21_does_not_take_stays() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 22]> g (bfloat16[2,3,4] x) => (bfloat16[2,3,1] y) { y = GlobalLpPool(x) }'
    )
    assert imported(model).opset_imports[""] == 22
