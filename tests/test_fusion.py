"""Marks and freezing prevent no fusion: the frozen forward, after the runtime's optimiser, is that of inference.

Head-only training leaves the whole backbone as the plain model has it. The runtime's optimised graph is read back, and
its nodes before the head are counted by operator: at least the plain file's fused kernels, and exactly what the runtime
makes of the plain model once its constants are folded (the exporter's Expand of a zero bias keeps Conv from fusing).
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

#: model -> patterns of the head, a scope in the middle, and kernels that must be among the fused ones.
MODELS = {
    "digits": (["head.*"], "encoder.conv2", {"Conv", "AveragePool"}),
    "mlp": (["head.*"], "body.0", {"FusedGemm"}),
    "bert_tiny": (
        ["classifier.*"],
        "bert.encoder.layer.0.intermediate.dense",
        {"BiasGelu", "SkipLayerNormalization", "FusedMatMul", "FusedGemm"},
    ),
    "resnet18_small": (["fc.*"], "layer2.0.conv1", {"Conv"}),
}


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What the runtime makes of a model at the level that a session uses."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def before_head(model: onnx.ModelProto, head: set[str]) -> Counter[tuple[str, str]]:
    """The operators, by domain and type, of everything that the first reader of the head's tensors reads."""
    producers = {name: node for node in model.graph.node for name in node.output if name}
    first = next(node for node in model.graph.node if head & set(node.input))
    counted: dict[int, onnx.NodeProto] = {}
    pending = [producers[name] for name in first.input if name in producers]
    while pending:
        node = pending.pop()
        if id(node) not in counted:
            counted[id(node)] = node
            pending += [producers[name] for name in node.input if name in producers]
    return Counter((node.domain, node.op_type) for node in counted.values())


def fused(operators: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Those of the runtime's own domains, without the changes of layout between them."""
    return Counter({key: n for key, n in operators.items() if key[0] and not key[1].startswith("Reorder")})


def with_inputs(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The model with some tensors as inputs, so that the optimiser keeps them by name there, too."""
    for weight in [w for w in model.graph.initializer if w.name in names]:
        model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
        model.graph.initializer.remove(weight)
    return model


@pytest.mark.parametrize("marked", [False, True], ids=["head only", "and a mark in the middle"])
@pytest.mark.parametrize("name", MODELS)
def test_the_frozen_forward_is_fused_as_in_plain_inference(name: str, marked: bool, tmp_path: Path) -> None:
    train, middle, kernels = MODELS[name]
    stop = [middle] if marked else []
    artifacts = gradcut.compile(exported(name), "cross_entropy", train=train, stop_at=stop)
    head = set(artifacts.trainable)
    plain = onnx.load(exported(name))
    folded = ir.to_proto(gradcut.Pipeline.parse("import,fold,emit").run(gradcut.load(exported(name))))
    expected, exact = (before_head(optimised(with_inputs(m, head), tmp_path), head) for m in (plain, folded))
    actual = before_head(optimised(ir.to_proto(artifacts.training_model), tmp_path), head)
    assert fused(expected) <= fused(actual)
    assert actual == exact
    assert kernels <= {operator for _, operator in fused(actual)}
