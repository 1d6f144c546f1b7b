"""Normalisations of old files: outputs as ONNX Runtime gives them for the file itself, gradients by differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import gradcut
from gradcut.errors import UnsupportedModelError
from gradcut.runtime.check import check_gradients, imported, require
from gradcut.runtime.widen import runtime

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


def model(op: str, operands: list[Array], outputs: int, opset: int, **attributes: Any) -> onnx.ModelProto:
    names = [f"i{at}" for at in range(len(operands))]
    node = helper.make_node(op, names, [f"y{at}" for at in range(outputs)], "n", **attributes)
    ports = [helper.make_tensor_value_info(n, 1, a.shape) for n, a in zip(names, operands, strict=True)]
    made = [helper.make_tensor_value_info(name, 1, None) for name in node.output]
    graph = helper.make_graph([node], "old", ports, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def same(proto: onnx.ModelProto, operands: list[Array]) -> None:
    feeds = {f"i{at}": array for at, array in enumerate(operands)}
    work = imported(proto)
    work.ir_version = 10
    assert work.opset_imports == {"": 21}
    for mine, theirs in zip(runtime(ir.to_proto(work))(feeds), runtime(proto)(feeds), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert require(check_gradients(proto, feeds, list(feeds))).backward == "onnxruntime"


@pytest.mark.parametrize("opset", [7, 11, 16])
@pytest.mark.parametrize("outputs", [1, 3])
def test_layer_normalization_before_17(opset: int, outputs: int) -> None:
    operands = [normal(2, 3, 5), positive(3, 5), normal(3, 5)]
    same(model("LayerNormalization", operands, outputs, opset, axis=1, epsilon=0.01), operands)


def test_layer_normalization_before_17_keeps_other_operators() -> None:
    """Those of the file around it are converted as ever."""
    proto = model("LayerNormalization", [normal(2, 5), positive(5)], 1, 11)
    proto.graph.node.append(helper.make_node("Squeeze", ["y0"], ["z"], axes=[0]))
    proto.graph.node[0].input[0] = "wide"
    proto.graph.node.insert(0, helper.make_node("Unsqueeze", ["i0"], ["wide"], axes=[0]))
    proto.graph.output[0].name = "z"
    same(proto, [normal(2, 5), positive(5)])


@pytest.mark.parametrize("opset", [7, 8])
def test_batch_normalization_by_element(opset: int) -> None:
    operands = [normal(2, 3, 4), *(positive(3, 4) for _ in range(4))]
    attributes = {"spatial": 0} if opset < 9 else {}
    same(model("BatchNormalization", operands, 1, opset, epsilon=0.01, **attributes), operands)


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_batch_normalization_with_five_outputs_trains(opset: int) -> None:
    operands = [normal(2, 3, 4), positive(3), normal(3), normal(3), positive(3)]
    same(model("BatchNormalization", operands, 5, opset, momentum=0.3, epsilon=0.01), operands)


@pytest.mark.parametrize("outputs", [1, 5])
def test_batch_normalization_with_five_outputs_within_a_model(outputs: int) -> None:
    """The file says no shape of what it reads."""
    operands = [normal(2, 3, 4), positive(3), normal(3), normal(3), positive(3)]
    proto = model("BatchNormalization", operands, 5, 9)
    proto.graph.node.insert(0, helper.make_node("Tanh", ["i0"], ["inner"]))
    proto.graph.node[1].input[0] = "inner"
    del proto.graph.output[outputs:]
    same(proto, operands)


def test_batch_normalization_with_five_outputs_of_unknown_rank_is_refused() -> None:
    """Where something reads the last two."""
    proto = model("BatchNormalization", [normal(2, 3), *(positive(3) for _ in range(4))], 5, 9)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedModelError, match=r"node 'n' .*five outputs.* has an input of unknown rank"):
        gradcut.vjp(proto, ["i0"], ["y0"])


@pytest.mark.parametrize("opset", [10, 16])
def test_roi_align_of_old_has_no_half_pixel(opset: int) -> None:
    rois = np.float32([[0.31, 0.42, 3.87, 2.63], [1.13, 1.78, 4.41, 3.19]])
    operands = [normal(2, 3, 4, 5), rois, np.int64([0, 1])]
    proto = model("RoiAlign", operands, 1, opset, output_height=2, output_width=3, sampling_ratio=2)
    proto.graph.input[2].type.tensor_type.elem_type = onnx.TensorProto.INT64
    feeds = {f"i{at}": array for at, array in enumerate(operands)}
    work = imported(proto)
    work.ir_version = 10
    mine, theirs = (runtime(one)(feeds)[0] for one in (ir.to_proto(work), proto))
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    require(check_gradients(proto, feeds, ["i0", "i1"]))
