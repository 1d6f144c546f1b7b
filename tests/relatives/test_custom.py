"""`custom_gradient`: a user's own graph as the backward of a region, against torch and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import gradcut
from gradcut.errors import PatternError, SpecError, UnsupportedModelError
from gradcut.passes import verify
from gradcut.runtime.check import check_gradients
from tests.relatives.subjects import operators, optimised
from tests.written import parse, run, session

#: log(1 + exp(h)), whose own derivative overflows where exp does.
SOFT = """g ({d}[n, 3] x, {d}[3, 2] w) => ({d}[n, 2] y) {{
    h = MatMul (x, w)  e = Exp (h)  o = Constant <value = float {{1}}> ()  one = CastLike (o, h)  p = Add (e, one)
    l = Log (p)  y = Sin (l) }}"""
#: sigmoid(h) dl, the form that does not overflow.
STABLE = (
    "gradient ({d}[n, 2] l_grad, {d}[n, 2] h) => ({d}[n, 2] h_grad) {{ s = Sigmoid (h)  h_grad = Mul (s, l_grad) }}"
)
TWICE = "gradient (double[n, 2] l_grad, double[n, 2] h) => (double[n, 2] h_grad) { h_grad = Mul (l_grad, h) }"


def soft(dtype: str = "float") -> onnx.ModelProto:
    return parse(SOFT.format(d=dtype))


def given(dtype: str = "f4", size: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"x": (4, 3), "w": (3, 2), "y_grad": (4, 2)}
    return {name: (rng.standard_normal(shape) * size).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_a_stable_gradient_in_place_of_one_that_overflows(dtype: str, tmp_path: Path) -> None:
    numpy_type, gradient = {"float": "f4", "double": "f8"}[dtype], parse(STABLE.format(d=dtype))
    onnx.save(gradient, tmp_path / "gradient.onnx")
    feeds = given(numpy_type)
    for source in (gradient, ir.from_proto(gradient), tmp_path / "gradient.onnx", str(tmp_path / "gradient.onnx")):
        model = gradcut.custom_gradient(soft(dtype), "h", "l", source)
        verify(model, "custom_gradient")
        y, dx, dw = session(gradcut.vjp(model, ["x", "w"], ["y"])).run(None, feeds)
        x, w = (torch.tensor(feeds[name].astype("f8"), requires_grad=True) for name in ("x", "w"))
        torch.sin(torch.nn.functional.softplus(x @ w)).backward(torch.tensor(feeds["y_grad"].astype("f8")))
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float" else {"rtol": 1e-11}
        np.testing.assert_array_equal(y, session(soft(dtype)).run(None, {n: feeds[n] for n in "xw"})[0])
        np.testing.assert_allclose(dx, x.grad, **tolerance)
        np.testing.assert_allclose(dw, w.grad, **tolerance)


def test_nothing_inside_is_differentiated() -> None:
    """An operator without a rule, and a NaN of the region's own derivative, stay inside."""
    text = "g (float[2] x) => (float[2] y) { [i] s = Sqrt (x)  r = Hardmax (s)  q = Mul (r, s)  y = Sin (q) }"
    gradient = parse("gradient (float[2] q_grad) => (float[2] x_grad) { x_grad = Neg (q_grad) }")
    model = gradcut.custom_gradient(parse(text), ["x"], ["q"], gradient)
    found = gradcut.analyze(model, ["y"], ["x"])
    assert not found.active & {"s", "r", "q"} and ("q", "mark") in [(edge.value, edge.reason) for edge in found.cut]
    _, dx = run(gradcut.vjp(model, ["x"], ["y"]), {"x": [0, 0], "y_grad": [1, 2]})
    np.testing.assert_array_equal(dx, [-np.cos(1).astype("f4") * 0 - 1, -2])


def test_several_inputs_and_outputs_values_of_both_and_one_without_a_gradient() -> None:
    text = """g (float[2] a, float[2] b, float[2] c) => (float[2] y) {
        p = Mul (a, b)  q = Add (p, c)  s = Sin (p)  u = Exp (q)  y = Add (s, u) }"""
    gradient = parse("""gradient (float[2] q_grad, float[2] p_grad, float[2] b, float[2] q) =>
        (float[2] b_grad, float[2] a_grad) {
        t = Mul (q_grad, q)  a_grad = Add (t, p_grad)  b_grad = Mul (p_grad, b) }""")
    model = gradcut.custom_gradient(parse(text), ["a", "b", "c"], ["p", "q"], gradient)
    feeds = {"a": [1, 2], "b": [0.5, -1], "c": [0.1, 0.2], "y_grad": [1, 1]}
    _, da, db, dc = run(gradcut.vjp(model, ["a", "b", "c"], ["y"]), feeds)
    a, b, c = (np.array(feeds[name]) for name in "abc")
    p, q = a * b, a * b + c
    np.testing.assert_allclose(da, np.exp(q) * q + np.cos(p), rtol=1e-5)
    np.testing.assert_allclose(db, np.cos(p) * b, rtol=1e-5)
    np.testing.assert_array_equal(dc, [0, 0])
    cut = gradcut.analyze(model, ["y"], ["a", "c"]).cut
    assert {("c", "mark"), ("p", "mark"), ("q", "mark")} <= {(edge.value, edge.reason) for edge in cut}


def test_an_output_that_carries_no_cotangent_counts_as_zeros() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] z) { p = Sin (x)  q = Neg (p)  y = Exp (p)  z = Exp (q) }"
    gradient = parse(
        "gradient (float[2] p_grad, float[2] q_grad) => (float[2] x_grad) { x_grad = Sub (p_grad, q_grad) }"
    )
    model = gradcut.custom_gradient(parse(text), "x", ["p", "q"], gradient)
    _, dx = run(gradcut.vjp(model, ["x"], ["z"]), {"x": [0, 0], "z_grad": [1, 3]})
    np.testing.assert_array_equal(dx, [-1, -3])


def test_weights_marks_and_branches_in_the_gradient() -> None:
    gradient = parse("""gradient (float[2] y_grad, float[2] x) => (float[2] x_grad) <float[2] w = {3, 5}> {
        m = gradcut.StopGradient (x)  big = ReduceMax <keepdims = 0> (m)  one = Constant <value = float {1}> ()
        c = Greater (big, one)
        k = If (c) <then_branch = a () => (float[2] t) { t = Mul (y_grad, w) }, else_branch = b () => (float[2] e) {
            e = Identity (y_grad) }>
        x_grad = Mul (k, m) }""")
    model = gradcut.custom_gradient(parse("g (float[2] x) => (float[2] y) { y = Round (x) }"), "x", "y", gradient)
    verify(model, "custom_gradient")
    assert [value.name for value in model.graph.outputs] == ["y"]
    proto = gradcut.vjp(model, ["x"], ["y"])
    for x, factor in (([2, 4], [3, 5]), ([0.5, 0.25], [1, 1])):
        _, dx = run(proto, {"x": x, "y_grad": [1, 2]})
        np.testing.assert_array_equal(dx, np.array(x) * factor * [1, 2])


def test_a_second_derivative_is_that_of_the_users_graph() -> None:
    """As torch differentiates the backward of a Function, and a value of the region takes the user's way again."""
    text = "g (double[3] x) => (double[3] y) { h = Sin (x)  l = Mul (h, h)  y = Exp (l) }"
    gradient = parse(
        "gradient (double[3] l_grad, double[3] h, double[3] l) => (double[3] h_grad) {"
        "t = Mul (l_grad, h)  h_grad = Mul (t, l) }"
    )
    model = gradcut.custom_gradient(parse(text), "h", "l", gradient)
    twice = gradcut.vjp(gradcut.vjp(model, ["x"], ["y"]), ["x"], ["x_grad"])
    x, c, u = (np.random.default_rng(seed).standard_normal(3) for seed in range(3))

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, h: torch.Tensor) -> torch.Tensor:
            l = h * h  # noqa: E741
            ctx.save_for_backward(h, l)
            return l

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, g: torch.Tensor) -> torch.Tensor:
            h, l = ctx.saved_tensors  # noqa: E741
            return g * h * l

    t = torch.tensor(x, requires_grad=True)
    (first,) = torch.autograd.grad(torch.exp(Square.apply(torch.sin(t))), t, torch.tensor(c), create_graph=True)
    (second,) = torch.autograd.grad(first, t, torch.tensor(u))
    actual = session(twice).run(None, {"x": x, "y_grad": c, "x_grad_grad": u})
    np.testing.assert_allclose(actual[0], first.detach(), rtol=1e-12)
    np.testing.assert_allclose(actual[1], second, rtol=1e-12)


@pytest.mark.parametrize(("opset", "own"), [(13, 21), (17, 18), (21, 23), (23, 21), (22, 22)])
def test_opsets_are_brought_together(opset: int, own: int) -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) { h = Neg (x)  s = Softmax (h)  y = Sin (s) }"
    gradient = parse("gradient (float[2, 3] s_grad) => (float[2, 3] h_grad) { h_grad = Neg (s_grad) }", opset=own)
    model = gradcut.custom_gradient(parse(text, opset=opset), "h", "s", gradient)
    verify(model, "custom_gradient")
    assert model.opset_imports[""] == max(opset, own, 21)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype("f4")
    y, dx = run(gradcut.vjp(model, ["x"], ["y"]), {"x": x, "y_grad": np.ones((2, 3))})
    s = torch.softmax(-torch.tensor(x), -1)
    np.testing.assert_allclose(y, torch.sin(s), rtol=1e-5)
    np.testing.assert_allclose(dx, torch.cos(s), rtol=1e-5)


def test_a_loss_graph_of_a_newer_opset_takes_it_along() -> None:
    loss = parse(
        "loss (float[n, 2] y, float[n, 2] t) => (float l) {"
        "d = Sub (y, t)  q = Mul (d, d)  l = ReduceMean <keepdims = 0> (q) }",
        opset=23,
    )
    text = (
        "g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { h = MatMul (x, w)  y = Round (h) }"
    )
    gradient = parse("gradient (float[n, 2] y_grad) => (float[n, 2] h_grad) { h_grad = Identity (y_grad) }")
    artifacts = gradcut.compile(gradcut.custom_gradient(parse(text), "h", "y", gradient), loss=loss, optimizer="sgd")
    x, t = np.eye(3, dtype="f4")[:2], np.zeros((2, 2), "f4")
    (dw,) = gradcut.TrainingSession(artifacts).gradients({"x": x, "t": t}).values()
    np.testing.assert_allclose(dw, x.T @ (x @ np.arange(1, 7).reshape(3, 2)) / 2, rtol=1e-5)


# --- life ------------------------------------------------------------------------------------------------------------


def test_files_of_both_kinds_and_pipelines(tmp_path: Path) -> None:
    model = gradcut.custom_gradient(soft(), "h", "l", parse(STABLE.format(d="float")))
    ir.save(model, tmp_path / "model.onnx")
    (tmp_path / "model.onnxtxt").write_text(ir.to_onnx_text(model))
    expected = session(gradcut.vjp(model, ["x", "w"], ["y"])).run(None, given())
    for suffix in ("onnx", "onnxtxt"):
        again = gradcut.load(tmp_path / f"model.{suffix}")
        for text in ("import", "propagate{of=y wrt=[x,w]}", "differentiate", "simplify", "lower"):
            gradcut.Pipeline.parse(text)(again)
            verify(again, text)
            assert any(node.op_type == "CustomGradient_l" for node in again.graph)
        for one, other in zip(session(ir.to_proto(again)).run(None, given()), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        gradcut.Pipeline.parse("emit")(again)
        assert not again.functions and not [node for node in again.graph if node.domain]


def test_two_regions_and_one_behind_another() -> None:
    text = "g (float[2] x) => (float[2] y) { h = Neg (x)  k = Round (h)  y = Round (k) }"
    model = ir.from_proto(parse(text))
    for source, output, factor in (("h", "k", 3.0), ("k", "y", 5.0)):
        own = f"""gradient (float[2] {output}_grad) => (float[2] {source}_grad) {{
            c = Constant <value = float {{{factor}}}> ()  {source}_grad = Mul ({output}_grad, c) }}"""
        gradcut.custom_gradient(model, source, output, parse(own))
    verify(model, "custom_gradient")
    _, dx = run(gradcut.vjp(model, ["x"], ["y"]), {"x": [1, 2], "y_grad": [1, 1]})
    np.testing.assert_array_equal(dx, [-15, -15])


def test_nothing_is_left_where_nothing_behind_it_trains(tmp_path: Path) -> None:
    text = """g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> {
        h = MatMul (x, w)  r = Relu (h)  y = Add (r, b) }"""
    gradient = parse("gradient (float[n, 2] r_grad) => (float[n, 2] h_grad) { h_grad = Identity (r_grad) }")
    graphs = []
    for model in (parse(text), gradcut.custom_gradient(parse(text), "h", "r", gradient)):
        artifacts = gradcut.compile(model, loss="mse", train=["b"])
        graphs.append(
            [operators(optimised(artifacts.models[name], tmp_path)) for name in ("training_model", "eval_model")]
        )
    assert graphs[0] == graphs[1]


def test_a_check_does_not_cry_wolf() -> None:
    report = check_gradients(gradcut.custom_gradient(soft("double"), "h", "l", parse(TWICE)))
    assert report.ok, str(report)
    assert any("CustomGradient_l" in note for note in report.notes)


# --- bad input -------------------------------------------------------------------------------------------------------

REGION = """g (float[2] x, float[2] z, int64 i) => (float[2] y, float[2] k) {
    [a] h = Mul (x, x)  [b] l = Sin (h)  [c] k = Neg (l)  [d] m = Add (l, z)  [e] y = Exp (m) }"""


UNSQUEEZED = "a = Constant <value_ints = [0]> () h_grad = Unsqueeze (l_grad, a)"


def fits(
    inputs: str = "float[2] l_grad", outputs: str = "float[2] h_grad", body: str = "h_grad = Neg (l_grad)"
) -> onnx.ModelProto:
    return parse(f"gradient ({inputs}) => ({outputs}) {{ {body} }}")


@pytest.mark.parametrize(
    ("inputs", "outputs", "gradient", "message"),
    [
        ("nix", "l", fits(), "custom_gradient: inputs: there is no value 'nix'"),
        ("h", [], fits(), "custom_gradient: outputs is empty"),
        ("i", "l", fits(), "custom_gradient: inputs: 'i' is INT64; only floats"),
        (["h", "h"], "l", fits(), "'h' is named twice"),
        ("h", "h", fits(), "h is both an input and an output of the region"),
        ("l", "h", fits(), "l leads to none of h but through another input"),
        ("h", "m", fits(), "z leads to the outputs round the inputs; name it among the inputs"),
        (["x", "z"], "m", fits(), r"'l' is read outside the region too, by node 'c' \(Neg\); name it among"),
        ("h", "l", fits("float[2] q_grad, float[2] l_grad"), "the gradient's input 'q_grad' is none of h, l, l_grad"),
        ("h", "l", fits("float[2] h", body="h_grad = Neg (h)"), "reads none of l_grad, the cotangents of the outputs"),
        ("h", "l", fits(outputs="float[2] g", body="g = Neg (l_grad)"), "the gradient's output 'g' is none of h_grad"),
        ("h", "l", fits("double[2] l_grad", "double[2] h_grad"), "input 'l_grad' is DOUBLE, and 'l' FLOAT"),
        ("h", "l", fits("float[3] l_grad", "float[3] h_grad"), r"input 'l_grad' has the shape \[3\], and 'l' \[2\]"),
        ("h", "l", fits("float[2] l_grad", "float[1, 2] h_grad", UNSQUEEZED),
         r"output 'h_grad' has the shape \[1, 2\], and 'h' \[2\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_changes_nothing(
    inputs: object, outputs: object, gradient: onnx.ModelProto, message: str
) -> None:
    model = ir.from_proto(parse(REGION))
    with pytest.raises(SpecError, match=message):
        gradcut.custom_gradient(model, inputs, outputs, gradient)  # type: ignore[arg-type]
    assert ir.to_proto(model) == ir.to_proto(ir.from_proto(parse(REGION)))


def test_an_input_that_an_output_leads_to() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Sin (x)  b = Cos (a)  c = Mul (b, x)  y = Neg (c) }"
    gradient = parse(
        "gradient (float[2] a_grad, float[2] c_grad) => (float[2] x_grad) { x_grad = Add (a_grad, c_grad) }"
    )
    with pytest.raises(SpecError, match="the input 'b' is itself computed from an output of the region"):
        gradcut.custom_gradient(parse(text), ["x", "b"], ["a", "c"], gradient)


def test_files_that_are_wrong() -> None:
    missing = "g (float[2] x) => (float[2] y) { h = Neg (x)  y = gradcut.CustomGradient_y (h, x) }"
    with pytest.raises(UnsupportedModelError, match=r"there is no gradcut\.CustomGradient_y"):
        gradcut.vjp(parse(missing), ["x"], ["y"])
    model = gradcut.custom_gradient(parse(REGION), "h", "l", fits())
    (node,) = [node for node in model.graph if node.op_type == "CustomGradient_l"]
    node.attributes.pop("gradients")
    with pytest.raises(UnsupportedModelError, match="lists in gradients which of the inputs get one"):
        gradcut.vjp(model, ["x"], ["y"])
    node.attributes.add(ir.AttrInt64s("gradients", [0]))
    node.attributes.add(ir.AttrString("backward", "nix"))
    with pytest.raises(gradcut.GradcutError, match=r"the file holds no function gradcut\.nix, which is its backward"):
        gradcut.vjp(model, ["x"], ["y"])
    with pytest.raises(PatternError):
        gradcut.stop_gradient(model, "nix")


def test_what_is_said_of_an_output_afterwards_holds() -> None:
    """The cotangent that arrives at the region's output is changed before the user's graph sees it."""
    feeds = given("f8")
    gradient = parse(STABLE.format(d="double"))
    for model, factor in (
        (gradcut.gradient_scale(gradcut.custom_gradient(soft("double"), "h", "l", gradient), "l", 3.0), 3.0),
        (gradcut.stop_gradient(gradcut.custom_gradient(soft("double"), "h", "l", gradient), "l"), 0.0),
    ):
        _, found = session(gradcut.vjp(model, ["x"], ["y"])).run(None, feeds)
        plain = gradcut.custom_gradient(soft("double"), "h", "l", gradient)
        expected = session(gradcut.vjp(plain, ["x"], ["y"])).run(None, feeds)[1]
        np.testing.assert_allclose(found, factor * expected, rtol=1e-12)
