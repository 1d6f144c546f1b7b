"""Named masks: the adjoints that are built equal a list written by hand, and their FLOPs a formula over shapes.

A list names nodes by the exporter's names, shortened by `node_`, and the operands that get an adjoint computation. An
operator that hands its cotangent on as it is (Add, Identity) needs no node and is not listed; `bnK` stands for the
K-th BatchNormalization, `L` for the loss.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import onnx_ir as ir
import pytest

from gradcut.cost import NOMINAL, by_adjoint
from gradcut.ops import Builder, Names
from gradcut.optimizers import AdamW, UpdateRequest
from gradcut.passes import AttachLoss, Import, Pipeline, Simplify
from gradcut.passes.differentiate import ADJOINT
from gradcut.request import Request
from models import zoo

B = NOMINAL


@functools.cache
def exported(name: str, folder: Path) -> Path:
    return zoo.export(name, folder / f"{name}.onnx")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def differentiated(path: Path, train=(), freeze=(), stop_at=()) -> ir.Model:
    """The differentiated, simplified graph, before lowering."""
    request = Request("cross_entropy", train, freeze, stop_at, UpdateRequest(AdamW()), "onnx", False, "auto", "auto", 0)
    model = ir.load(path)
    Pipeline((Import(), *request.chosen(), AttachLoss(spec=request.loss))).run(model)
    return request.backward(True).run(model)


def shortened(node: str) -> str:
    if node.startswith("cross_entropy"):
        return "L"
    node = node.removeprefix("node_")
    norm = re.fullmatch(r"_native_batch_norm_legit_no_training(?:_(\d+))?__0", node)
    return f"bn{norm.group(1) or 0}" if norm else node


def adjoints(model: ir.Model) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for label in by_adjoint(model.graph):
        node, operand = label.rsplit(":", 1)
        found.setdefault(shortened(node), set()).add(operand)
    return found


def listed(text: str) -> dict[str, set[str]]:
    """``"L: scores; linear_2: B C"``."""
    rows = (row.split(":") for row in text.replace("\n", " ").split(";") if row.strip())
    return {node.strip(): set(operands.split()) for node, operands in rows}


MASKS = {
    "mlp full": (
        "mlp",
        {},
        "L: scores; linear_2: A B C; tanh: input; linear_1: A B C; relu: X; linear: B C",
    ),
    "mlp head": ("mlp", {"train": ("head.*",)}, "L: scores; linear_2: B C"),
    "mlp last block": (
        "mlp",
        {"train": ("body.2.*", "head.*")},
        "L: scores; linear_2: A B C; tanh: input; linear_1: B C",
    ),
    "mlp biases": (
        "mlp",
        {"train": ("*.bias",)},
        "L: scores; linear_2: A C; tanh: input; linear_1: A C; relu: X; linear: C",
    ),
    "mlp weights": (
        "mlp",
        {"train": ("*.weight",)},
        "L: scores; linear_2: A B; tanh: input; linear_1: A B; relu: X; linear: B",
    ),
    "mlp first bias alone": (
        "mlp",
        {"train": ("body.0.bias",)},
        "L: scores; linear_2: A; tanh: input; linear_1: A; relu: X; linear: C",
    ),
    "mlp frozen in the middle": (
        "mlp",
        {"freeze": ("body.2.weight",)},
        "L: scores; linear_2: A B C; tanh: input; linear_1: A C; relu: X; linear: B C",
    ),
    "mlp stopped in the middle": (
        "mlp",
        {"stop_at": ("relu",)},
        "L: scores; linear_2: A B C; tanh: input; linear_1: B C",
    ),
    "mlp two marks": ("mlp", {"stop_at": ("relu", "tanh")}, "L: scores; linear_2: B C"),
    "digits full": (
        "digits",
        {},
        """L: scores; linear: A B C; view: data; avg_pool2d_1: X; relu_2: X; bn2: X scale B; conv2d_2: X W;
        avg_pool2d: X; relu_1: X; bn1: X scale B; conv2d_1: X W; relu: X; bn0: X scale B; conv2d: W""",
    ),
    "digits head": ("digits", {"train": ("head.*",)}, "L: scores; linear: B C"),
    "digits norms": (
        "digits",
        {"train": ("encoder.bn*",)},
        """L: scores; linear: A; view: data; avg_pool2d_1: X; relu_2: X; bn2: X scale B; conv2d_2: X; avg_pool2d: X;
        relu_1: X; bn1: X scale B; conv2d_1: X; relu: X; bn0: scale B""",
    ),
    "digits biases": (
        "digits",
        {"train": ("*.bias",)},
        """L: scores; linear: A C; view: data; avg_pool2d_1: X; relu_2: X; bn2: X B; conv2d_2: X; avg_pool2d: X;
        relu_1: X; bn1: X B; conv2d_1: X; relu: X; bn0: B""",
    ),
    "digits last convolution": (
        "digits",
        {"train": ("encoder.conv3.weight",)},
        "L: scores; linear: A; view: data; avg_pool2d_1: X; relu_2: X; bn2: X; conv2d_2: W",
    ),
    "digits frozen in the middle": (
        "digits",
        {"freeze": ("encoder.conv2.weight",)},
        """L: scores; linear: A B C; view: data; avg_pool2d_1: X; relu_2: X; bn2: X scale B; conv2d_2: X W;
        avg_pool2d: X; relu_1: X; bn1: X scale B; conv2d_1: X; relu: X; bn0: X scale B; conv2d: W""",
    ),
    "digits one use stopped": (
        "digits",
        {"stop_at": ("avg_pool2d->node_conv2d_2",)},
        """L: scores; linear: A B C; view: data; avg_pool2d_1: X; relu_2: X; bn2: X scale B; conv2d_2: W""",
    ),
    "resnet18_small head": ("resnet18_small", {"train": ("fc.*",)}, "L: scores; linear: B C"),
    "resnet18_small last block": (
        "resnet18_small",
        {"train": ("layer4.1.*", "fc.*")},
        """L: scores; linear: A B C; view: data; relu_16: X; bn19: X scale B; conv2d_19: X W; relu_15: X;
        bn18: X scale B; conv2d_18: W""",
    ),
    "resnet18_small through the shortcut": (
        "resnet18_small",
        {"train": ("layer4.0.conv2.weight",), "stop_at": ("relu_14->node_conv2d_18",)},
        "L: scores; linear: A; view: data; relu_16: X; relu_14: X; bn16: X; conv2d_16: W",
    ),
    "bert_tiny head": ("bert_tiny", {"train": ("classifier.*",)}, "L: scores; linear_13: B C"),
    "bert_tiny last norm's bias": (
        "bert_tiny",
        {"train": ("bert.encoder.layer.1.output.LayerNorm.bias",)},
        "L: scores; linear_13: A; tanh: input; linear_12: A; select: data; layer_norm_4: B",
    ),
    "bert_tiny one query": (
        "bert_tiny",
        {"train": ("bert.encoder.layer.1.attention.self.query.weight",)},
        """L: scores; linear_13: A; tanh: input; linear_12: A; select: data; layer_norm_4: X; MatMul_138: A; gelu_1: X;
        MatMul_136: A; layer_norm_3: X; MatMul_134: A; view_7: data; transpose_9: data; matmul_3: A; softmax_1: input;
        mul_114: A; matmul_2: A; transpose_5: data; view_4: data; MatMul_105: B; Transpose_104: data""",
    ),
}


@pytest.mark.parametrize("mask", MASKS)
def test_adjoints_equal_the_list(mask: str, folder: Path) -> None:
    name, options, expected = MASKS[mask]
    assert adjoints(differentiated(exported(name, folder), **options)) == listed(expected)


def test_flops_equal_a_formula_over_shapes(folder: Path) -> None:
    found = by_adjoint(differentiated(exported("mlp", folder)).graph)
    sizes = {"node_linear": (64, 128), "node_linear_1": (128, 128), "node_linear_2": (128, 10)}
    for node, (inner, outer) in sizes.items():
        assert found[f"{node}:B"] == 2 * B * inner * outer
        assert found[f"{node}:C"] == B * outer
    for node in ("node_linear_1", "node_linear_2"):
        inner, outer = sizes[node]
        assert found[f"{node}:A"] == 2 * B * inner * outer
    assert found["node_tanh:input"] == 3 * B * 128
    assert found["node_relu:X"] == B * 128


def test_flops_of_convolutions_equal_a_formula_over_shapes(folder: Path) -> None:
    found = by_adjoint(differentiated(exported("digits", folder)).graph)
    places = {"node_conv2d": (1, 32, 8), "node_conv2d_1": (32, 64, 8), "node_conv2d_2": (64, 64, 4)}
    for node, (inputs, outputs, side) in places.items():
        assert found[f"{node}:W"] == 2 * B * outputs * side**2 * inputs * 9
        if node != "node_conv2d":
            assert found[f"{node}:X"] == 2 * B * outputs * side**2 * inputs * 9


def concat_model() -> ir.Model:
    return ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        branches (float[N, 4] x) => (float y)
        <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4, 2] v = {1, 2, 3, 4, 5, 6, 7, 8}>
        {
            left = MatMul(x, w)
            right = MatMul(x, v)
            both = Concat<axis = 1>(left, right)
            y = ReduceMean<keepdims = 0>(both)
        }"""
    )


def backward_ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if ADJOINT in node.metadata_props and node.op_type != "Constant"]


def slices(wrt: str) -> int:
    model = concat_model()
    text = f"import,propagate{{of=y wrt={wrt}}},differentiate{{seed=one}},simplify"
    Pipeline.parse(text).run(model)
    return backward_ops(model).count("Slice")


def test_a_frozen_branch_of_a_concat_gets_no_slice() -> None:
    assert slices("w") == 1
    assert slices("v") == 1
    assert slices("[w,v]") == 2


def test_one_extra_live_adjoint_is_seen(folder: Path) -> None:
    name, options, expected = MASKS["mlp head"]
    model = differentiated(exported(name, folder), **options)
    b = Builder(Names.of(model))
    b.tag = {ADJOINT: "node_linear_2:A"}
    gradient = next(value for value in model.graph.outputs if value.name == "head.bias_grad")
    extra = b.Add(gradient, 0.0)
    model.graph.extend(b.nodes)
    model.graph.outputs.append(extra)
    assert adjoints(Simplify()(model).model) != listed(expected)


def test_one_needless_slice_is_seen() -> None:
    model = concat_model()
    Pipeline.parse("import,propagate{of=y wrt=w},differentiate{seed=one},simplify").run(model)
    counted = backward_ops(model).count("Slice")
    b = Builder(Names.of(model))
    b.tag = {ADJOINT: "Concat_both:inputs[1]"}
    source = next(node for node in model.graph if node.op_type == "Slice").inputs[0]
    extra = b.Slice(source, b.ints([3]), b.ints([5]), b.ints([1]))
    model.graph.extend(b.nodes)
    model.graph.outputs.append(extra)
    assert backward_ops(Simplify()(model).model).count("Slice") == counted + 1 != slices("w")
