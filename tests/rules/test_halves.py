"""Halves: long sums and large counts are taken in float32, and what rules build exists for bfloat16 too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, numpy_helper

import gradcut
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, Sample, build
from tests.rules.samples import SAMPLES
from tests.written import parse

#: Of each operator the first few.
FEW = [s for s in SAMPLES if [t for t in SAMPLES if t.op == s.op].index(s) < 6]
GIVEN = "float16[4096, 2] x, float16[2] b"
SUMS = {
    "Add": (GIVEN, "y = Add (x, b)"),
    "at run time": ("float16[n, 2] x, float16[m] b", "y = Add (x, b)"),
    "Gemm": (GIVEN, "w = Constant <value = float16[2, 2] {1, 0, 0, 1}> () y = Gemm (x, w, b)"),
    "Expand": (GIVEN, "s = Shape (x) y = Expand (b, s)"),
    "Mul": (GIVEN, "y = Mul (x, b)"),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_sum_of_4096_ones_is_4096(name: str) -> None:
    """In half precision it would stop at 2048."""
    given, body = SUMS[name]
    model = parse(f"g ({given}) => (float16[k, 2] y) {{ {body} }}")
    x = np.ones((4096, 2), np.float16)
    found = runtime(gradcut.vjp(model, ["b"], ["y"]))({"x": x, "b": x[0], "y_grad": x})[1]
    np.testing.assert_array_equal(found, [4096, 4096])


@pytest.mark.parametrize("rows", ["70000", "n"])
@pytest.mark.parametrize(("op", "share"), [("ReduceMean", 700 / 70000), ("ReduceMax", 700 / 70000), ("ReduceSum", 700)])
def test_a_count_beyond_the_largest_half(op: str, share: float, rows: str) -> None:
    model = parse(f"g (float16[{rows}] x) => (float16 y) {{ y = {op} <keepdims = 0> (x) }}")
    feeds = {"x": np.zeros(70000, np.float16), "y_grad": np.asarray(700, np.float16)}
    found = runtime(gradcut.vjp(model, ["x"], ["y"]))(feeds)[1]
    np.testing.assert_allclose(found, share, rtol=2e-3)


def narrowed(sample: Sample) -> onnx.ModelProto | None:
    """The sample's model in bfloat16, or None where the operator's page does not take it."""
    model = build(sample, opset=26).model
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array: Array = numpy_helper.to_array(tensor).astype(bfloat16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    model.graph.ClearField("value_info")
    for output in model.graph.output:
        output.ClearField("type")
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    except onnx.shape_inference.InferenceError:
        return None


def bfloat16_models() -> Iterator[tuple[Sample, onnx.ModelProto, list[str]]]:
    for sample in FEW:
        model = narrowed(sample)
        of = [] if model is None else [o.name for o in model.graph.output if o.type.tensor_type.elem_type == 16]
        if model is not None and of:
            yield sample, model, of


def test_what_rules_build_is_well_typed_in_bfloat16() -> None:
    """ONNX Runtime's CPU has no kernels for it; the operators' pages say what other runtimes take."""
    wrong, kinds = [], set()
    for sample, model, of in bfloat16_models():
        proto = gradcut.vjp(model, [name for name in sample.wanted if name not in sample.constant], of)
        kinds.add(sample.op)
        try:
            onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True)
        except onnx.shape_inference.InferenceError as error:
            wrong.append(f"{sample}: {error}")
    assert wrong == []
    assert len(kinds) > 80
