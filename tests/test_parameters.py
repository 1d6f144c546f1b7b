"""What is a parameter: the four rules."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.errors import SpecError
from gradcut.inspection import inspect
from gradcut.parameters import KIND, decide, parameters
from gradcut.rules import REGISTRY
from tests.written import parse


def kinds(text: str, **options: object) -> dict[str, str]:
    graph = ir.from_proto(parse(text, **options)).graph
    return {name: decision.kind for name, decision in decide(graph, REGISTRY).items()}


def of_weight(node: str, shape: str = "2,2", inputs: str = "float[2,2] x", kind: str = "float") -> str:
    """What `w` is where `node` reads it."""
    count = int(np.prod([int(d) for d in shape.split(",")])) if shape else 1
    numbers = ", ".join(["0.5" if kind != "int64" else "1"] * count)
    tensor = f"{kind}[{shape}] w = {{{numbers}}}" if shape else f"{kind} w = {{{numbers}}}"
    return kinds(f"g ({inputs}) => (float y) <{tensor}> {{ {node} }}")["w"]


# --- 1: where the file says ----------------------------------------------------------------------------------


def said(**kind: str) -> dict[str, str]:
    text = """g (float[2,2] x) => (float[2,2] y)
        <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 4}, int64[1] n = {1}> {
        """
    model = ir.from_proto(parse(text + " h = MatMul (x, w)  k = MatMul (h, v)  y = Gather (k, n) }"))
    for name, value in kind.items():
        model.graph.initializers[name].metadata_props[KIND] = value
    return {name: decision.kind for name, decision in decide(model.graph, REGISTRY).items()}


def test_the_file_says_which() -> None:
    assert said(w="InputKind.PARAMETER") == {"w": "parameter", "v": "constant", "n": "constant"}
    assert said(w="PARAMETER", v="InputKind.PARAMETER")["v"] == "parameter"
    assert said(v="InputKind.BUFFER") == {"w": "constant", "v": "constant", "n": "constant"}
    assert said(n="PARAMETER")["n"] == "constant"  # an integer does not train


def test_what_the_file_says_survives_saving() -> None:
    text = "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 4}> {"
    model = ir.from_proto(parse(text + " h = MatMul (x, w)  y = MatMul (h, v) }"))
    model.graph.initializers["w"].metadata_props[KIND] = "InputKind.PARAMETER"
    again = ir.from_proto(onnx.ModelProto.FromString(ir.to_proto(model).SerializeToString()))
    assert list(parameters(again.graph, REGISTRY)) == ["w"]


def test_a_weight_that_the_file_lost_is_overlooked_and_said() -> None:
    text = """g (float[2,2] x) => (float[2,2] y)
        <float[2,2] w = {1, 2, 3, 4}, float[2,2] val_7 = {1, 2, 3, 4}, float[2,2] ones = {1, 1, 1, 1}> {
        h = MatMul (x, w)  k = MatMul (h, val_7)  y = MatMul (k, ones) }"""
    model = ir.from_proto(parse(text))
    model.graph.initializers["w"].metadata_props[KIND] = "InputKind.PARAMETER"
    decisions = decide(model.graph, REGISTRY)
    assert [name for name, one in decisions.items() if one.overlooked] == ["val_7"]
    with pytest.warns(gradcut.errors.GradcutWarning, match="val_7 stands where weights do"):
        artifacts = gradcut.compile(model, loss="mse")
    assert artifacts.trainable == ("w",) and len(artifacts.manifest["warnings"]) == 1
    with pytest.raises(SpecError, match="strict: val_7 stand where weights do"):
        gradcut.compile(model, loss="mse", strict=True)
    assert gradcut.compile(model, loss="mse", train=["w", "val_7"], strict=True).trainable == ("w", "val_7")


# --- 2: where it reaches a weight ----------------------------------------------------------------------------

IMAGE = "float[1,2,4,4] x"


@pytest.mark.parametrize(
    "node",
    [
        "y = MatMul (x, w)",
        "y = MatMul (w, x)",
        "y = Gemm (x, w)",
        "y = Gemm (x, x, w)",
        "y = Gather (w, i)",
        "y = Add (x, w)",
        "y = Mul (w, x)",
        "y = PRelu (x, w)",
        "t = Transpose (w)  y = MatMul (x, t)",
        "t = CastLike (w, x)  y = MatMul (x, t)",
        "t = Cast <to = 1> (w)  u = Identity (t)  y = MatMul (x, u)",
        "t = Unsqueeze (w, i)  u = Squeeze (t, i)  y = MatMul (x, u)",
        "t = Concat <axis = 0> (x, w)  y = MatMul (x, t)",
        "t = Reshape (w, i)  y = MatMul (x, t)",
        "t = gradcut.StopGradient (w)  y = MatMul (x, t)",
    ],
)
def test_reaching_a_weight_makes_a_parameter(node: str) -> None:
    assert of_weight(node, inputs="float[2,2] x, int64[1] i") == "parameter"


@pytest.mark.parametrize(
    ("node", "shape", "inputs"),
    [
        ("y = Conv (x, w)", "3,2,1,1", IMAGE),
        ("y = Conv (x, f, w)", "3", IMAGE + ", float[3,2,1,1] f"),
        ("y = ConvTranspose (x, w)", "2,3,1,1", IMAGE),
        ("y = LayerNormalization (x, w)", "4", IMAGE),
        ("y = LayerNormalization (x, s, w)", "4", IMAGE + ", float[4] s"),
        ("y = InstanceNormalization (x, w, s)", "2", IMAGE + ", float[2] s"),
        ("y = GroupNormalization <num_groups = 1> (x, w, s)", "2", IMAGE + ", float[2] s"),
        ("y = BatchNormalization (x, w, s, s, s)", "2", IMAGE + ", float[2] s"),
        ("y = BatchNormalization (x, s, w, s, s)", "2", IMAGE + ", float[2] s"),
        ("y, h = GRU <hidden_size = 1> (x, w, s)", "1,3,2", "float[1,1,2] x, float[1,3,1] s"),
        ("y, h = LSTM <hidden_size = 1> (x, s, w)", "1,4,1", "float[1,1,2] x, float[1,4,2] s"),
        ("y, h = RNN <hidden_size = 1> (x, s, t, w)", "1,2", "float[1,1,2] x, float[1,1,2] s, float[1,1,1] t"),
    ],
)
def test_each_declared_weight(node: str, shape: str, inputs: str) -> None:
    assert of_weight(node, shape, inputs) == "parameter"


def test_an_add_of_one_element_is_a_bias_only_behind_a_matmul_by_a_constant() -> None:
    matmul = "g (float[2,2] x) => (float[2,1] y) <float[2,1] w = {1, 2}, float[1] b = {3}> {"
    assert kinds(matmul + "h = MatMul (x, w)  y = Add (h, b) }") == {"w": "parameter", "b": "parameter"}
    assert kinds(matmul + "h = MatMul (x, w)  y = Add (b, h) }")["b"] == "parameter"
    assert kinds(matmul + "h = MatMul (x, w)  y = Mul (h, b) }")["b"] == "constant"
    assert kinds(matmul + "h = MatMul (x, w)  r = Relu (h)  y = Add (r, b) }")["b"] == "constant"
    assert of_weight("y = Add (x, w)", "1") == "constant"
    assert of_weight("h = MatMul (x, x)  y = Add (h, w)", "1") == "constant"


def test_a_weight_inside_a_branch() -> None:
    text = """g (bool c, float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> {
        y = If (c) <then_branch = a () => (float[2,2] p) { p = MatMul (x, w) },
                    else_branch = b () => (float[2,2] q) { q = Relu (x) }> }"""
    assert kinds(text) == {"w": "parameter"}


def test_constants_in_nodes_count_as_initializers_do() -> None:
    text = """g (float[2] x) => (float[2] y) {
        w = Constant <value = float[2] {1, 2}> ()  v = Constant <value_floats = [1.0, 2.0]> ()
        s = Constant <value_float = 2.0> ()  n = Constant <value_ints = [2]> ()
        a = Mul (x, w)  b = Add (a, v)  c = Mul (b, s)  y = Reshape (c, n) }"""
    assert kinds(text) == {"w": "parameter", "v": "parameter", "s": "constant", "n": "constant"}


# --- 3 and 4: state and constants ----------------------------------------------------------------------------


def test_running_statistics_are_state() -> None:
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y)
        <float[2] s = {1, 1}, float[2] b = {1, 1}, float[2] m = {1, 1}, float[2] v = {1, 1}> {
        y = BatchNormalization (x, s, b, m, v) }"""
    assert kinds(text) == {"s": "parameter", "b": "parameter", "m": "state", "v": "state"}


@pytest.mark.parametrize(
    ("node", "shape", "kind"),
    [
        ("y = Div (x, w)", "2,2", "float"),
        ("y = Sub (x, w)", "2,2", "float"),
        ("y = Pow (x, w)", "2,2", "float"),
        ("y = Add (x, w)", "", "float"),
        ("y = Clip (x, w)", "", "float"),
        ("y = Where (c, x, w)", "2,2", "float"),
        ("y = Reshape (x, w)", "2", "int64"),
        ("h = MatMul (w, w)  y = MatMul (x, h)", "2,2", "float"),
        ("h = Relu (w)  y = MatMul (x, h)", "2,2", "float"),
        ("y = Relu (x)", "2,2", "float"),
    ],
)
def test_everything_else_is_constant(node: str, shape: str, kind: str) -> None:
    assert of_weight(node, shape, "float[2,2] x, bool[2,2] c", kind) == "constant"


@pytest.mark.parametrize("number", ["-inf", "-1e9", "-65504"])
def test_a_mask_is_constant(number: str) -> None:
    model = ir.from_proto(parse("g (float[2] x) => (float[2] y) <float[2] w = {0, 1}> { y = Add (x, w) }"))
    model.graph.initializers["w"].const_value = ir.tensor(np.float32([0, float(number)]), name="w")
    (decision,) = decide(model.graph, REGISTRY).values()
    assert (decision.kind, decision.reason) == ("constant", "a mask of very large or infinite numbers")


def test_each_decision_has_a_reason_and_a_size() -> None:
    text = """g (float[2,3] x) => (float[2,4] y) <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float e = {1}> {
        [mm] h = MatMul (x, w)  y = Add (h, e) }"""
    graph = ir.from_proto(parse(text)).graph
    w, e = decide(graph, REGISTRY).values()
    assert (w.name, w.reason, w.shape, w.size) == ("w", "operand 1 of MatMul (mm)", (3, 4), 12)
    assert (e.reason, e.size) == ("a scalar", 1)


def test_a_constant_of_ones_is_a_weight_only_where_all_weights_are_constants() -> None:
    norm = "y = LayerNormalization (h, s, b) }"
    constants = "s = Constant <value = float[2] {1, 1}> ()  b = Constant <value = float[2] {0, 0}> () "
    head = "g (float[2,2] x) => (float[2,2] y) "
    beside = kinds(head + "<float[2,2] w = {1, 2, 3, 4}> { " + constants + "h = MatMul (x, w) " + norm)
    assert beside == {"w": "parameter", "s": "constant", "b": "constant"}
    weight = "w = Constant <value = float[2,2] {1, 2, 3, 4}> () "
    assert set(kinds(head + "{ " + weight + constants + "h = MatMul (x, w) " + norm).values()) == {"parameter"}


def test_a_weight_behind_slice_and_split() -> None:
    text = """g (float[2,2] x) => (float[2,2] y)
        <float[2,6] qkv = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, int64[1] a = {0}, int64[1] e = {2}, int64[1] i = {1},
         float[2,4] kv = {1, 2, 3, 4, 5, 6, 7, 8}> {
        q = Slice (qkv, a, e, i)  k, v = Split <axis=1, num_outputs=2> (kv)
        h = MatMul (x, q)  j = Add (x, k)  y = MatMul (h, v) }"""
    found = kinds(text)
    assert found["qkv"] == found["kv"] == "parameter"


@pytest.mark.parametrize("rest", ["unused = MatMul (x, w2)", "sh = Shape (w2)  unused = Expand (h, sh)"])
def test_a_parameter_that_nothing_needs_is_unreached(rest: str) -> None:
    model = parse(
        """g (float[2,2] x) => (float[2,2] y)
        <float[2,2] w1 = {1, 2, 3, 4}, float[2,2] w2 = {1, 2, 3, 4}> {
        h = MatMul (x, w1)  k = MatMul (x, w2)  y = Relu (h) """
        + rest
        + " }"
    )
    artifacts = gradcut.compile(model, loss="mse")
    assert artifacts.trainable == ("w1",) and artifacts.manifest["unreached"] == {"w2": "no-path-to-loss"}


COMPUTED = """g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}, float[1] b = {1}> {
    s = Constant <value_ints = [2]> ()  half = ConstantOfShape <value = float[1] {0.5}> (s)
    k = Constant <value = float[2,2] {1, 2, 3, 4}> ()  n = Neg (k)
    h = MatMul (x, w)  i = MatMul (h, n)  j = Add (i, half)  y = Add (j, b) }"""


@pytest.mark.parametrize("pipeline", ["import", "fold", "import,fold", "import,fold,simplify"])
def test_what_a_pass_computes_is_no_parameter_to_compile_and_to_inspect(pipeline: str) -> None:
    """`fold` makes a Constant where a weight could stand."""
    model = gradcut.Pipeline.parse(pipeline)(ir.from_proto(parse(COMPUTED))).model
    model = ir.from_proto(ir.to_proto(model))
    inspected = {one.name for one in inspect(model).decisions if one.kind == "parameter"}
    compiled = {one["name"]: one["status"] for one in gradcut.compile(model).manifest["parameters"]}
    assert compiled == dict.fromkeys(inspected, "trained") == {"w": "trained"}


def test_a_weight_inside_a_function_that_stays_one_has_no_name_in_what_is_emitted() -> None:
    function = """<domain: "own", opset_import: ["": 21]>
        F (X) => (Y) { c = Constant <value = float[2,2] {1, 2, 3, 4}> ()  Y = MatMul (X, c) }"""
    text = "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> { h = MatMul (x, w)  y = own.F (h) } "
    session = gradcut.TrainingSession(
        gradcut.compile(parse(text + function, also=', "own" : 1'), loss="mse", train=["w"])
    )
    assert list(session.parameters()) == ["w"]
