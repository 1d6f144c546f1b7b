"""Quantised models and tree ensembles are refused by what they are, by every command, before anything is written."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from typer.testing import CliRunner

import gradcut
from gradcut.cli.app import app
from gradcut.errors import UnsupportedModelError
from models import zoo
from tests.written import parse, session

DIGITS = zoo.MODELS / "digits.onnx"


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.batches = iter([zoo.example_inputs("digits", 8, 0)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantised(how: str, path: Path) -> None:
    """The digits model as onnxruntime's tools quantise it, which trip over what an exporter says of weights."""
    plain = onnx.load(DIGITS)
    plain.graph.ClearField("value_info")
    if how == "dynamic":
        quantize_dynamic(plain, path)
    else:
        quantize_static(plain, path, _Images(), QuantFormat.QDQ)


def quantised_convolution() -> onnx.ModelProto:
    return parse(
        """g (uint8[1,1,4,4] x) => (uint8[1,1,4,4] y)
        <float s = {0.1}, uint8 z = {0}, uint8[1,1,1,1] w = {3}> { y = QLinearConv (x, s, z, w, s, z, s, z) }"""
    )


def integer_product() -> onnx.ModelProto:
    return parse(
        """g (float[2,2] x) => (float[2,2] y) <uint8[2,2] w = {1, 2, 3, 4}, float[2] b = {1, 2}> {
        q, s, z = DynamicQuantizeLinear (x)
        p = MatMulInteger (q, w, z)
        f = Cast <to = 1> (p)
        m = Mul (f, s)
        y = Add (m, b) }"""
    )


def runtimes_own() -> onnx.ModelProto:
    """com.microsoft's operators are quantised ones too."""
    return parse(
        """g (uint8[2] x) => (uint8[2] y) <float s = {0.1}, uint8 z = {0}> {
        y = com.microsoft.QLinearAdd (x, s, z, x, s, z, s, z) }""",
        also=', "com.microsoft" : 1',
    )


def trees(op_type: str) -> onnx.ModelProto:
    """One split: 1 where x0 <= 0.5, else 2."""
    nodes = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [0, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_values": [0.5, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
    }
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    labels = helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])
    at = {"treeids": [0, 0], "nodeids": [1, 2], "ids": [0, 1], "weights": [1.0, 2.0]}
    if op_type == "TreeEnsembleRegressor":
        leaves = {f"target_{key}": [0, 0] if key == "ids" else value for key, value in at.items()}
        node, outputs = helper.make_node(op_type, ["x"], ["y"], "trees", n_targets=1, **nodes, **leaves), [y]
    elif op_type == "TreeEnsembleClassifier":
        leaves = {f"class_{key}": value for key, value in at.items()}
        node = helper.make_node(
            op_type, ["x"], ["label", "scores"], "trees", classlabels_int64s=[0, 1], **nodes, **leaves
        )
        outputs = [labels, scores]
    else:
        floats = lambda *values: numpy_helper.from_array(np.float32(values))
        said = {"nodes_splits": floats(0.5), "leaf_weights": floats(1, 2), "n_targets": 1, "tree_roots": [0]}
        said |= {"nodes_featureids": [0], "nodes_modes": numpy_helper.from_array(np.uint8([0]))}
        said |= {"nodes_truenodeids": [0], "nodes_falsenodeids": [1], "nodes_trueleafs": [1], "nodes_falseleafs": [1]}
        node, outputs = helper.make_node(op_type, ["x"], ["y"], "trees", leaf_targetids=[0, 0], **said), [y]
    node.domain = "ai.onnx.ml"
    version = 5 if op_type == "TreeEnsemble" else 3
    opsets = [helper.make_opsetid("ai.onnx.ml", version), helper.make_opsetid("", 18)]
    return helper.make_model(helper.make_graph([node], "g", [x], outputs), opset_imports=opsets, ir_version=8)


TREES = ["TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble"]
FILES = {
    **{how: functools.partial(quantised, how) for how in ("dynamic", "QDQ")},
    "QLinearConv": quantised_convolution,
    "MatMulInteger": integer_product,
    "QLinearAdd": runtimes_own,
    **{op_type: functools.partial(trees, op_type) for op_type in TREES},
}
FIRST = {"dynamic": "DynamicQuantizeLinear", "QDQ": "QuantizeLinear"}
FIRST |= {"MatMulInteger": "DynamicQuantizeLinear"}


@pytest.fixture(scope="module", params=FILES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name = request.param
    path = tmp_path_factory.mktemp("kinds") / f"{name}.onnx"
    if name in ("dynamic", "QDQ"):
        FILES[name](path)
    else:
        onnx.save(FILES[name](), path)
    return name, path


def said(name: str) -> str:
    op_type = FIRST.get(name, name)
    kind = "tree ensemble" if name in TREES else "quantised: it computes in integers"
    advice = "train it with the library that made it" if name in TREES else "export the float model"
    return rf"the model is (a )?{kind} \(.* is a {op_type}.*\), which gradients do not train; {advice}"


def test_the_file_runs(file: tuple[str, Path]) -> None:
    """What is refused here is a file that people have."""
    model = onnx.load(file[1])
    onnx.checker.check_model(model)
    session(model)


COMMANDS = {
    "compile": lambda path, out: [str(path), "--loss", "mse", "-o", str(out)],
    "compile a part": lambda path, out: [str(path), "--train", "head.*", "--freeze", "x", "-o", str(out)],
    "inspect": lambda path, out: [str(path)],
    "check": lambda path, out: [str(path)],
    "visualize": lambda path, out: [str(path), "-o", str(out)],
    "opt": lambda path, out: [str(path), "-p", "import", "-o", str(out)],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_is(file: tuple[str, Path], command: str, tmp_path: Path) -> None:
    name, path = file
    out = tmp_path / "out.svg" if command == "visualize" else tmp_path / "out.onnx"
    result = CliRunner().invoke(app, [command.split()[0], *COMMANDS[command](path, out)])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1 and not list(tmp_path.iterdir())
    with pytest.raises(UnsupportedModelError, match=said(name)):
        raise UnsupportedModelError(result.stderr.removeprefix("error: ").strip())


def test_from_python(file: tuple[str, Path]) -> None:
    name, path = file
    for call in (
        lambda: gradcut.compile(path, loss="mse"),
        lambda: gradcut.vjp(path, wrt=["x"], of=["y"]),
        lambda: gradcut.analyze(path, of=["y"], wrt=["x"]),
        lambda: gradcut.freeze(path, "*"),
    ):
        with pytest.raises(UnsupportedModelError, match=said(name)):
            call()


def test_integers_that_nothing_reads_are_no_bar() -> None:
    """What only goes out rounded leaves the rest of the model a float one."""
    model = parse(
        """g (float[3] x) => (float y, uint8[3] q, uint8[3] r) <float h = {0.5}, uint8 o = {3}> {
        q, s, z = DynamicQuantizeLinear (x)
        r = QuantizeLinear (x, h, o)
        y = Mul (s, s) }"""
    )
    x = np.float32([1, -2, 0.5])
    dX = session(gradcut.vjp(model, ["x"], ["y"])).run(None, {"x": x, "y_grad": np.array(1, np.float32)})[1]
    np.testing.assert_allclose(dX, 2 * 3 / 255**2 * np.float32([1, -1, 0]), rtol=1e-6)


STORED = parse("""
g (float[n, 2] x) => (float[n, 2] y)
<int8[2, 2] q = {1, 2, 3, 4}, float s = {0.5}, float[2] b = {1, 2}, float[2, 2] head = {1, 2, 3, 5}> {
    w = DequantizeLinear (q, s)
    h = Gemm (x, w, b)
    r = Relu (h)
    y = MatMul (r, head)
}""")


def test_weights_stored_as_integers_are_not_all_that_trains() -> None:
    """A float head behind them, or a bias among them, trains where it is named."""
    with pytest.raises(UnsupportedModelError, match=r"its weights are stored as integers \(.* is a DequantizeLinear\)"):
        gradcut.compile(STORED, loss="mse")
    artifacts = gradcut.compile(STORED, loss="mse", train=["head", "b"])
    assert set(artifacts.trainable) == {"head", "b"}
    feeds = {"x": np.float32([[1, 2], [3, -4]]), "labels": np.zeros((2, 2), np.float32)}
    found = gradcut.TrainingSession(artifacts, threads=1).gradients(feeds)
    hidden = np.maximum(feeds["x"] @ np.float32([[0.5, 1], [1.5, 2]]) + [1, 2], 0)
    weight = np.float32([[1, 2], [3, 5]])
    dy = 2 * (hidden @ weight) / 4
    np.testing.assert_allclose(found["head"], hidden.T @ dy, rtol=5e-3)  # onnxruntime multiplies such weights coarsely
    np.testing.assert_allclose(found["b"], ((dy @ weight.T) * (hidden > 0)).sum(0), rtol=5e-3)
