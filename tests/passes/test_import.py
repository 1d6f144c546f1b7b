"""`import`: any model taken becomes one form, and computes what it computed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.passes import Import, verify
from gradcut.rules import REGISTRY
from gradcut.runtime.check import check_gradients, require
from tests.written import gradients, lines, parse, run, session

SEEDED = np.random.default_rng(0)


def imported(text: str, **options: object) -> ir.Model:
    model = ir.from_proto(parse(text, **options))
    Import()(model)
    verify(model, "import")
    return model


# --- opsets --------------------------------------------------------------------------------------------------

IMAGE = SEEDED.normal(size=(1, 2, 4, 6)).astype(np.float32)
WEIGHT = ", ".join(f"{value:.3f}" for value in SEEDED.normal(size=72))
BRANCHES = """y = If (c) <then_branch = a () => (float[1,2,4,6] p) { p = Softmax <axis = 1> (x) },
                          else_branch = b () => (float[1,2,4,6] q) { q = Neg (x) }>"""
HALF_PIXEL = '<mode = "linear", coordinate_transformation_mode = "half_pixel">'
FULL, WIDE = "1,2,4,6", "1,2,8,9"
#: Nodes whose operators changed between opsets, the shape of y, and the opsets that they are written for.
CONVERTED = [
    ("y = Softmax <axis = 1> (x)", FULL, (7, 9, 11, 12)),
    ("y = LogSoftmax (x)", FULL, (7, 11, 12, 13, 20)),
    ("y = Hardmax (x)", FULL, (7, 9, 11, 12, 13)),
    ("y = Hardmax <axis = 2> (x)", "N,2,M,6", (9, 11, 13)),
    ("y = Hardmax <axis = 0> (x)", FULL, (11,)),
    ("h = Hardmax <axis = 3> (x)  y = Neg (h)", FULL, (11, 12)),
    ("y = ReduceSum <axes = [3], keepdims = 0> (x)", "1,2,4", (7, 11, 12)),
    ("y = ReduceMean <axes = [2, -1]> (x)", "1,2,1,1", (11, 13, 17)),
    ("y = Clip <min = -0.5, max = 0.5> (x)", FULL, (7, 9, 10)),
    ("q = Squeeze <axes = [0]> (x)  y = Unsqueeze <axes = [3]> (q)", "2,4,6,1", (9, 11, 12)),
    ("y = Pad <pads = [0,0,1,0,0,0,1,0], value = 2.0> (x)", "1,2,6,6", (7, 10)),
    ("y = Slice <axes = [2], starts = [1], ends = [3]> (x)", "1,2,2,6", (7, 9)),
    ("y, z = Split <axis = 3> (x)", "1,2,4,3", (7, 11, 13, 17)),
    ("y, i = TopK <k = 2> (x)", "1,2,4,2", (7, 9)),
    ("y = Dropout <ratio = 0.7> (x)", FULL, (7, 10, 11)),
    ("f = Flatten <axis = 3> (x)  y = Gemm (f, w, r)", "8,12", (7, 9, 11, 13)),
    ('y = Upsample <mode = "nearest"> (x, s)', WIDE, (9,)),
    ('y = Upsample <mode = "linear"> (x, s)', WIDE, (9,)),
    ('y = Resize <mode = "nearest"> (x, s)', WIDE, (10,)),
    ('y = Resize <mode = "linear"> (x, s)', WIDE, (10,)),
    ('p = Mul (s, s)  t = Sqrt (p)  y = Resize <mode = "linear"> (x, t)', WIDE, (10,)),
    (f"y = Resize {HALF_PIXEL} (x, , s)", WIDE, (13, 18)),
    ("y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)", FULL, (7, 10, 11, 19)),
    ("y = BatchNormalization (x, v, v, v, v)", FULL, (7, 9, 13, 14, 15)),
    ("b = Greater (x, x)  c1 = Cast <to = 1> (b)  y = Add (c1, x)", FULL, (7, 9, 11, 13, 19)),
    ("y = Mul (x, column)", FULL, (7, 13, 14)),
    (BRANCHES, FULL, (9, 11, 13, 19)),
]
CONSTANTS = f"""float[6,12] w = {{{WEIGHT}}}, float[1] r = {{2}}, float[4] s = {{1, 1, 2, 1.5}}, float[2] v = {{1, 4}},
    float[4,1] column = {{1, 2, 3, 4}}"""


@pytest.mark.parametrize(("nodes", "shape", "opset"), [(n, s, opset) for n, s, opsets in CONVERTED for opset in opsets])
def test_a_converted_model_computes_the_same(nodes: str, shape: str, opset: int) -> None:
    inputs = "float[1,2,4,6] x" + (", bool c" if "If" in nodes else "")
    text = f"g ({inputs}) => (float[{shape}] y) <{CONSTANTS}> {{ {nodes} }}"
    given = parse(text, opset=opset, ir_version=4 if opset < 11 else 8)
    feeds = {"x": IMAGE, **({"c": np.array(True)} if "If" in nodes else {})}
    expected = session(given).run(None, feeds)
    model = ir.from_proto(given)
    Import()(model)
    verify(model, "import")
    assert model.opset_imports[""] == 21
    model.ir_version = 10
    for mine, theirs in zip(run(model, feeds), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", range(21, 27))
def test_newer_opsets_stay(opset: int) -> None:
    assert imported("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=opset).opset_imports[""] == opset


@pytest.mark.parametrize("opset", [1, 5, 27, 99])
def test_others_are_refused_by_number(opset: int) -> None:
    model = ir.from_proto(parse("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=opset))
    with pytest.raises(gradcut.errors.UnsupportedModelError) as raised:
        Import()(model)
    assert str(raised.value).startswith(f"the model is at opset {opset}; gradcut takes opsets 6 to 26.")


def test_the_other_name_of_the_standard_domain() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[0].domain = "ai.onnx"
    assert gradcut.analyze(model, of=["y"], wrt=["x"]).active == {"x", "y"}


def test_metadata_names_and_weights_live_through_a_conversion() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> {
        [mm] h = MatMul (x, w)  y = Dropout <ratio = 0.5> (h) }"""
    given = ir.from_proto(parse(text, opset=11, props='"who" : "me"'))
    given.graph[0].metadata_props["scope"] = "head"
    given.graph.initializers["w"].metadata_props["kind"] = "PARAMETER"
    weight = given.graph.initializers["w"].const_value
    Import()(given)
    assert [node.name for node in given.graph if node.op_type != "Constant"] == ["mm", "Dropout_y"]
    assert given.graph[0].metadata_props["scope"] == "head"
    assert given.graph.initializers["w"].metadata_props["kind"] == "PARAMETER"
    assert given.graph.initializers["w"].const_value is weight
    assert given.metadata_props["who"] == "me"


# --- functions -----------------------------------------------------------------------------------------------

BLOCK = """
<domain: "my", opset_import: ["" : %d, "gradcut" : 1]>
Block (X) => (Y) { s = gradcut.StopGradient (X)  t = Mul (s, X)  Y = Neg (t) }
"""


@pytest.mark.parametrize("opset", [13, 21])
def test_functions_are_inlined_and_marks_come_out_of_them(opset: int) -> None:
    text = "g (float[2] x) => (float[2] y) { h = my.Block (x)  y = my.Block (h) }" + BLOCK % opset
    model = imported(text, opset=opset, also=', "my" : 1')
    assert [node.op_type for node in model.graph] == ["StopGradient", "Mul", "Neg"] * 2
    assert [key[:2] for key in model.functions] == [("gradcut", "StopGradient")]
    assert len({node.name for node in model.graph}) == 6


def test_functions_within_functions() -> None:
    text = (
        "g (float[2] x) => (float[2] y) { y = my.Outer (x) }"
        + BLOCK % 21
        + """
        <domain: "my", opset_import: ["" : 21, "my" : 1]>
        Outer (A) => (B) { u = my.Block (A)  B = my.Block (u) }"""
    )
    assert len(imported(text, also=', "my" : 1').graph) == 6


def test_a_function_with_attributes() -> None:
    text = """g (float[2] x) => (float[2] y) { h = my.Leaky <slope = 0.5> (x)  y = my.Leaky <slope = 0.25> (h) }
        <domain: "my", opset_import: ["" : 21]>
        Leaky <slope> (X) => (Y) { Y = LeakyRelu <alpha: float = @slope> (X) }"""
    model = imported(text, also=', "my" : 1')
    assert lines(model) == ["h = LeakyRelu <alpha: float = 0.5> (x)", "y = LeakyRelu <alpha: float = 0.25> (h)"]


def test_a_mark_whose_function_the_file_lacks() -> None:
    text = parse("g (float[2] x) => (float[2] y) { h = gradcut.StopGradient (x)  y = Relu (h) }")
    del text.functions[:]
    model = ir.from_proto(text)
    Import()(model)
    verify(model, "import")
    assert gradcut.analyze(text, of=["y"], wrt=["x"]).varied == {"x"}


# --- the graph -----------------------------------------------------------------------------------------------


def test_unnamed_and_doubly_named_nodes_get_names() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Relu (x)  [n] b = Neg (a)  [n] c = Exp (b)  y = Relu (c) }"
    assert [node.name for node in imported(text).graph] == ["Relu_a", "n", "n_2", "Relu_y"]


def test_names_inside_branches_are_unique_too() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] o) {
            [n] o = Neg (x) }, else_branch = b () => (float[2] o) { [n] o = Exp (x) }> }"""
    assert sorted(node.name for node in imported(text).graph.all_nodes()) == ["If_y", "n", "n_2"]


def test_an_initializer_that_is_an_input_is_an_initializer() -> None:
    text = "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul (x, w) }"
    assert [value.name for value in imported(text).graph.inputs] == ["x"]


def test_constants_that_are_parameters_become_initializers_under_their_name() -> None:
    text = """g (float[2] x) => (float[2] y) {
        w = Constant <value_floats = [3.0, 4.0]> ()  s = Constant <value_float = 2.0> ()  h = Mul (x, w)
        y = Mul (h, s) }"""
    model = imported(text)
    assert model.graph.initializers["w"].const_value.numpy().tolist() == [3, 4]
    assert lines(model) == ["s = Constant <value_float: float = 2> ()", "h = Mul (x, w)", "y = Mul (h, s)"]
    assert run(model, {"x": [1, 1]})[0].tolist() == [6, 8]


def test_types_and_shapes_are_inferred_and_what_the_file_says_stays() -> None:
    text = "g (float[N,3] x) => (float[N,3] y) <float[batch,3] k> { h = Relu (x)  k = Neg (h)  y = Exp (k) }"
    values = {value.name: value for node in imported(text).graph for value in node.outputs}
    assert [str(dim) for dim in values["h"].shape] == ["N", "3"]
    assert str(values["k"].shape[0]) in ("batch", "N")
    assert values["h"].dtype == ir.DataType.FLOAT


def test_importing_twice_is_importing_once() -> None:
    text = "g (float[2] x) => (float[2] y) { h = gradcut.StopGradient (x)  y = Relu (h) }"
    model = imported(text, opset=15)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    Import()(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    onnx.checker.check_model(onnx.ModelProto.FromString(before))


# --- operators that ONNX defines by others -------------------------------------------------------------------

BODIES = {
    "MeanVarianceNormalization": (
        "g (float[2,3,4,2] x) => (float[2,3,4,2] y) { y = MeanVarianceNormalization (x) }",
        13,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_an_operator_that_others_define_becomes_those(name: str) -> None:
    text, opset = BODIES[name]
    model = parse(text, opset=opset)
    require(check_gradients(model))
    inner = {node.op_type for node in imported(text, opset=opset).graph}
    assert name.split(",")[0] not in inner and "Constant" in inner


def test_a_rule_of_the_users_for_such_an_operator_comes_first() -> None:
    @gradcut.register_rule("MeanVarianceNormalization")
    def normalize(op: gradcut.rules.Adjoint) -> gradcut.rules.Cotangents:
        yield "X", op.dY * 7.0

    try:
        model = parse("g (float[2] x) => (float[2] y) { y = MeanVarianceNormalization <axes = [0]> (x) }")
        assert gradients(model, {"x": [1, 2]}, ["x"], ["y"])[0].tolist() == [7, 7]
    finally:
        REGISTRY._rules.pop(("", "MeanVarianceNormalization"))


@pytest.mark.parametrize("dims", [("?", "?"), ("-1", "-1"), ("None", "None"), (-1, -1)])
def test_what_exporters_call_any_open_dimension_is_no_name(dims: tuple[str, str] | tuple[int, int]) -> None:
    """Two of one name would have to be as long as each other, and a size of -1 fits no feed."""
    float_, info = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    inputs = [info("x", float_, [dims[0], dims[1], 2]), info("c", float_, [dims[0], dims[1], 2])]
    nodes = [onnx.helper.make_node("Mul", ["x", "c"], ["m"]), onnx.helper.make_node("Mul", ["m", "w"], ["y"])]
    weight = onnx.numpy_helper.from_array(np.float32([1, 2]), "w")
    graph = onnx.helper.make_graph(nodes, "g", inputs, [info("y", float_, [dims[0], dims[1], 2])], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    training = gradcut.TrainingSession(gradcut.compile(model, loss="mse"), threads=1)
    x, c = np.arange(12, dtype=np.float32).reshape(3, 2, 2), np.float32([[[5, 7]]])
    feeds = {"x": x, "c": c, "labels": np.zeros((3, 2, 2), np.float32)}
    np.testing.assert_allclose(training.gradients(feeds)["w"], 2 * ((x * c) ** 2 * [1, 2]).mean((0, 1)) / 2, rtol=1e-6)
    (gradient,) = gradients(model, {"x": x, "c": c}, ["c"], ["y"])
    np.testing.assert_allclose(gradient, (x * [1, 2]).sum((0, 1), keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_what_onnx_writes_as_others_is_taken_apart_beside_a_mark(opset: int) -> None:
    """The mark's function comes at the file's opset; ONNX inlines nothing while one is older than the graph."""
    text = """g (float[2,3] x) => (float[2,3] y, float[2,3] z) {
        y = MeanVarianceNormalization <axes = [1]> (x)
        z = gradcut.StopGradient (y) }"""
    model = parse(text, opset=opset)
    assert "MeanVarianceNormalization" not in {node.op_type for node in imported(text, opset=opset).graph}
    require(check_gradients(model, wrt=["x"], of=["y"]))


@pytest.mark.parametrize("dtype", ["float16", "double"])
@pytest.mark.parametrize("axes", ["", "<axes = [1]>", "<axes = [0, -1]>"])
def test_a_mean_variance_normalization_of_any_width(dtype: str, axes: str) -> None:
    text = f"g ({dtype}[2,3,4,2] x) => ({dtype}[2,3,4,2] y) {{ y = MeanVarianceNormalization {axes} (x) }}"
    x = SEEDED.normal(size=(2, 3, 4, 2)).astype(np.float64 if dtype == "double" else np.float16)
    over = {"": (0, 2, 3), "<axes = [1]>": (1,)}.get(axes, (0, 3))
    (y,) = run(imported(text), {"x": x})
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(over, keepdims=True)) / wide.std(over, keepdims=True)
    np.testing.assert_allclose(y, expected, atol=1e-7 if dtype == "double" else 1e-2)
    require(check_gradients(parse(text), {"x": x}))


def test_a_range_of_vectors_of_one_element_runs_where_their_shapes_are_known() -> None:
    """As ONNX's definition of AffineGrid has it; the runtime takes them as long as their shapes are unknown."""
    proto = parse("""g (float[3] x, float s) => (float[3] y) <int64 zero = {0}, int64 one = {1}> {
        size = Shape (x) steps = Range (zero, size, one) f = CastLike (steps, x) z = Mul (f, s) y = Mul (x, z)
    }""")
    feeds = {"x": np.arange(3, dtype=np.float32) + 1, "s": np.float32(2), "y_grad": np.ones(3, np.float32)}
    y, dx, ds = run(gradcut.vjp(proto, ["x", "s"], ["y"]), feeds)
    np.testing.assert_array_equal(y, [0, 4, 12])
    np.testing.assert_array_equal(dx, [0, 2, 4])
    assert ds == 0 * 1 + 1 * 2 + 2 * 3


@pytest.mark.parametrize("said", ["[1]", "[7, 3]", "[N, M, K]", "[2, 3]"])
def test_a_wrong_shape_of_an_output_is_not_believed(said: str) -> None:
    """ONNX Runtime runs such files, with a warning; the cotangent has the shape of what comes out."""
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        lying (float[2, 3] x) => (float{said} y) {{ y = Tanh(x) }}""")
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    derived = gradcut.vjp(model, ["x"], ["y"])
    _, dx = session(derived).run(None, {"x": x, "y_grad": np.ones_like(x)})
    np.testing.assert_allclose(dx, 1 - np.tanh(x) ** 2, rtol=1e-5)


def test_the_length_of_what_data_choose_is_an_example() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        choosing (float[4] x, bool[4] chosen) => (float[2] y) { y = Compress (x, chosen) }""")
    feeds = {"x": np.float32([1, 2, 3, 4]), "chosen": np.array([True, False, True, True])}
    _, dx = session(gradcut.vjp(model, ["x"], ["y"])).run(None, {**feeds, "y_grad": np.float32([5, 6, 7])})
    assert dx.tolist() == [5, 0, 6, 7]


def test_a_depth_is_a_setting() -> None:
    """Of floats too; a check holds it still, as a step would change the shape of what comes out."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        hot (int64[2] i, float depth, float[2] values) => (float[2, 3] y) { y = OneHot (i, depth, values) }""")
    feeds = {"i": np.array([0, 2]), "depth": np.float32(3), "values": np.float32([0.5, 2])}
    require(check_gradients(model, feeds))
