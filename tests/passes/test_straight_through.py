"""Quantised models whose rounding gradients pass when asked, against torch's fake quantisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from typer.testing import CliRunner

import gradcut
from gradcut.cli.app import app
from gradcut.errors import SpecError, UnsupportedModelError
from gradcut.rules import REGISTRY
from gradcut.runtime.check import check_gradients
from models import zoo
from tests.written import parse, session

SEED = 20240811
ON = "straight-through"


def pair(
    kind: int, scale: np.ndarray, zero: np.ndarray | None, shape: tuple[int, ...], opset: int = 21, **attributes: int
) -> onnx.ModelProto:
    """y = DequantizeLinear(QuantizeLinear(x))."""
    names = ["s"] if zero is None else ["s", "z"]
    typed = {"output_dtype": kind} if zero is None and opset >= 21 else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *names], ["q"], "quantize", **attributes, **typed),
        helper.make_node("DequantizeLinear", ["q", *names], ["y"], "dequantize", **attributes),
    ]
    weights = [numpy_helper.from_array(scale, "s")]
    if zero is not None:
        weights.append(helper.make_tensor("z", kind, zero.shape, zero.ravel().tolist()))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def gradient(model: onnx.ModelProto, x: np.ndarray, dY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    proto = gradcut.vjp(model, ["x"], ["y"], quantized=ON)
    y, dX = session(proto).run(None, {"x": x, "y_grad": dY})
    return y, dX


def data(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    return (3 * rng.standard_normal(shape)).astype(np.float32), rng.standard_normal(shape).astype(np.float32)


RANGES = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
}


@pytest.mark.parametrize("kind", RANGES, ids=TensorProto.DataType.Name)
def test_one_scale(kind: int) -> None:
    low, high = RANGES[kind]
    scale, zero = 5.0 / (high - low), (high + low) // 2 + 1
    x, dY = data(4, 50)
    y, dX = gradient(pair(kind, np.float32(scale), np.array(zero), x.shape), x, dY)
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.fake_quantize_per_tensor_affine(tensor, float(np.float32(scale)), zero, low, high)
    expected.backward(torch.tensor(dY))
    assert tensor.grad is not None
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(dX, tensor.grad.numpy())
    assert 0 < np.count_nonzero(dX) < dX.size


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", [13, 21])
def test_a_scale_for_each_place_of_an_axis(axis: int, opset: int) -> None:
    x, dY = data(3, 4, 5)
    size = x.shape[axis]
    scale, zero = np.linspace(0.01, 0.03, size, dtype=np.float32), np.arange(size, dtype=np.int32) * 9 - 20
    y, dX = gradient(pair(TensorProto.INT8, scale, zero, x.shape, opset, axis=axis), x, dY)
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.fake_quantize_per_channel_affine(
        tensor, torch.tensor(scale), torch.tensor(zero), axis % 3, -128, 127
    )
    expected.backward(torch.tensor(dY))
    assert tensor.grad is not None
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(dX, tensor.grad.numpy())


def test_blocks() -> None:
    """Each block of 2 along axis 1 is a tensor of its own scale, the last one shorter."""
    x, dY = data(2, 5)
    scale = np.float32([[0.01, 0.02, 0.03], [0.02, 0.01, 0.04]])
    model = pair(TensorProto.INT8, scale, np.zeros((2, 3), np.int8), x.shape, axis=1, block_size=2)
    _, dX = gradient(model, x, dY)
    for row in range(2):
        for block in range(3):
            part = slice(2 * block, 2 * block + 2)
            tensor = torch.tensor(x[row, part], requires_grad=True)
            torch.fake_quantize_per_tensor_affine(tensor, float(scale[row, block]), 0, -128, 127).backward(
                torch.tensor(dY[row, part])
            )
            assert tensor.grad is not None
            np.testing.assert_array_equal(dX[row, part], tensor.grad.numpy())


def test_floats_of_eight_bits() -> None:
    x, dY = data(4, 50)
    model = pair(TensorProto.FLOAT8E4M3FN, np.float32(0.01), None, x.shape)
    _, dX = gradient(model, x, dY)
    np.testing.assert_array_equal(dX, np.where(np.abs(x / np.float32(0.01)) <= 448, dY, 0))


@pytest.mark.parametrize("opset", [11, 21, 26])
def test_dynamic(opset: int) -> None:
    """A scale for the numbers at hand; a second use of it has the scale's own derivative."""
    model = parse(
        """g (float[4,50] x) => (float[4,50] y, float t) {
        q, s, z = DynamicQuantizeLinear (x)
        y = DequantizeLinear (q, s, z)
        t = Mul (s, s) }""",
        opset,
    )
    x, dY = data(4, 50)
    proto = gradcut.vjp(model, ["x"], ["y", "t"], quantized=ON)
    y, _, dX = session(proto).run(None, {"x": x, "y_grad": dY, "t_grad": np.array(3, np.float32)})
    tensor = torch.tensor(x, requires_grad=True)
    scale = (tensor.max() - tensor.min()) / 255
    low, step = float(x.min()), float(scale.detach())
    rounded = torch.fake_quantize_per_tensor_affine(tensor, step, round(-low / step), 0, 255)
    (rounded * torch.tensor(dY)).sum().backward(retain_graph=True)
    (3 * scale**2).backward()
    assert tensor.grad is not None
    np.testing.assert_allclose(y, rounded.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dX, tensor.grad.numpy(), rtol=1e-5, atol=1e-7)
    assert check_gradients(model, {"x": x}, ["x"], quantized=ON).ok


@pytest.mark.parametrize(
    "kind", [TensorProto.INT16, TensorProto.UINT8, TensorProto.INT4], ids=TensorProto.DataType.Name
)
def test_pairs_of_the_runtimes_own(kind: int) -> None:
    x, dY = data(4, 50)
    model = pair(kind, np.float32(0.02), np.array(3), x.shape)
    y, dX = gradient(model, x, dY)
    for node in model.graph.node:
        node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for found, expected in zip(gradient(model, x, dY), (y, dX), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_refused_unless_asked() -> None:
    model = pair(TensorProto.INT8, np.float32(0.1), np.array(0), (2, 3))
    with pytest.raises(UnsupportedModelError, match="--quantized straight-through"):
        gradcut.vjp(model, ["x"], ["y"])
    with pytest.raises(SpecError, match="quantized is 'refuse' or 'straight-through', not 'yes'"):
        gradcut.vjp(model, ["x"], ["y"], quantized="yes")


def test_integers_that_something_else_reads_are_refused() -> None:
    model = pair(TensorProto.INT8, np.float32(0.1), np.array(0), (2, 3))
    model.graph.node.insert(1, helper.make_node("Neg", ["q"], ["n"], "negate"))
    model.graph.node[2].input[0] = "n"
    with pytest.raises(UnsupportedModelError, match=r"'quantize' \(QuantizeLinear\) gives integers to node 'negate'"):
        gradcut.vjp(model, ["x"], ["y"], quantized=ON)


def test_another_scale_behind_is_refused() -> None:
    model = pair(TensorProto.INT8, np.float32(0.1), np.array(0), (2, 3))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.2), "other"))
    model.graph.node[1].input[1] = "other"
    with pytest.raises(UnsupportedModelError, match="another scale"):
        gradcut.vjp(model, ["x"], ["y"], quantized=ON)


# --- whole models --------------------------------------------------------------------------------------------


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.batches = iter([zoo.example_inputs("digits", 8, 0)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    plain = onnx.load(zoo.MODELS / "digits.onnx")
    plain.graph.ClearField("value_info")
    quantize_static(plain, tmp_path / "q.onnx", _Images(), QuantFormat.QDQ)
    return tmp_path / "q.onnx"


def test_the_input_of_a_quantised_model_gets_nearly_the_gradient_of_the_float_one(quantised: Path) -> None:
    feeds = zoo.example_inputs("digits", 8, 0)
    (name,), found = feeds, []
    for model, options in ((zoo.MODELS / "digits.onnx", {}), (quantised, {"quantized": ON})):
        output = onnx.load(model).graph.output[0].name
        proto = gradcut.vjp(model, [name], [output], **options)
        run = session(proto)
        cotangent = proto.graph.input[-1].name
        logits = run.run([output], {**feeds, cotangent: np.zeros((8, 10), np.float32)})[0]
        found.append(run.run(None, {**feeds, cotangent: np.ones_like(logits) * np.arange(10, dtype=np.float32)})[1])
    float_, rounded = (g.ravel().astype(np.float64) for g in found)
    assert float_ @ rounded / np.linalg.norm(float_) / np.linalg.norm(rounded) > 0.9


def test_a_check_holds_the_rounding_still(tmp_path: Path) -> None:
    onnx.save(pair(TensorProto.INT8, np.float32(0.05), np.array(0), (3, 4)), tmp_path / "m.onnx")
    arguments = ["check", str(tmp_path / "m.onnx"), "--wrt", "x"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code != 0 and "--quantized straight-through" in refused.output
    result = CliRunner().invoke(app, [*arguments, "--quantized", ON])
    assert result.exit_code == 0, result.output
    assert "1 gradients agree with finite differences" in result.output


@pytest.mark.parametrize("seed", [0, 1])
def test_a_check_of_a_quantised_model_is_sharp(quantised: Path, seed: int) -> None:
    """What rounds to another number in float64 than in the runtime is held as the runtime rounded it."""
    report = check_gradients(quantised, zoo.example_inputs("digits", 2, 0), seed=seed, quantized=ON)
    assert report.ok and report.forward.startswith("float64"), str(report)
    assert all(value.error <= 1e-4 * abs(value.numeric) for value in report.values), str(report)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_check_sees_where_the_range_ends(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient stops there; one that does not is found out."""
    if wrong:
        (rule,) = [rule for rule in REGISTRY if rule.op_type == "StraightThrough"]
        through = replace(rule, vjp=lambda op: iter([("X", op.dY)]))
        monkeypatch.setitem(REGISTRY._rules, (rule.domain, rule.op_type), [through])
    x, _ = data(4, 50)
    report = check_gradients(
        pair(TensorProto.INT8, np.float32(0.02), np.array(3), x.shape), {"x": x}, ["x"], quantized=ON
    )
    assert report.ok is not wrong, str(report)


def test_weights_before_a_pair_train(tmp_path: Path) -> None:
    """Quantisation-aware training: the float weight is a parameter, its rounding passes the gradient."""
    model = pair(TensorProto.INT8, np.float32(0.05), np.array(0), (3, 4))
    weight = numpy_helper.from_array(data(3, 4)[0], "x")
    graph = model.graph
    del graph.input[:], graph.output[:]
    graph.initializer.append(weight)
    graph.input.append(helper.make_tensor_value_info("in", TensorProto.FLOAT, ["N", 3]))
    graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4]))
    graph.node.append(helper.make_node("MatMul", ["in", "y"], ["out"]))
    path = tmp_path / "qat.onnx"
    onnx.save(model, path)
    result = CliRunner().invoke(app, ["compile", str(path), "--loss", "mse", "--quantized", ON, "-o", f"{tmp_path}/d"])
    assert result.exit_code == 0, result.output
    art = gradcut.TrainingArtifacts.load(tmp_path / "d")
    x, labels = data(6, 3)[0], data(6, 4)[1]
    found = gradcut.TrainingSession(art, threads=1).gradients({"in": x, "labels": labels})
    w = torch.tensor(numpy_helper.to_array(weight), requires_grad=True)
    rounded = torch.fake_quantize_per_tensor_affine(w, float(np.float32(0.05)), 0, -128, 127)
    torch.nn.functional.mse_loss(torch.tensor(x) @ rounded, torch.tensor(labels)).backward()
    assert w.grad is not None
    np.testing.assert_allclose(found["x"], w.grad.numpy(), rtol=1e-5, atol=1e-7)
