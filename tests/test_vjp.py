"""`gradcut.vjp`, sentence by sentence of its contract; values against closed forms and torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

import gradcut
from gradcut.rules import REGISTRY
from tests.written import gradients, names, parse, run, session

F16, F64 = TensorProto.FLOAT16, TensorProto.DOUBLE
SQUARE = "g (float[2] x) => (float[2] y) { h = Mul (x, x)  y = Mul (h, x) }"
LINEAR = """g (float[N,2] x, float[3] unused) => (float[N,2] y, float[N,2] other) <float[2,2] w = {1, 2, 3, 4}> {
    h = MatMul (x, w)  y = Relu (h)  other = Neg (h) }"""
MICROSOFT = ', "com.microsoft" : 1'
X = np.float32([[1, -2], [0.5, 3], [2, 2]])
W = np.float32([[1, 2], [3, 4]])


def signature(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    return names(model.graph.input), names(model.graph.output)


# --- inputs and outputs --------------------------------------------------------------------------------------


def test_inputs_are_the_models_then_one_cotangent_each_and_outputs_the_values_then_the_gradients() -> None:
    derived = gradcut.vjp(parse(LINEAR), wrt=["w", "x"], of=["other", "y"])
    assert signature(derived) == (
        ["x", "unused", "other_grad", "y_grad"],
        ["other", "y", "w_grad", "x_grad"],
    )


def test_other_outputs_are_dropped() -> None:
    assert signature(gradcut.vjp(parse(LINEAR), wrt=["x"], of=["y"]))[1] == ["y", "x_grad"]


def test_an_input_that_an_initializer_shadows_is_no_input() -> None:
    text = "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {3, 4}> { y = Mul (x, w) }"
    derived = gradcut.vjp(parse(text), wrt=["w", "x"], of=["y"])
    assert signature(derived) == (["x", "y_grad"], ["y", "w_grad", "x_grad"])
    y, dw, dx = run(derived, {"x": [1, 2], "y_grad": [1, 10]})
    assert (y.tolist(), dw.tolist(), dx.tolist()) == ([3, 8], [1, 20], [3, 40])


def test_a_cotangent_has_type_and_shape_of_its_value_and_a_gradient_those_of_its() -> None:
    derived = gradcut.vjp(parse(LINEAR), wrt=["h", "w"], of=["y"])
    types = {port.name: port.type for port in (*derived.graph.input, *derived.graph.output)}
    assert types["y_grad"] == types["y"] == types["h_grad"]
    assert [d.dim_value for d in types["w_grad"].tensor_type.shape.dim] == [2, 2]


def test_a_name_taken_gets_the_next_free_suffix_and_the_metadata_says_which() -> None:
    text = """g (float[2] x, float[2] y_grad) => (float[2] y) {
        x_grad = Mul (x, y_grad)  x_grad_2 = Relu (x_grad)  y = Add (x_grad_2, x) }"""
    derived = gradcut.vjp(parse(text), wrt=["x", "x_grad"], of=["y"])
    assert signature(derived) == (["x", "y_grad", "y_grad_2"], ["y", "x_grad_3", "x_grad_grad"])
    (said,) = [prop.value for prop in derived.metadata_props if prop.key == "gradcut.vjp"]
    assert json.loads(said) == {
        "of": {"y": "y"},
        "cotangents": {"y": "y_grad_2"},
        "wrt": {"x": "x_grad_3", "x_grad": "x_grad_grad"},
    }


@pytest.mark.parametrize("wrt", [["x", "w", "h"], ["h", "w", "x"], ["w"], ["x", "w"]])
def test_gradients_that_are_the_same_value_have_their_own_names(wrt: list[str]) -> None:
    text = "g (float[2] x) => (float[2] y) <float[2] w = {1, -2}> { h = Add (x, w)  y = Relu (h) }"
    derived = gradcut.vjp(parse(text), wrt=wrt, of=["y"])
    assert names(derived.graph.output) == ["y", *(f"{name}_grad" for name in wrt)]
    for gradient in run(derived, {"x": [1, 1], "y_grad": [5, 7]})[1:]:
        assert gradient.tolist() == [5, 0]


def test_the_result_says_which_pipeline_made_it() -> None:
    derived = gradcut.vjp(parse(SQUARE), wrt=["x"], of=["y"], stop_at="h")
    (text,) = [prop.value for prop in derived.metadata_props if prop.key == "gradcut.pipeline"]
    assert str(gradcut.Pipeline.parse(text)) == text


# --- what may be asked for -----------------------------------------------------------------------------------


def test_by_initializer_constant_inner_value_and_input_at_once() -> None:
    text = """g (float[2] x) => (float[2] y) <float[2] w = {2, 3}> {
        c = Constant <value_floats = [5.0, 7.0]> ()  h = Mul (x, w)  y = Mul (h, c) }"""
    dw, dc, dh, dx = gradients(parse(text), {"x": [1, 10]}, wrt=["w", "c", "h", "x"], of=["y"])
    assert (dw.tolist(), dc.tolist(), dh.tolist(), dx.tolist()) == ([5, 70], [2, 30], [5, 7], [10, 21])


def test_asking_for_an_inner_value_does_not_cut_what_is_before_it() -> None:
    """dy/dh is total (y reads h twice, once through k), and dy/dx is as without asking."""
    text = "g (float[2] x) => (float[2] y) { h = Mul (x, x)  k = Mul (h, h)  y = Mul (k, h) }"
    dh, dx = gradients(parse(text), {"x": [1, 2]}, wrt=["h", "x"], of=["y"])
    assert dh.tolist() == [3, 48]  # 3 h^2
    assert dx.tolist() == [6, 192]  # 6 x^5


def test_a_value_in_both_gets_its_cotangent_plus_what_reaches_it() -> None:
    derived = gradcut.vjp(parse(SQUARE), wrt=["h", "x"], of=["h", "y"])
    *_, dh, dx = run(derived, {"x": [3, 1], "h_grad": [100, 1000], "y_grad": [1, 2]})
    assert dh.tolist() == [103, 1002]
    assert dx.tolist() == [6 * 103 + 9, 2 * 1002 + 2]


def test_an_input_as_output_of_the_question() -> None:
    derived = gradcut.vjp(parse(SQUARE), wrt=["x"], of=["x"])
    assert signature(derived) == (["x", "x_grad"], ["x_2", "x_grad_2"])
    assert [v.tolist() for v in run(derived, {"x": [3, 1], "x_grad": [5, 6]})] == [[3, 1], [5, 6]]


def test_an_initializer_as_output_of_the_question() -> None:
    derived = gradcut.vjp(parse(LINEAR), wrt=["w", "x"], of=["w"])
    w, dw, dx = run(derived, {"x": X, "unused": [0, 0, 0], names(derived.graph.input)[-1]: 2 * W})
    assert np.array_equal(w, W) and np.array_equal(dw, 2 * W) and np.array_equal(dx, np.zeros_like(X))


def test_an_operator_without_a_derivative_may_be_asked_for_if_nothing_is_wanted_behind_it() -> None:
    """By a value is by what comes after it: what made it does not matter."""
    for op in ("Floor (x)", "CastLike (x, x)", "Det (m)"):
        text = f"g (float[2] x, float[1,2,2] m) => (float[N] y) {{ h = {op}  y = Mul (h, h) }}"
        derived = gradcut.vjp(parse(text), wrt=["h"], of=["h", "y"])
        assert names(derived.graph.output) == ["h", "y", "h_grad_2"]


def test_several_outputs_add_up() -> None:
    dx, dw = gradients(parse(LINEAR), {"x": X, "unused": [0, 0, 0]}, wrt=["x", "w"], of=["y", "other"])
    x, w = torch.tensor(X, requires_grad=True), torch.tensor(W, requires_grad=True)
    h = x @ w
    (torch.relu(h).sum() - h.sum()).backward()
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=1e-6)
    np.testing.assert_allclose(dw, w.grad.numpy(), rtol=1e-6)


def test_by_one_output_of_a_node_with_several() -> None:
    text = "g (float[4] x) => (float[2] y) { a, b = Split <num_outputs = 2> (x)  y = Mul (a, b) }"
    db, dx = gradients(parse(text), {"x": [1, 2, 3, 4]}, wrt=["b", "x"], of=["y"])
    assert (db.tolist(), dx.tolist()) == ([1, 2], [3, 4, 1, 2])


def test_of_one_output_of_a_node_with_several() -> None:
    text = "g (float[4] x) => (float[2] a, float[2] b) { a, b = Split <num_outputs = 2> (x) }"
    assert gradients(parse(text), {"x": [1, 2, 3, 4]}, wrt=["x"], of=["b"])[0].tolist() == [0, 0, 1, 1]


def test_a_value_that_one_node_reads_twice() -> None:
    for op, expected in (("Mul", [6, 2]), ("Add", [2, 2]), ("Sub", [0, 0]), ("Div", [0, 0])):
        text = f"g (float[2] x) => (float[2] y) {{ y = {op} (x, x) }}"
        assert gradients(parse(text), {"x": [3, 1]}, wrt=["x"], of=["y"])[0].tolist() == expected


def test_what_no_path_reaches_gets_zeros_of_its_run_time_shape() -> None:
    text = "g (float[N,M] x, float[K,?] z) => (float[N,M] y) { u = Exp (z)  y = Relu (x) }"
    derived = gradcut.vjp(parse(text), wrt=["z", "u", "x"], of=["y"])
    assert names(derived.graph.output) == ["y", "z_grad", "u_grad", "x_grad"]
    for shape in ((4, 3), (0, 5)):
        feeds = {"x": np.ones((1, 2)), "z": np.ones(shape), "y_grad": np.ones((1, 2))}
        _, dz, du, _ = run(derived, feeds)
        assert np.array_equal(dz, np.zeros(shape)) and np.array_equal(du, np.zeros(shape))


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64), ("float", np.float32)])
def test_a_gradient_has_the_type_of_its_value(kind: str, dtype: type) -> None:
    text = f"""g ({kind}[2] x, {kind}[2] z) => (float[2] y) {{
        h = Mul (x, x)  k = Cast <to = 1> (h)  y = Mul (k, k) }}"""
    dx, dk, dz = gradients(parse(text), {"x": [1, 2], "z": [0, 0]}, wrt=["x", "k", "z"], of=["y"])
    assert (dx.dtype, dk.dtype, dz.dtype) == (dtype, np.float32, dtype)
    assert dx.tolist() == [4, 32]


# --- marks ---------------------------------------------------------------------------------------------------


def test_stopped_and_not() -> None:
    """d/dx [stop(x x) x] = x x: 9 at 3; without the mark 3 x^2 = 27."""
    assert gradients(parse(SQUARE), {"x": [3, 1]}, ["x"], ["y"])[0].tolist() == [27, 3]
    assert gradients(parse(SQUARE), {"x": [3, 1]}, ["x"], ["y"], stop_at=["h"])[0].tolist() == [9, 1]
    assert gradients(parse(SQUARE), {"x": [3, 1]}, ["x"], ["y"], stop_at=["x->Mul_y"])[0].tolist() == [18, 2]
    assert gradients(parse(SQUARE), {"x": [3, 1]}, ["x"], ["y"], stop_at=["x"])[0].tolist() == [0, 0]


def test_a_mark_stays_as_a_function_that_is_the_identity() -> None:
    derived = gradcut.vjp(parse(SQUARE), wrt=["x"], of=["y"], stop_at="h")
    (mark,) = [node for node in derived.graph.node if node.domain == "gradcut"]
    (function,) = derived.functions
    assert (mark.op_type, mark.input, function.name) == ("StopGradient", ["h"], "StopGradient")
    assert [node.op_type for node in function.node] == ["Identity"]
    (backward,) = [node for node in derived.graph.node if "x_grad" in node.output]
    assert mark.output[0] in backward.input  # not h: differentiated again, it must be a constant


def test_a_result_without_marks_has_no_functions() -> None:
    derived = gradcut.vjp(parse(LINEAR), wrt=["x", "w"], of=["y"])
    assert not derived.functions and not any(node.domain for node in derived.graph.node)


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        ("h = Sqrt (z)", 0),  # slope infinite at 0
        ("r = Sqrt (z)  h = Mul (r, z)", 0),  # 0 * inf
        ("l = Log (z)  c = Greater (z, x)  h = Where (c, l, x)", 3),  # 0 / 0 on the side not taken
    ],
)
def test_nan_in_a_derivative_behind_a_mark_never_arrives(behind: str, expected: float) -> None:
    text = f"g (float[1] x) => (float[1] y) {{ z = Sub (x, x)  {behind}  y = Mul (h, x) }}"
    assert np.isnan(gradients(parse(text), {"x": [3]}, ["x"], ["y"])[0])
    assert gradients(parse(text), {"x": [3]}, ["x"], ["y"], stop_at=["h"])[0] == expected


def test_a_mark_on_an_input_an_initializer_and_an_output() -> None:
    text = "g (float[2] x) => (float[2] y) <float[2] w = {2, 5}> { y = Mul (x, w) }"
    for at, expected in (("x", ([0, 0], [3, 1])), ("w", ([2, 5], [0, 0])), ("y", ([0, 0], [0, 0]))):
        marked = gradcut.stop_gradient(parse(text), at)
        derived = gradcut.vjp(marked, wrt=["x", "w"], of=["y"])
        y, dx, dw = run(derived, {"x": [3, 1], "y_grad": [1, 1]})
        assert y.tolist() == [6, 5]
        assert (dx.tolist(), dw.tolist()) == expected
        assert run(marked, {"x": [3, 1]})[0].tolist() == [6, 5]


def test_a_mark_on_one_output_of_a_split() -> None:
    text = "g (float[4] x) => (float[2] y) { a, b = Split <num_outputs = 2> (x)  y = Mul (a, b) }"
    assert gradients(parse(text), {"x": [1, 2, 3, 4]}, ["x"], ["y"], stop_at=["a"])[0].tolist() == [0, 0, 1, 2]


def test_a_mark_on_an_integer_changes_nothing() -> None:
    text = "g (float[3] x, int64[2] i) => (float[2] y) { y = Gather (x, i) }"
    for stop_at in ([], ["i"]):
        assert gradients(parse(text), {"x": [1, 2, 3], "i": [2, 2]}, ["x"], ["y"], stop_at)[0].tolist() == [0, 0, 2]


def test_a_mark_on_one_use_of_a_weight_leaves_the_other() -> None:
    text = "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { h = MatMul (x, w)  y = MatMul (h, w) }"
    x, w = torch.tensor(X[:2]), torch.tensor(W, requires_grad=True)
    (x @ w.detach() @ w).sum().backward()
    (dw,) = gradients(parse(text), {"x": X[:2]}, ["w"], ["y"], stop_at=["w->MatMul_h"])
    np.testing.assert_allclose(dw, w.grad.numpy(), rtol=1e-6)


def test_marks_of_the_file_and_of_the_question_together() -> None:
    text = "g (float x) => (float y) { a = gradcut.StopGradient (x)  b = Mul (a, x)  c = Mul (b, x)  y = Mul (c, x) }"
    assert gradients(parse(text), {"x": 3}, ["x"], ["y"])[0] == 81  # a constant: 3 a x^2
    assert gradients(parse(text), {"x": 3}, ["x"], ["y"], stop_at=["b"])[0] == 54  # b too: 2 b x


def test_an_input_that_is_an_output_keeps_its_name_under_a_mark() -> None:
    text = "g (float[2] x) => (float[2] x, float[2] y) { y = Relu (x) }"
    marked = gradcut.stop_gradient(parse(text), "x")
    assert [value.name for value in marked.graph.outputs] == ["x", "y"]
    assert gradients(ir.to_proto(marked), {"x": [1, 2]}, ["x"], ["y"])[0].tolist() == [0, 0]


# --- again and again -----------------------------------------------------------------------------------------


def second(model: onnx.ModelProto, of: str, wrt: str, feeds: dict, stop_at: tuple[str, ...] = ()) -> np.ndarray:
    """d/dwrt of the sum of d(sum of)/dwrt."""
    once = gradcut.vjp(model, wrt=[wrt], of=[of], stop_at=stop_at)
    gradient = once.graph.output[-1].name
    ones = {once.graph.input[-1].name: np.ones_like(run(model, feeds)[0])}
    return gradients(once, {**feeds, **ones}, [wrt], [gradient])[0]


def test_the_second_order_is_torchs() -> None:
    text = """g (double[2,3] x) => (double[2,2] y) <double[3,2] w = {1, -1, 0.5, 2, 0.1, -0.3}> {
        a = Tanh (x)  m = MatMul (a, w)  s = Sigmoid (m)  l = Exp (s)  q = Mul (l, m)
        y = Sqrt (l) z = Add (q, y) }"""
    text = text.replace("(double[2,2] y)", "(double[2,2] z)")
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    t, w = torch.tensor(x, requires_grad=True), torch.tensor([[1, -1], [0.5, 2], [0.1, -0.3]], dtype=torch.float64)
    m = torch.tanh(t) @ w
    z = torch.exp(torch.sigmoid(m)) * m + torch.sqrt(torch.exp(torch.sigmoid(m)))
    (first,) = torch.autograd.grad(z.sum(), t, create_graph=True)
    (expected,) = torch.autograd.grad(first.sum(), t)
    np.testing.assert_allclose(second(parse(text), "z", "x", {"x": x}), expected.numpy(), rtol=1e-6, atol=1e-8)


def test_the_second_order_respects_a_mark() -> None:
    """y = stop(x^2) x^3: y' = 3 s x^2 and y'' = 6 s x with s = x^2 held constant; without the mark 20 x^3."""
    text = "g (float[1] x) => (float[1] y) { s = Mul (x, x)  c = Mul (s, x)  y = Mul (s, c) }"
    assert second(parse(text), "y", "x", {"x": [2]})[0] == 160  # x^5
    assert second(parse(text), "y", "x", {"x": [2]}, stop_at=("s->Mul_y",))[0] == 48
    once = gradcut.vjp(parse(text), wrt=["x"], of=["y"], stop_at="s")
    assert any(node.op_type == "StopGradient" for node in once.graph.node)


def test_what_the_first_differentiation_built_is_forward_to_the_second() -> None:
    """Nodes are tagged by what they serve; a tag left over would count as backward, and as that of another node."""
    once = gradcut.vjp(parse(SQUARE), wrt=["x"], of=["y"])
    twice = gradcut.vjp(once, wrt=["y_grad"], of=["x_grad"])
    tagged = lambda model: [
        n.name for n in model.graph.node if any(p.key == "gradcut.adjoint" for p in n.metadata_props)
    ]
    assert tagged(once)
    assert tagged(twice) and not set(tagged(once)) & set(tagged(twice))


def test_the_second_order_by_a_cotangent_is_the_forward_derivative() -> None:
    """d(vjp)/d(cotangent) transposed is J, so J v comes out of two reverse passes."""
    once = gradcut.vjp(parse(SQUARE), wrt=["x"], of=["y"])
    (forward,) = gradients(once, {"x": [3, 1], "y_grad": [0, 0]}, ["y_grad"], ["x_grad"])
    assert forward.tolist() == [27, 3]


# --- modes and draws -----------------------------------------------------------------------------------------

BATCH_NORM = """g (float[4,2] x) => (float[4,2] y) <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0.5, 0},
    float[2] v = {1, 4}> { y%s = BatchNormalization <training_mode = %d> (x, s, b, m, v) }"""


@pytest.mark.parametrize("training", [0, 1])
def test_the_mode_of_a_batch_normalization_is_the_files(training: int) -> None:
    model = parse(BATCH_NORM % (", mm, vv" if training else "", training))
    x = np.float32([[1, -2], [0.5, 3], [2, 2], [0, 1]])
    of = ["y"]
    dx, ds, db = gradients(model, {"x": x}, ["x", "s", "b"], of)
    t = [torch.tensor(v, requires_grad=True) for v in (x, np.float32([1, 2]), np.float32([0, 1]))]
    m, v = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 4.0])
    torch.nn.functional.batch_norm(t[0], m, v, t[1], t[2], bool(training)).sum().backward()
    for found, expected in zip((dx, ds, db), t, strict=True):
        np.testing.assert_allclose(found, expected.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_forward_and_backward_share_one_draw() -> None:
    text = """g (float[64] x, float r, bool t) => (float[64] y) { y = Dropout (x, r, t) }"""
    derived = gradcut.vjp(parse(text), wrt=["x"], of=["y"])
    y, dx = run(derived, {"x": np.ones(64), "r": 0.5, "t": True, "y_grad": np.ones(64)})
    assert 0 < np.count_nonzero(y) < 64
    assert np.array_equal(y, dx)
    y, dx = run(derived, {"x": np.ones(64), "r": 0.5, "t": False, "y_grad": np.ones(64)})
    assert np.array_equal(dx, np.ones(64))


@pytest.mark.parametrize(
    "draw", ["Dropout (x, r, t)", "RandomNormalLike (x)", "RandomUniformLike (x)", "Bernoulli (x)"]
)
def test_two_equal_draws_are_two(draw: str) -> None:
    text = f"""g (float[64] x) => (float[64] y) <float r = {{0.5}}, bool t = {{1}}> {{
        p = {draw}  q = {draw}  a = Mul (p, x)  y = Sub (a, q) }}"""
    derived = gradcut.vjp(parse(text), wrt=["x", "p"], of=["y", "a"])
    assert sum(node.op_type == draw.split()[0] for node in derived.graph.node) == 2
    y, a, _, dp = run(derived, {"x": np.full(64, 0.5), "y_grad": np.ones(64), "a_grad": np.zeros(64)})
    assert np.array_equal(dp, np.full(64, 0.5, np.float32))
    assert not np.array_equal(y, a * 0) and np.any(y != y[0])


def test_the_draw_that_a_backward_reads_is_the_forwards() -> None:
    text = "g (float[64] x) => (float[64] y) { p = RandomNormalLike (x)  y = Mul (p, x) }"
    derived = gradcut.vjp(parse(text), wrt=["x"], of=["y"])
    y, dx = run(derived, {"x": np.full(64, 2), "y_grad": np.ones(64)})
    np.testing.assert_allclose(y, 2 * dx, rtol=1e-6)


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["of", "wrt"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "{} is empty; name at least one value"),
        (["y", "y"], "{}: 'y' is named twice"),
        (["y", "unsued"], "{}: there is no value 'unsued'. Nearest: unused."),
        (["y", "zzz"], "{}: there is no value 'zzz'."),
        (["i"], "{}: 'i' is INT64; only floats carry a gradient"),
        (["MatMul_h"], "{}: there is no value 'MatMul_h'."),
        ("y", "{} takes a list of names, not the text 'y'"),
        (["q"], "{}: 'q' is sequence; only floats carry a gradient"),
        ([1], "{}: 1 is no name of a value"),
        (None, "{} is empty; name at least one value"),
    ],
)
def test_what_cannot_be_asked(which: str, asked: list[str], message: str) -> None:
    model = parse(
        LINEAR.replace("h = MatMul (x, w)", "i = Cast <to = 7> (x)  q = SequenceConstruct (x)  h = MatMul (x, w)")
    )
    question = {"of": ["y"], "wrt": ["x"], which: asked}
    for ask in (gradcut.vjp, gradcut.analyze):
        with pytest.raises(gradcut.errors.SpecError) as raised:
            ask(model, **question)
        assert str(raised.value).startswith(message.format(which))
        assert isinstance(raised.value, gradcut.GradcutError)


def test_a_value_inside_a_branch_cannot_be_asked_for() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] p) { p = Relu (x) }, else_branch = b () => (float[2] q) {
            q = Neg (x) }> }"""
    with pytest.raises(gradcut.errors.SpecError, match="there is no value 'p'"):
        gradcut.vjp(parse(text), wrt=["p"], of=["y"])


def test_a_pattern_that_stops_nothing_is_an_error() -> None:
    with pytest.raises(gradcut.errors.PatternError, match=r"'hh' matches no value and no module scope. Nearest: h"):
        gradcut.vjp(parse(SQUARE), wrt=["x"], of=["y"], stop_at="hh")


def test_an_operator_without_a_rule_on_an_active_path_is_refused_by_name() -> None:
    text = "g (float[2,2] x) => (float[2,2] y) { [here] y = com.microsoft.CDist (x, x) }"
    model = parse(text, also=MICROSOFT)
    with pytest.raises(gradcut.errors.NoGradientError, match=r"node 'here' \(com.microsoft.CDist, opset 1\)") as raised:
        gradcut.vjp(model, wrt=["x"], of=["y"])
    assert (raised.value.node, raised.value.op, raised.value.opset) == ("here", "com.microsoft.CDist", 1)


def test_an_operator_without_a_rule_behind_a_mark_is_no_matter() -> None:
    text = "g (float[1,2,2] x) => (float[1,2,2] y) { d = com.microsoft.Inverse (x)  y = Mul (d, x) }"
    (dx,) = gradients(parse(text, also=MICROSOFT), {"x": [[[2, 0], [0, 4]]]}, ["x"], ["y"], stop_at=["d"])
    assert dx.tolist() == [[[0.5, 0], [0, 0.25]]]


def test_a_control_flow_node_is_never_differentiated_in_silence() -> None:
    """It reads x only from inside its branches; whoever cannot differentiate it must say so."""
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] p) {
            p = Mul (x, x) }, else_branch = b () => (float[2] q) { q = Neg (x) }> }"""
    try:
        taken, other = (gradients(parse(text), {"c": c, "x": [3, 1]}, ["x"], ["y"])[0] for c in (True, False))
    except gradcut.errors.NoGradientError:
        return
    assert (taken.tolist(), other.tolist()) == ([6, 2], [-1, -1])


def test_a_value_of_unknown_type_cannot_be_asked_for() -> None:
    model = parse("g (float[2] x) => (float[2] y) { h = c.Foo (x)  y = Relu (h) }", also=', "c" : 1')
    with pytest.raises(gradcut.errors.SpecError, match="the type of 'h' is unknown; give the model a value_info"):
        gradcut.vjp(model, wrt=["h"], of=["y"])


def test_a_proto_whose_weights_are_elsewhere_is_an_error_and_its_path_is_not(tmp_path: Path) -> None:
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {2, 5}> { y = Mul (x, w) }")
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.float32([2, 5]), "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(gradcut.errors.ExternalDataError, match=r"tensor 'w' .* give the model's path instead"):
        gradcut.vjp(onnx.load(path, load_external_data=False), wrt=["x"], of=["y"])
    derived = gradcut.vjp(path, wrt=["x"], of=["y"])
    assert run(derived, {"x": [1, 1], "y_grad": [1, 1]})[1].tolist() == [2, 5]


# --- purity --------------------------------------------------------------------------------------------------


def test_what_is_given_is_not_changed(tmp_path: Path) -> None:
    text = LINEAR.replace("y = Relu (h)", "y = Relu (h)  dead = Exp (h)")
    for opset in (13, 21):
        proto = parse(text, opset=opset)
        model = ir.from_proto(proto)
        path = tmp_path / "model.onnx"
        onnx.save(proto, path)
        before, as_ir = proto.SerializeToString(deterministic=True), ir.to_proto(model).SerializeToString()
        results = [gradcut.vjp(m, wrt=["w", "h"], of=["y"], stop_at="x") for m in (proto, model, path, str(path))]
        assert len({result.SerializeToString(deterministic=True) for result in results}) == 1
        assert proto.SerializeToString(deterministic=True) == before == path.read_bytes()
        assert ir.to_proto(model).SerializeToString() == as_ir


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18, 20, 21, 22, 23, 24, 25, 26])
def test_every_opset_taken_gives_a_valid_result_at_21_or_above(opset: int) -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> {
        h = MatMul (x, w)  y = Softmax <axis = 1> (h) }"""
    derived = gradcut.vjp(parse(text, opset=opset, ir_version=7 if opset < 14 else 10), wrt=["x", "w"], of=["y"])
    assert {o.version for o in derived.opset_import if not o.domain} == {max(opset, 21)}
    onnx.checker.check_model(derived, full_check=True)
    if opset <= 23:
        session(derived)


def test_a_function_with_a_rule_of_its_own_is_kept_and_brought_to_the_opset() -> None:
    @gradcut.register_rule("Swoosh", domain="my.ops", operands="X")
    def swoosh(op):
        yield "X", op.dY * op.attr("factor") * 10.0

    text = """g (float[2] x) => (float[2] y) { h = my.ops.Swoosh <factor = 2.0> (x)  y = Neg (h) }
        <domain: "my.ops", opset_import: ["" : 17]>
        Swoosh <factor> (X) => (Y) {
            c = Constant <value_float: float = @factor> ()  s = ReduceMax <keepdims = 0, axes = [0]> (X)
            m = Mul (X, c)  Y = Add (m, s) }"""
    model = parse(text, opset=17, ir_version=8, also=', "my.ops" : 1')
    try:
        derived = gradcut.vjp(model, wrt=["x"], of=["y"])
    finally:
        REGISTRY._rules.pop(("my.ops", "Swoosh"))
    y, dx = run(derived, {"x": [1, 2], "y_grad": [1, 1]})
    assert (y.tolist(), dx.tolist()) == ([-4, -6], [-20, -20])


def test_shape_arithmetic_is_computed_once() -> None:
    text = """g (float[2,3] x) => (float[3,2] y) { s = Shape (x)  i = Constant <value_ints = [1, 0]> ()
        t = Gather (s, i)  y = Reshape (x, t) }"""
    derived = gradcut.vjp(parse(text), wrt=["x"], of=["y"])
    assert not {"Shape", "Gather"} & {node.op_type for node in derived.graph.node}


def test_what_depends_on_a_float_constant_is_left_for_a_second_derivative_by_it() -> None:
    """y = x c (-c): d/dc of d/dx is -2 c."""
    text = """g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {3, 5}> ()  n = Neg (c)
        h = Mul (x, c)  y = Mul (h, n) }"""
    first = gradcut.vjp(parse(text), wrt=["x"], of=["y"])
    second = gradcut.vjp(first, wrt=["c"], of=["x_grad"])
    found = run(second, {"x": [1, 1], "y_grad": [1, 1], "x_grad_grad": [1, 1]})[-1]
    assert found.tolist() == [-6, -10]


def test_dots_that_broadcast_only_at_run_time_are_summed_back() -> None:
    """Two symbols for one place: the shapes in the file do not tell which of them is 1."""
    text = """g (float[a,3] x, float[b,3] z) => (float[c,3] y) { y = Einsum <equation = "...i,...i->...i"> (x, z) }"""
    for rows in ((1, 2), (2, 1), (2, 2)):
        x, z = (np.arange(3.0 * n).reshape(n, 3) + n for n in rows)
        dx, dz = gradients(parse(text), {"x": x, "z": z}, ["x", "z"], ["y"])
        ones = np.ones((max(rows), 3))
        np.testing.assert_allclose(dx, (ones * z).sum(0, keepdims=True) if rows[0] == 1 else ones * z)
        np.testing.assert_allclose(dz, (ones * x).sum(0, keepdims=True) if rows[1] == 1 else ones * x)
