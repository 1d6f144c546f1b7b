"""Marks and freezing prevent no fusion: the frozen forward is, after the runtime's optimiser, that of inference.

Head-only training leaves the whole backbone as the plain model has it; the runtime's optimised graph is read back and
its nodes before the head are counted by operator.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import gradcut
from tests.exported import exported

#: model -> patterns of the head, and a value of the head that the backbone ends before.
HEADS = {
    "digits": ["head.*"],
    "mlp": ["head.*"],
    "bert_tiny": ["classifier.*"],
    "resnet18_small": ["fc.*"],
}
FUSED = {
    "digits": {"Conv", "FusedConv"},
    "mlp": {"FusedGemm", "Gemm"},
    "bert_tiny": {"BiasGelu", "SkipLayerNormalization", "LayerNormalization"},
    "resnet18_small": {"Conv", "FusedConv"},
}


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What the runtime makes of a model at the level that a session uses."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def before_head(model: onnx.ModelProto, head: set[str]) -> Counter[tuple[str, str]]:
    """The operators of what the head's first operation reads, found backwards from it."""
    producers = {name: node for node in model.graph.node for name in node.output if name}
    readers = [node for node in model.graph.node if head & set(node.input)]
    first = readers[0]  # in graph order: the forward's use of the head's weight
    counted: dict[int, onnx.NodeProto] = {}
    pending = [producers[name] for name in first.input if name in producers and name not in head]
    while pending:
        node = pending.pop()
        if id(node) not in counted:
            counted[id(node)] = node
            pending += [producers[name] for name in node.input if name in producers]
    return Counter((node.domain, node.op_type) for node in counted.values())


def weights_of(name: str) -> set[str]:
    artifacts = gradcut.compile(exported(name), "cross_entropy", train=HEADS[name])
    return {one for one in artifacts.trainable if one.endswith("weight")}


@pytest.mark.parametrize("stop", [False, True], ids=["head only", "head only and a mark in the middle"])
@pytest.mark.parametrize("name", HEADS)
def test_the_frozen_forward_is_fused_as_in_plain_inference(name: str, stop: bool, tmp_path: Path) -> None:
    middle = {
        "digits": "encoder.conv2",
        "mlp": "body.0",
        "bert_tiny": "bert.encoder.layer.0.intermediate.dense",
        "resnet18_small": "layer2.0.conv1",
    }[name]
    artifacts = gradcut.compile(exported(name), "cross_entropy", train=HEADS[name], stop_at=[middle] if stop else [])
    head = weights_of(name)
    plain = _with_head_as_input(onnx.load(exported(name)), set(artifacts.trainable))
    expected = before_head(optimised(plain, tmp_path), head)
    actual = before_head(optimised(ir.to_proto(artifacts.training_model), tmp_path), head)
    assert actual == expected
    assert {operator for _, operator in actual} & FUSED[name]


def _with_head_as_input(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The plain model with the head's tensors as inputs, so that its optimiser, too, keeps them by name."""
    for weight in [w for w in model.graph.initializer if w.name in names]:
        model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
        model.graph.initializer.remove(weight)
    return model
