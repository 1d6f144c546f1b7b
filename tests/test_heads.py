"""Replacing a head: what is found, what is drawn, what stays bit for bit, what follows behind."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import gradcut
from gradcut.errors import SpecError
from gradcut.heads import new_parameters
from gradcut.parameters import KIND
from models import zoo
from tests.exported import exported, text

Feeds = dict[str, np.ndarray[Any, Any]]


def shipped(package: str, file: str) -> Path:
    """A model of a package that ships it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is in the extra `test`"
    return Path(spec.origin).parent / "models" / file


@pytest.fixture
def ocr() -> Path:
    return shipped("rapidocr", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")


@pytest.fixture
def magika() -> Path:
    return shipped("magika", "standard_v3_3/model.onnx")


def run(model: ir.Model | onnx.ModelProto, feeds: Feeds, *names: str) -> list[np.ndarray[Any, Any]]:
    """Values by name, inner ones too, without the runtime's own rewriting."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else onnx.ModelProto.FromString(model.SerializeToString())
    onnx.checker.check_model(proto, full_check=True)
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return list(session.run(list(names) or None, feeds))


def tensors(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Every constant of a model by name: initializers and Constants."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else onnx.load(model)
    found = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    for node in proto.graph.node:
        for attribute in [one for one in node.attribute if one.name == "value"]:
            found[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
    return found


def uniform(classes: int, fan_in: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """As the documentation has it: [classes, fan_in], row by row."""
    bound = 1 / np.sqrt(fan_in)
    return np.random.Generator(np.random.PCG64(seed)).uniform(-bound, bound, (classes, fan_in)).astype(np.float32)


# --- whole models ---------------------------------------------------------------------------------------------

ZOO = {
    "mlp": ("tanh", "head"),
    "bert_tiny": ("clone_9", "classifier"),
    "resnet18_small": ("view", "fc"),
    "digits": ("view", "head"),
}


@pytest.mark.parametrize("classes", [1, 5, 10, 37])
@pytest.mark.parametrize("name", ZOO)
def test_the_zoos_models(name: str, classes: int) -> None:
    """The head is torch's Linear with the new weight on features that are the old ones, bit for bit."""
    feature, head = ZOO[name]
    path, feeds = exported(name), zoo.example_inputs(name)
    model = gradcut.replace_head(path, classes)
    before, after = tensors(path), tensors(model)
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key].shape != after[key].shape or (before[key] != after[key]).any()}
    assert changed == {f"{head}.weight", f"{head}.bias"}
    weight, bias = after[f"{head}.weight"], after[f"{head}.bias"]
    np.testing.assert_array_equal(weight, uniform(classes, before[f"{head}.weight"].shape[1]))
    assert weight.dtype == bias.dtype == np.float32 and bias.shape == (classes,) and not bias.any()
    (old,) = run(onnx.load(path), feeds, feature)
    new, logits = run(model, feeds, feature, "logits")
    assert old.tobytes() == new.tobytes()
    layer = torch.nn.functional.linear(torch.from_numpy(new), torch.from_numpy(weight.copy()))
    np.testing.assert_allclose(logits, layer.numpy(), rtol=1e-4, atol=1e-5)
    (output,) = model.graph.outputs
    assert output.name == "logits" and str(output.shape) == f"[batch,{classes}]"


def test_the_draw_is_seeded() -> None:
    def digest(**options: Any) -> str:
        model = gradcut.replace_head(exported("mlp"), 4, **options)
        return hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest()

    assert digest() == digest(seed=0) != digest(seed=1)
    np.testing.assert_array_equal(
        tensors(gradcut.replace_head(exported("mlp"), 4, seed=3))["head.weight"], uniform(4, 128, 3)
    )


def test_the_bound_is_that_of_torchs_linear() -> None:
    layer = torch.nn.Linear(128, 4000)
    drawn = tensors(gradcut.replace_head(exported("mlp"), 4000))["head.weight"]
    theirs = layer.weight.detach().numpy()
    assert np.abs(drawn).max() <= 1 / np.sqrt(128)
    assert np.abs(drawn).max() == pytest.approx(np.abs(theirs).max(), rel=1e-3)
    assert drawn.std() == pytest.approx(theirs.std(), rel=1e-2)


def test_an_ir_model_is_changed_in_place_and_nothing_else_is() -> None:
    model, proto = ir.load(exported("mlp")), onnx.load(exported("mlp"))
    assert gradcut.replace_head(model, 4) is model
    written = proto.SerializeToString()
    assert str(gradcut.replace_head(proto, 4).graph.outputs[0].shape) == "[batch,4]"
    assert proto.SerializeToString() == written


def test_weights_in_constants_and_a_shape_put_together(ocr: Path) -> None:
    """Paddle's exporter: opset 11, no initializer at all, MatMul + Add + Softmax + Identity."""
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 3, 48, 192)).astype(np.float32)}
    for activation in ("keep", "drop"):
        model = gradcut.replace_head(ocr, 5, activation=activation)
        before, after = tensors(ocr), tensors(model)
        changed = {key for key in before if before[key].shape != after[key].shape or (before[key] != after[key]).any()}
        assert changed == {"fc_0.w_0", "fc_0.b_0"} and before.keys() == after.keys()
        np.testing.assert_array_equal(after["fc_0.w_0"], uniform(5, 200).T)
        (features,) = run(onnx.load(ocr), feeds, "reshape2_0.tmp_0")
        same, y = run(model, feeds, "reshape2_0.tmp_0", "save_infer_model/scale_0.tmp_1")
        assert features.tobytes() == same.tobytes() and y.shape == (3, 5)
        logits = features @ after["fc_0.w_0"]
        exact = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(y, exact if activation == "keep" else logits, rtol=1e-4, atol=1e-5)
    trainable = gradcut.compile(model, "cross_entropy").trainable
    assert {"fc_0.w_0", "fc_0.b_0"} <= set(trainable)
    assert set(gradcut.compile(ocr, "mse").trainable) == set(trainable)


def test_a_softmax_written_out(magika: Path) -> None:
    """tf2onnx: exp(z - max z) / sum, with Reshape and Expand between; the bias is [1, C]."""
    given = onnx.load(magika)
    (port,) = given.graph.input
    length = port.type.tensor_type.shape.dim[1].dim_value
    feeds = {port.name: np.random.default_rng(0).integers(0, 256, (3, length)).astype(np.int32)}
    kept = run(gradcut.replace_head(magika, 7), feeds)[0]
    dropped = gradcut.replace_head(magika, 7, activation="drop")
    logits = run(dropped, feeds)[0]
    assert kept.shape == logits.shape == (3, 7)
    np.testing.assert_allclose(kept, torch.softmax(torch.from_numpy(logits), 1).numpy(), rtol=1e-4)
    assert [node.op_type for node in dropped.graph][-3:] == ["MatMul", "Add", "Identity"]
    names = list(new_parameters(dropped))
    assert set(names) <= set(gradcut.compile(dropped, "cross_entropy").trainable)


CONSTANTS = """
g (float[n, 3] x) => (float[n, 2] y)
{
    w = Constant <value = float[3, 2] {1, 2, 3, 4, 5, 6}> ()
    b = Constant <value = float[2] {1, 2}> ()
    z = MatMul (x, w)
    a = Add (z, b)
    y = Softmax <axis = 1> (a)
}"""


@pytest.mark.parametrize("activation", ["keep", "drop"])
def test_constants_stay_constants(activation: str) -> None:
    model = gradcut.replace_head(text(CONSTANTS), 5, activation=activation)
    assert not model.graph.initializers
    logits = fed(4, 3)["x"] @ uniform(5, 3).T
    exact = torch.from_numpy(logits).softmax(1).numpy() if activation == "keep" else logits
    np.testing.assert_allclose(run(model, fed(4, 3))[0], exact, rtol=1e-5)
    assert gradcut.compile(model, "mse").trainable == ("w", "b")


def test_beside_initializers_a_constant_becomes_one() -> None:
    """There a Constant of zeros would be no parameter, and the new bias would never train."""
    mixed = CONSTANTS.replace("y)\n{", "y) <float[3] s = {1, 2, 3}>\n{").replace("MatMul (x,", "MatMul (h,")
    model = gradcut.replace_head(text(mixed.replace("    z =", "    h = Mul (x, s)\n    z =")), 5)
    assert sorted(model.graph.initializers) == ["b", "s", "w"]
    assert set(gradcut.compile(model, "mse").trainable) == {"s", "w", "b"}


@pytest.mark.parametrize("largest", ["m = ReduceMax <keepdims = 1> (z, one)  d = Sub (z, m)", "d = Identity (z)"])
@pytest.mark.parametrize("activation", ["keep", "drop"])
def test_a_softmax_of_small_operators(largest: str, activation: str) -> None:
    model = text(f"""
    g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {{1, 2, 3, 4, 5, 6}}, int64[1] one = {{1}}>
    {{
        z = MatMul (x, w)
        {largest}
        e = Exp (d)
        t = ReduceSum <keepdims = 0> (e, one)
        u = Unsqueeze (t, one)
        y = Div (e, u)
    }}""")
    model = gradcut.replace_head(model, 5, activation=activation)
    logits = torch.from_numpy(fed(4, 3)["x"] @ uniform(5, 3).T)
    exact = logits.softmax(1) if activation == "keep" else logits
    np.testing.assert_allclose(run(model, fed(4, 3))[0], exact.numpy(), rtol=1e-5, atol=1e-6)


# --- layers ---------------------------------------------------------------------------------------------------


def fed(*shape: int) -> Feeds:
    return {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


def numbers(*shape: int) -> str:
    return ", ".join(f"{1 + i % 7}.0" for i in range(int(np.prod(shape))))


HEADS = {
    "gemm": ("[n, 3]", "[n, 2]", "float[3, 2] w", "y = Gemm (x, w)"),
    "gemm transB": ("[n, 3]", "[n, 2]", "float[2, 3] w, float[2] b", "y = Gemm <transB = 1> (x, w, b)"),
    "gemm scalar bias": ("[n, 3]", "[n, 2]", "float[3, 2] w, float[1] b", "y = Gemm (x, w, b)"),
    "matmul": ("[n, 3]", "[n, 2]", "float[3, 2] w", "y = MatMul (x, w)"),
    "matmul of rank 3": ("[n, t, 3]", "[n, t, 2]", "float[3, 2] w, float[2] b", "z = MatMul (x, w) y = Add (b, z)"),
    "matmul from the left": ("[3, n]", "[2, n]", "float[2, 3] w, float[2, 1] b", "z = MatMul (w, x) y = Add (z, b)"),
    "transposed": (
        *("[n, 3]", "[n, 2]", "float[2, 3] w, float[1, 2] b"),
        "t = Transpose <perm = [1, 0]> (w) i = Identity (t) z = MatMul (x, i) c = Identity (z) y = Add (c, b)",
    ),
    "conv 1x1": ("[n, 3, 4, 5]", "[n, 2, 4, 5]", "float[2, 3, 1, 1] w, float[2] b", "y = Conv (x, w, b)"),
    "conv 3x3, no bias": ("[n, 3, 4, 5]", "[n, 2, 2, 3]", "float[2, 3, 3, 3] w", "y = Conv (x, w)"),
    "conv + add": (
        *("[n, 3, 4, 5]", "[n, 2, 4, 5]", "float[2, 3, 1, 1] w, float[1, 2, 1, 1] b"),
        "z = Conv (x, w) y = Add (z, b)",
    ),
    "conv, pooled": (
        *("[n, 3, 4, 5]", "[n, 2]", "float[2, 3, 1, 1] w, float[2] b"),
        "z = Conv (x, w, b) r = Relu (z) p = GlobalAveragePool (r) f = Flatten (p) y = Softmax (f)",
    ),
    "conv, mean": (
        *("[n, 3, 4, 5]", "[n, 2]", "float[2, 3, 1, 1] w, int64[2] a = {2, 3}"),
        "z = Conv (x, w) y = ReduceMean <keepdims = 0> (z, a)",
    ),
    "conv, squeezed": (
        *("[n, 3, 1, 1]", "[n, 2]", "float[2, 3, 1, 1] w, int64[2] a = {2, 3}"),
        "z = Conv (x, w) y = Squeeze (z, a)",
    ),
    "conv, reshaped": (
        *("[n, 3, 1, 1]", "[n, 2]", "float[2, 3, 1, 1] w, int64[2] a = {-1, 2}"),
        "z = Conv (x, w) y = Reshape (z, a)",
    ),
    "conv, reshaped by a rule": (
        *("[n, 3, 1, 1]", "[n, 2]", "float[2, 3, 1, 1] w, int64[2] a = {0, -1}"),
        "z = Conv (x, w) y = Reshape (z, a)",
    ),
    "segmentation": (
        *("[n, 3, 4, 5]", "[n, 2, 8, 10]", "float[2, 3, 1, 1] w, float[4] s = {1.0, 1.0, 2.0, 2.0}"),
        'z = Conv (x, w) y = Resize <mode = "linear"> (z, , s)',
    ),
    "segmentation by sizes": (
        *("[1, 3, 4, 5]", "[1, 2, 8, 10]", "float[2, 3, 1, 1] w, int64[4] s = {1, 2, 8, 10}"),
        'z = Conv (x, w) y = Resize <mode = "linear"> (z, , , s)',
    ),
    "segmentation by sizes of a run": (
        *("[n, 3, 4, 5]", "[n, 2, 8, 10]", "float[2, 3, 1, 1] w, int64[3] c = {2, 8, 10}"),
        "z = Conv (x, w) n = Shape <start = 0, end = 1> (x) s = Concat <axis = 0> (n, c) "
        'y = Resize <mode = "nearest"> (z, , , s)',
    ),
    "classes last": (
        *("[n, 3, 4, 5]", "[n, 4, 5, 2]", "float[2, 3, 1, 1] w"),
        "z = Conv (x, w) y = Transpose <perm = [0, 2, 3, 1]> (z)",
    ),
    "rows and tokens": (
        *("[n, 6, 3]", "[n, 6, 2]", "float[3, 2] w, int64[2] a = {-1, 3}, int64[3] c = {-1, 6, 2}"),
        "f = Reshape (x, a) z = MatMul (f, w) y = Reshape (z, c)",
    ),
    "a temperature": ("[n, 3]", "[n, 2]", "float[3, 2] w, float two = {2.0}", "z = MatMul (x, w) y = Div (z, two)"),
    "one more axis": (
        *("[n, 3]", "[n, 1, 2]", "float[3, 2] w, int64[1] a = {1}"),
        "z = MatMul (x, w) y = Unsqueeze (z, a)",
    ),
}


def layer(name: str, opset: int = 21) -> onnx.ModelProto:
    before, after, constants, nodes = HEADS[name]
    filled = []
    for one in constants.split(", int64")[0].split(", float"):
        kind = one if one.startswith("float") else f"float{one}"
        shape = [int(d) for d in kind.partition("[")[2].partition("]")[0].split(",")] if "[" in kind else []
        filled.append(kind if "=" in kind else f"{kind} = {{{numbers(*shape)}}}")
    rest = constants.partition(", int64")[2]
    whole = ", ".join(filled) + (f", int64{rest}" if rest else "")
    return text(f"g (float{before} x) => (float{after} y) <{whole}> {{ {nodes} }}", opset)


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("name", HEADS)
def test_the_output_is_that_of_the_graph_with_the_new_tensors(name: str, classes: int) -> None:
    """Held against the same graph written down with `classes` in place of 2."""
    given = layer(name)
    model = gradcut.replace_head(given, classes)
    made = tensors(model)
    shape = [int(dim) if dim.strip().isdigit() else 2 for dim in HEADS[name][0][1:-1].split(",")]
    (y,) = run(model, fed(*shape))
    said, was = model.graph.outputs[0].shape, given.graph.output[0].type.tensor_type.shape.dim
    assert said is not None and len(said) == y.ndim
    for dim, size, old in zip(said, y.shape, was, strict=True):
        assert dim == size if old.dim_value else str(dim) == old.dim_param
    weight = made["w"]
    assert weight.size % classes == 0
    drawn = uniform(classes, weight.size // classes).reshape(-1)
    assert sorted(weight.reshape(-1)) == sorted(drawn)
    np.testing.assert_allclose(y, expected(name, weight, fed(*shape)["x"]), rtol=1e-4, atol=1e-5)


def expected(name: str, weight: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """By torch; biases are zero."""
    t, w = torch.from_numpy(x), torch.from_numpy(weight.copy())
    if "conv" not in name and "segmentation" not in name and name != "classes last":
        if name == "matmul from the left":
            return (w @ t).numpy()
        y = torch.nn.functional.linear(t, w if name in ("gemm transB", "transposed") else w.T)
        y = y / 2 if name == "a temperature" else y
        return (y[:, None] if name == "one more axis" else y).numpy()
    y = torch.nn.functional.conv2d(t, w)
    if name == "conv, pooled":
        return y.relu().mean((2, 3)).softmax(1).numpy()
    if name == "conv, mean":
        return y.mean((2, 3)).numpy()
    if name.startswith(("conv, sq", "conv, re")):
        return y[:, :, 0, 0].numpy()
    if name.startswith("segmentation"):
        mode = "nearest" if name.endswith("run") else "bilinear"
        return torch.nn.functional.interpolate(y, size=(8, 10), mode=mode).numpy()
    return (y.movedim(1, 3) if name == "classes last" else y).numpy()


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 21, 23, 26])
def test_every_opset(opset: int, tmp_path: Path) -> None:
    model = text(
        """g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}>
        { z = MatMul (x, w) a = Add (z, b) y = Softmax <axis = 1> (a) }""",
        opset,
    )
    given = gradcut.replace_head(model, 4, activation="drop")
    assert given.opset_imports[""] == opset
    artifacts = gradcut.compile(given, "cross_entropy")
    assert artifacts.trainable == ("w", "b")
    session = gradcut.TrainingSession(artifacts, threads=1)
    result = session.step({**fed(5, 3), "labels": np.array([0, 1, 2, 3, 3])})
    assert result.outputs["y"].shape == (5, 4)
    session.export(tmp_path / "t.onnx")
    exported_model = onnx.load(tmp_path / "t.onnx")
    assert exported_model.opset_import[0].version == opset
    np.testing.assert_array_equal(tensors(tmp_path / "t.onnx")["w"], session.parameters()["w"])


def test_initializers_that_are_inputs_too() -> None:
    model = text(
        "g (float[n, 3] x, float[3, 2] w) => (float[n, 2] y) <float[3, 2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> "
        "{ y = MatMul (x, w) }",
        9,
    )
    replaced = gradcut.replace_head(model, 4)
    assert [str(value.shape) for value in replaced.graph.inputs] == ["[n,3]", "[3,4]"]
    np.testing.assert_allclose(run(replaced, fed(2, 3))[0], fed(2, 3)["x"] @ uniform(4, 3).T, rtol=1e-5)


def test_a_head_within_a_function_is_inlined() -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
    g (float[n, 3] x) => (float[n, 2] y) <float[2, 3] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> { y = mine.linear (x, w) }
    <domain: "mine", opset_import: ["" : 21]> linear (x, w) => (y) { y = Gemm <transB = 1> (x, w) }""")
    assert run(gradcut.replace_head(model, 4), fed(2, 3))[0].shape == (2, 4)


def test_a_file_that_names_its_parameters_names_the_new_ones() -> None:
    """An exporter's optimizer leaves the head's weight without its name; the new one is a parameter all the same."""
    model = ir.from_proto(layer("gemm transB"))
    model.graph.initializers["b"].metadata_props[KIND] = "InputKind.PARAMETER"
    with pytest.warns(gradcut.errors.GradcutWarning, match="w stands where weights do"):
        assert gradcut.compile(model, "mse").trainable == ("b",)
    assert gradcut.compile(gradcut.replace_head(model, 5), "mse").trainable == ("w", "b")


def test_other_dtypes_stay() -> None:
    for kind, dtype in (("float16", np.float16), ("double", np.float64)):
        model = text(
            f"g ({kind}[n, 3] x) => ({kind}[n, 2] y) <{kind}[3, 2] w = {{1, 2, 3, 4, 5, 6}}> {{ y = MatMul (x, w) }}"
        )
        weight = tensors(gradcut.replace_head(model, 4))["w"]
        assert weight.dtype == dtype
        np.testing.assert_allclose(weight, uniform(4, 3).T, rtol=1e-3)


# --- shared weights, frozen ones, several outputs -----------------------------------------------------------------


def test_a_tied_weight_stays_and_the_head_gets_its_own() -> None:
    model = text("""
    g (int64[n] ids) => (float[n, 4] y)
    <float[4, 3] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, float[4] table_head = {1, 1, 1, 1}>
    {
        h = Gather <axis = 0> (table, ids)
        t = Transpose <perm = [1, 0]> (table)
        z = MatMul (h, t)
        y = Add (z, table_head)
    }""")
    replaced = gradcut.replace_head(model, 6)
    found = tensors(replaced)
    np.testing.assert_array_equal(found["table"], tensors(ir.from_proto(model))["table"])
    np.testing.assert_array_equal(found["table_head_2"], uniform(6, 3).T)
    assert list(new_parameters(replaced)) == ["table_head_2", "table_head"]
    (y,) = run(replaced, {"ids": np.array([0, 2])})
    np.testing.assert_allclose(y, found["table"][[0, 2]] @ found["table_head_2"], rtol=1e-5)
    assert set(gradcut.compile(replaced, "cross_entropy").trainable) == {"table", "table_head_2", "table_head"}


def test_a_new_head_is_not_frozen() -> None:
    model = gradcut.freeze(exported("mlp"), "*")
    replaced = gradcut.replace_head(model, 4)
    assert gradcut.compile(replaced, "cross_entropy").trainable == ("head.bias", "head.weight")


TWO = """
g (float[n, 3] x) => (float[n, 2] p, float[n, 2] logits, int64[n] best, float[n, 4] value)
<float[3, 2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, float[3, 4] v = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}>
{
    logits = MatMul (x, w)
    p = Softmax (logits)
    best = ArgMax <axis = 1, keepdims = 0> (p)
    value = MatMul (x, v)
}"""


def test_other_outputs_stay_and_follow() -> None:
    model = gradcut.replace_head(text(TWO), 5, output="p")
    assert [f"{value.name}{value.shape}" for value in model.graph.outputs] == [
        *("p[n,5]", "logits[n,5]", "best[n]", "value[n,4]"),
    ]
    p, logits, best, value = run(model, fed(6, 3))
    assert p.shape == logits.shape == (6, 5) and (best == logits.argmax(1)).all()
    old = run(text(TWO), fed(6, 3))
    assert value.tobytes() == old[3].tobytes()
    by_value = gradcut.replace_head(text(TWO), 7, output="value")
    assert str(by_value.graph.outputs[3].shape) == "[n,7]"
    assert run(by_value, fed(6, 3))[0].tobytes() == old[0].tobytes()


def test_dropping_keeps_the_outputs_name() -> None:
    model = gradcut.replace_head(text(TWO), 5, output="p", activation="drop")
    p, logits, best, _ = run(model, fed(6, 3))
    assert p.tobytes() == logits.tobytes() and (best == logits.argmax(1)).all()
    assert "Softmax" not in [node.op_type for node in model.graph]


@pytest.mark.parametrize("after", ["Log", "Neg", "Tanh", "Clip", "LeakyRelu"])
def test_an_activation_that_something_reads_is_no_activation_at_the_end(after: str) -> None:
    """log(softmax(z)) without its softmax is the logarithm of negative numbers."""
    weight, x = "float[2, 3] w = {1, 2, 3, 4, 5, 6}", np.array([[-1.0, -2.0]], np.float32)
    model = text(
        f"g (float[n, 2] x) => (float[n, 3] y) <{weight}> {{ h = MatMul (x, w) p = Softmax (h) y = {after} (p) }}"
    )
    kept, dropped = (gradcut.replace_head(model, 4, activation=word) for word in ("keep", "drop"))
    np.testing.assert_array_equal(run(dropped, {"x": x})[0], run(kept, {"x": x})[0])


def test_axes_as_torchs_exporter_leaves_them_unfolded() -> None:
    """AdaptiveAvgPool2d(1) behind a head, exported with optimize=False: the axes are a Reshape of a Constant."""
    said = "float[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6}, float[n, 3, 1, 1] pooled"
    model = text(
        f"g (float[n, 2, 4, 4] x) => (float[n, 3] y) <{said}> {{ minus = Constant <value_ints = [-1]> () "
        "places = Constant <value = int64[2] {-1, -2}> () axes = Reshape (places, minus) h = Conv (x, w) "
        "pooled = ReduceMean (h, axes) three = Constant <value_ints = [3]> () flat = Concat <axis = 0> (minus, three) "
        "y = Reshape (pooled, flat) }"
    )
    new = gradcut.replace_head(model, 5)
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)
    expected = np.einsum("nchw,kc->nk", x, tensors(new)["w"][:, :, 0, 0]) / 16
    read = {name for node in new.graph for value in node.inputs if value is not None and (name := value.name)}
    assert {value.name for node in new.graph for value in node.outputs} <= read | {"y"}
    np.testing.assert_allclose(run(new, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "source",
    [
        "g (float[n, 4, 2, 2] x) => (float[n, 2, 1, 2] y) <float[2, 4, 2, 1] w, float[1, 1, 1, 2] p> "
        "{ h = Conv (x, w) y = Add (h, p) }",
        "g (float[n, 2, 4] x) => (float[n, 2, 2] y) <float[4, 2] w, float[2, 1] p> "
        "{ h = MatMul (x, w) y = Add (h, p) }",
    ],
    ids=["over the places of a convolution", "over the rows of a product"],
)
def test_as_many_numbers_along_another_axis_are_no_bias(source: str) -> None:
    model = text(re.sub(r"float\[([\d, ]+)\] ([wp])", _ones, source))
    given = model.SerializeToString()
    with pytest.raises(SpecError, match=r"\(Add\) holds 2 numbers \(p\)"):
        gradcut.replace_head(model, 5)
    assert model.SerializeToString() == given


def test_a_bias_without_axes_stays_one_number() -> None:
    model = text("g (float[n, 2] x) => (float[n, 1] y) <float[2, 1] w = {1, 2}, float b = {3}> { y = Gemm (x, w, b) }")
    assert run(gradcut.replace_head(model, 5), {"x": np.ones((2, 2), np.float32)})[0].shape == (2, 5)


def _ones(found: re.Match[str]) -> str:
    """The declaration of a tensor of ones."""
    size = math.prod(int(one) for one in found[1].split(","))
    return f"{found[0]} = {{{', '.join(['1'] * size)}}}"
