"""`straight_through`: forward q(x) bit for bit, backward the identity; against torch, and the form that marks make."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import gradcut
from gradcut.errors import PatternError, SpecError
from gradcut.passes import verify
from tests.relatives.subjects import DTYPES, operators
from tests.written import parse, run, session

STEP = """g ({dtype}[n] x, {dtype}[n] w) => ({dtype}[n] y) {{
    s = Sin (x)  eighth = Constant <value = float {{0.125}}> ()  k = CastLike (eighth, x)
    d = Div (s, k)  r = Round (d)  q = Mul (r, k)
    y = Mul (q, w) }}"""


def feeds(dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(7).astype(DTYPES[dtype]) for name in ("x", "w", "y_grad")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_is_the_rounded_value_and_backward_the_identity(dtype: str) -> None:
    given, plain = feeds(dtype), parse(STEP.format(dtype=dtype))
    model = gradcut.straight_through(plain, "q", "s")
    verify(model, "straight_through")
    y, dx, dw = session(gradcut.vjp(model, ["x", "w"], ["y"])).run(None, given)
    forward = {name: given[name] for name in "xw"}
    np.testing.assert_array_equal(y, session(plain).run(None, forward)[0])
    np.testing.assert_array_equal(session(ir.to_proto(model)).run(None, forward)[0], y)
    x, w, c = (torch.tensor(given[name].astype(np.float64), requires_grad=True) for name in ("x", "w", "y_grad"))
    s = torch.sin(x)
    q = s + (torch.round(s / 0.125) * 0.125 - s).detach()
    (q * w).backward(c.detach())
    tolerance = {"rtol": 4 * np.finfo(given["x"].dtype).eps, "atol": 4 * np.finfo(given["x"].dtype).eps}
    np.testing.assert_allclose(dx, x.grad, **tolerance)
    np.testing.assert_allclose(dw, w.grad, **tolerance)


def test_the_same_written_with_a_mark() -> None:
    """x + stop(q(x) - x) needs nothing but the mark."""
    text = """g (double[n] x, double[n] w) => (double[n] y) {
        r = Round (x)  d = Sub (r, x)  m = gradcut.StopGradient (d)  q = Add (x, m)  y = Mul (q, w) }"""
    mine = gradcut.straight_through(
        parse("g (double[n] x, double[n] w) => (double[n] y) { r = Round (x)  y = Mul (r, w) }"), "r"
    )
    for one, other in zip(
        *(session(gradcut.vjp(m, ["x", "w"], ["y"])).run(None, feeds("double")) for m in (parse(text), mine)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-14)


def test_nothing_goes_through_what_rounds() -> None:
    model = gradcut.straight_through(parse(STEP.format(dtype="float")), "q", "s")
    found = gradcut.analyze(model, ["y"], ["x", "w"])
    assert not found.active & {"d", "r", "q"} and {"s", "x", "w"} <= found.active
    assert [(edge.value, edge.reason) for edge in found.cut] == [("q", "mark")]
    backward = [op for op in operators(gradcut.vjp(model, ["x"], ["y"])) if op not in ("Sin", "Div", "Round", "Cast")]
    assert backward == ["Mul", "gradcut.StraightThroughEstimator", "Mul", "Mul", "Cos", "Mul"]


@pytest.mark.parametrize("op", ["Round", "Floor", "Ceil", "Sign"])
def test_the_input_is_the_only_float_operand(op: str) -> None:
    model = gradcut.straight_through(parse(f"g (float[2] x) => (float[2] y) {{ q = {op} (x)  y = Mul (q, q) }}"), "q")
    _, dx = run(gradcut.vjp(model, ["x"], ["y"]), {"x": [0.4, -1.7], "y_grad": [1, 1]})
    rounded = {"Round": np.round, "Floor": np.floor, "Ceil": np.ceil, "Sign": np.sign}[op](np.array([0.4, -1.7]))
    np.testing.assert_array_equal(dx, (2 * rounded).astype(np.float32))


def test_constants_are_no_operands_to_choose_from() -> None:
    text = """g (float[2] x) => (float[2] y) <float low = {-1}, float high = {1}> {
        q = Clip (x, low, high)  y = Mul (q, q) }"""
    model = gradcut.straight_through(parse(text), "q")
    _, dx = run(gradcut.vjp(model, ["x"], ["y"]), {"x": [0.5, 3], "y_grad": [1, 1]})
    np.testing.assert_array_equal(dx, [1, 2])


def test_what_has_no_derivative_may_be_gone_round() -> None:
    model = gradcut.straight_through(parse("g (float[4] x) => (float[4] y) { q = Hardmax (x)  y = Mul (q, x) }"), "q")
    _, dx = run(gradcut.vjp(model, ["x"], ["y"]), {"x": [1, 4, 2, 3], "y_grad": [1, 1, 1, 1]})
    np.testing.assert_array_equal(dx, [1, 5, 2, 3])


def test_a_graph_output_and_several_at_once() -> None:
    text = "g (float[2] x) => (float[2] q1, float[2] q2) { q1 = Round (x)  q2 = Floor (x) }"
    model = gradcut.straight_through(parse(text), "q?")
    assert [value.name for value in model.graph.outputs] == ["q1", "q2"]
    dx = session(gradcut.vjp(model, ["x"], ["q1", "q2"])).run(
        ["x_grad"], {"x": np.zeros(2, "f4"), "q1_grad": np.array([1, 2], "f4"), "q2_grad": np.array([10, 20], "f4")}
    )[0]
    np.testing.assert_array_equal(dx, [11, 22])


def test_a_rounded_weight_stays_a_parameter() -> None:
    text = """g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {0.4, 1.6, 2.2, -0.7}> {
        q = Round (w)  y = MatMul (x, q) }"""
    model = gradcut.straight_through(parse(text), "q")
    session_ = gradcut.TrainingSession(gradcut.compile(model, loss="mse", optimizer=gradcut.SGD(lr=1.0)))
    x, labels = np.eye(2, dtype="f4"), np.zeros((2, 2), "f4")
    before = session_.parameters()["w"]
    (gradient,) = session_.gradients({"x": x, "labels": labels}).values()
    np.testing.assert_allclose(gradient, np.round(before) / 2, rtol=1e-6)


def test_inside_a_loop() -> None:
    text = """g (int64 n, float[1] x) => (float[1] y) <bool yes = {1}> {
        y = Loop (n, yes, x) <body = body (int64 i, bool go, float[1] a) => (bool still, float[1] b) {
        still = Identity (go)  r = Round (a)  b = Mul (r, r) }> }"""
    proto = gradcut.vjp(gradcut.straight_through(parse(text), "r"), ["x"], ["y"])
    y, dx = session(proto).run(None, {"n": np.array(2), "x": np.array([2.3], "f4"), "y_grad": np.ones(1, "f4")})
    assert (y, dx) == (16.0, (2 * 2) * (2 * 4))


def test_a_second_derivative_goes_the_same_way() -> None:
    """y = q^2: dx = 2 q dY, and its own derivative by x is 2 dY again."""
    model = gradcut.straight_through(parse("g (float[2] x) => (float[2] y) { q = Round (x)  y = Mul (q, q) }"), "q")
    twice = gradcut.vjp(gradcut.vjp(model, ["x"], ["y"]), ["x"], ["x_grad"])
    _, ddx = run(twice, {"x": [0.4, 1.6], "y_grad": [1, 3], "x_grad_grad": [1, 1]})
    np.testing.assert_array_equal(ddx, [2, 6])


@pytest.mark.parametrize(
    ("output", "source", "error", "message"),
    [
        ("nix", None, PatternError, "'nix' matches no value"),
        ("q", None, SpecError, r"\(Add\) that gives 'q' has not one float operand but x, w; say which"),
        ("q", "nix", SpecError, "there is no value 'nix'"),
        ("q", "y", SpecError, "'q' is not computed from 'y'"),
        ("q", "m", SpecError, r"'q' has the shape \[2\] and 'm' \[2, 1\]"),
        ("q", "i", SpecError, "'i' is INT64; only floats carry a gradient"),
        ("q", "d", SpecError, "'q' is FLOAT and 'd' DOUBLE"),
        ("x", None, SpecError, "no node gives 'x'"),
        (["q", "y"], "x", SpecError, "input= is for one output"),
        ("i", None, SpecError, "no float value is among what the patterns match"),
    ],
)
def test_bad_input_changes_nothing(output: str, source: str | None, error: type[Exception], message: str) -> None:
    text = """g (float[2] x, float[2, 1] m, int64 i, double[2] d) => (float[2] y) {
        w0 = ReduceSum <keepdims = 0> (m)  f = Cast <to = 1> (i)  e = Cast <to = 1> (d)
        a = Mul (w0, f)  w = Mul (a, e)  q = Add (x, w)  y = Neg (q) }"""
    model = ir.from_proto(parse(text))
    with pytest.raises(error, match=message):
        gradcut.straight_through(model, output, source)
    assert ir.to_proto(model) == ir.to_proto(ir.from_proto(parse(text)))


def test_what_is_said_of_the_rounded_value_holds_behind_it_too() -> None:
    """In whichever order: the gradient that arrives at q is changed before it is handed to s."""
    given, step = feeds("double"), parse(STEP.format(dtype="double"))
    x, w, c = (given[name] for name in ("x", "w", "y_grad"))
    through = lambda model: gradcut.straight_through(model, "q", "s")
    kept = np.arange(7) % 2 == 0
    rows = step.graph.input[0].type.tensor_type.shape.dim[0]
    changes = {
        "scale": (lambda model, at: gradcut.gradient_scale(model, at, 0.5), 0.5),
        "clip": (lambda model, at: gradcut.gradient_clip(model, at, value=0.1), None),
        "condition": (lambda model, at: gradcut.conditional_stop(model, at, "closed"), 0.0),
        "stop": (gradcut.stop_gradient, 0.0),
        "mask": (lambda model, at: gradcut.gradient_mask(model, at, kept), kept),
    }
    assert rows.dim_param == "n"
    rows.dim_value = 7
    for value in step.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 7
    for name, (change, factor) in changes.items():
        arriving = np.clip(c * w, -0.1, 0.1) if factor is None else c * w * factor
        for model in (change(through(step), "q"), through(change(step, "q")), through(change(step, "s"))):
            closed = {"closed": np.array(True)} if name == "condition" else {}
            _, dx = session(gradcut.vjp(model, ["x"], ["y"])).run(None, {**given, **closed})
            np.testing.assert_allclose(dx, arriving * np.cos(x), rtol=1e-13, atol=1e-15, err_msg=name)


def test_stop_at_a_rounded_value_stops() -> None:
    model = gradcut.straight_through(parse(STEP.format(dtype="double")), "q", "s")
    _, dx = session(gradcut.vjp(model, ["x"], ["y"], stop_at=["q"])).run(None, feeds("double"))
    assert not dx.any()
