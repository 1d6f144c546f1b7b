"""`gradient_scale` and `gradient_reversal`: against torch's hooks, at 0 and 1, and by a scalar at run time."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import gradcut
from gradcut.errors import PatternError, SpecError, UnsupportedModelError
from gradcut.passes import verify
from tests.relatives.subjects import DTYPES, by_torch, check, feeds, gradients, net, operators
from tests.written import parse, run, session

FUNCTIONS = {"scale": gradcut.gradient_scale, "reversal": gradcut.gradient_reversal}
SIGN = {"scale": 1.0, "reversal": -1.0}
SQUARE = "g (float[2] x) => (float[2] y) { h = Mul (x, x)  [last] y = Mul (h, x) }"


@pytest.mark.parametrize(("which", "scale", "dtype"), itertools.product(FUNCTIONS, (0.3, -2.0, 1.0), DTYPES))
def test_the_gradient_is_that_of_a_hook_in_torch(which: str, scale: float, dtype: str) -> None:
    model = FUNCTIONS[which](net(dtype), "t", scale)
    verify(model, which)
    check(gradients(model, feeds(dtype)), by_torch(feeds(dtype), lambda g: SIGN[which] * scale * g))


@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_name_makes_an_input_that_a_run_sets(which: str, dtype: str) -> None:
    model = FUNCTIONS[which](net(dtype), "t", "lambda")
    assert [value.name for value in model.graph.inputs] == ["x", "w", "v", "lambda"]
    proto = gradcut.vjp(model, ["x", "w", "v"], ["y"])
    for scale in (0.25, 0.0, -3.0):
        given = {**feeds(dtype), "lambda": np.array(scale, np.float32)}
        check(session(proto).run(None, given)[1:], by_torch(given, lambda g, s=scale: SIGN[which] * s * g))


def test_a_name_may_be_a_scalar_that_is_there() -> None:
    text = """g (float[2] x, double[1] given) => (float[2] y) {
        two = Constant <value = double {2}> ()  late = Mul (given, two)  h = Sin (x)  y = Exp (h) }"""
    for name, factor in (("given", 1.5), ("late", 3.0)):
        model = gradcut.gradient_scale(parse(text), "h", name)
        verify(model, name)
        x = np.array([0.3, -1.0], np.float32)
        (_, dx) = run(gradcut.vjp(model, ["x"], ["y"]), {"x": x, "given": [1.5], "y_grad": [1, 1]})
        np.testing.assert_allclose(dx, factor * np.exp(np.sin(x)) * np.cos(x), rtol=1e-6)


def test_what_computes_the_scale_may_come_later_in_the_file() -> None:
    text = """g (float[2] x, float s) => (float[2] y) { h = Sin (x)  y = Exp (h)  late = Neg (s) }"""
    model = gradcut.gradient_scale(parse(text), "h", "late")
    verify(model, "gradient_scale")
    (_, dx) = run(gradcut.vjp(model, ["x"], ["y"]), {"x": [0.5, 0.1], "s": -2, "y_grad": [1, 1]})
    np.testing.assert_allclose(dx, 2 * np.exp(np.sin([0.5, 0.1])) * np.cos([0.5, 0.1]), rtol=1e-6)


# --- 0 is a stop, 1 is nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", FUNCTIONS)
def test_scale_0_is_the_mark_itself(which: str) -> None:
    stopped = FUNCTIONS[which](net(), "t", 0)
    assert onnx.printer.to_text(ir.to_proto(stopped)) == onnx.printer.to_text(
        ir.to_proto(gradcut.stop_gradient(net(), "t"))
    )
    found = gradcut.analyze(stopped, ["y"], ["w", "v"])
    assert [(edge.value, edge.reason) for edge in found.cut if edge.reason != "data"] == [("t_stopped", "mark")]


@pytest.mark.parametrize("which", FUNCTIONS)
def test_scale_1_is_nothing(which: str) -> None:
    before = net().SerializeToString()
    model = FUNCTIONS[which](ir.from_proto(net()), "t", SIGN[which])
    assert operators(model) == ["MatMul", "Tanh", "MatMul", "Sin"]
    assert net().SerializeToString() == before


def test_a_scale_of_0_in_a_file_builds_nothing_behind_it() -> None:
    """No derivative is evaluated there, so the infinite one of Sqrt at 0 never meets the 0."""
    text = """g (float[2] x) => (float[2] y) { zero = Constant <value = float {0}> ()  s = Sqrt (x)
        h = gradcut.GradientScale (s, zero)  y = Mul (h, x) }"""
    proto = gradcut.vjp(parse(text), ["x"], ["y"])
    assert operators(proto) == ["Sqrt", "gradcut.StopGradient", "Mul", "Mul"]
    (_, dx) = session(proto).run(None, {"x": np.zeros(2, np.float32), "y_grad": np.ones(2, np.float32)})
    np.testing.assert_array_equal(dx, [0, 0])


def test_a_scale_of_0_at_run_time_hands_on_zeros_whatever_came() -> None:
    text = "g (float[2] x) => (float[2] y) { h = Neg (x)  y = Sqrt (h) }"
    proto = gradcut.vjp(gradcut.gradient_scale(parse(text), "h", "s"), ["x"], ["y"])
    (_, dx) = session(proto).run(
        None, {"x": np.zeros(2, np.float32), "s": np.array(0, np.float32), "y_grad": np.ones(2, np.float32)}
    )
    np.testing.assert_array_equal(dx, [0, 0])


# --- where it may stand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "expected"),
    [("h", 2.0), ("h->last", 2.0), ("x", 1.5), ("x->last", 2.5), ("y", 1.5), (["h", "y"], 1.0), ("*", 0.5), ("?", 0.5)],
)
def test_values_uses_lists_and_globs(at: str | list[str], expected: float) -> None:
    """d x^3 at x = 1 is 2 by h and 1 by itself, each halved wherever it goes through a place."""
    model = gradcut.gradient_scale(parse(SQUARE), at, 0.5)
    (_, dx) = run(gradcut.vjp(model, ["x"], ["y"]), {"x": [1, 1], "y_grad": [1, 1]})
    np.testing.assert_array_equal(dx, [expected, expected])


def test_a_graph_output_keeps_its_name() -> None:
    model = gradcut.gradient_scale(parse(SQUARE), "y", 0.5)
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_array_equal(run(model, {"x": [2, 3]})[0], [8, 27])


def test_integers_are_left_alone() -> None:
    text = "g (int64[2] i, float[2] x) => (float[2] y) { f = Cast <to = 1> (i)  y = Mul (f, x) }"
    assert operators(gradcut.gradient_scale(parse(text), "i", 0.5)) == ["Cast", "Mul"]


def test_inside_a_loop_each_turn_is_scaled() -> None:
    text = """g (int64 n, float[1] x) => (float[1] y) <bool yes = {1}> {
        y = Loop (n, yes, x) <body = body (int64 i, bool go, float[1] a) => (bool still, float[1] b) {
        still = Identity (go)  three = Constant <value_floats = [3.0]> ()  b = Mul (a, three) }> }"""
    for scale in (0.5, "s"):
        proto = gradcut.vjp(gradcut.gradient_scale(parse(text), "b", scale), ["x"], ["y"])
        given = {"n": np.array(4), "x": np.ones(1, np.float32), "y_grad": np.ones(1, np.float32)}
        (y, dx) = session(proto).run(None, given if scale == 0.5 else {**given, "s": np.array(0.5, np.float32)})
        assert (y, dx) == (81.0, (3.0 * 0.5) ** 4)


def test_inside_a_branch() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) { h = Neg (x)
        y = If (c) <then_branch = a () => (float[2] p) { q = Sin (h)  p = Exp (q) }, else_branch = b () =>
            (float[2] r) { r = Exp (h) }> }"""
    proto = gradcut.vjp(gradcut.gradient_scale(parse(text), ["q", "h"], -2.0), ["x"], ["y"])
    x = np.array([0.2, 0.9])
    for c, expected in ((True, -4 * np.exp(np.sin(-x)) * np.cos(x)), (False, 2 * np.exp(-x))):
        dx = session(proto).run(None, {"c": np.array(c), "x": x.astype("f4"), "y_grad": np.ones(2, "f4")})[1]
        np.testing.assert_allclose(dx, expected, rtol=1e-5)


def test_what_only_a_scale_reads_has_no_gradient_and_is_no_cut() -> None:
    found = gradcut.analyze(gradcut.gradient_scale(net(), "t", "s"), ["y"], ["w", "s"])
    assert "s" not in found.active and found.cut[-1] == ("s", "", -1, "no-path-to-loss")


# --- at every order --------------------------------------------------------------------------------------------------


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, g: torch.Tensor) -> torch.Tensor:
        return 0.5 * g


def test_a_second_derivative_is_torchs() -> None:
    text = "g (double[3] x) => (double[3] y) { s = Sin (x)  h = Mul (s, x)  e = Exp (h)  y = Mul (e, x) }"
    once = gradcut.vjp(gradcut.gradient_scale(parse(text), "h", 0.5), ["x"], ["y"])
    twice = gradcut.vjp(once, ["x"], ["x_grad"])
    x, c, u = (np.random.default_rng(seed).standard_normal(3) for seed in range(3))
    t = torch.tensor(x, requires_grad=True)
    e = torch.exp(Scaled.apply(torch.sin(t) * t))
    (first,) = torch.autograd.grad((e * t), t, torch.tensor(c), create_graph=True)
    (second,) = torch.autograd.grad(first, t, torch.tensor(u))
    actual = session(twice).run(None, {"x": x, "y_grad": c, "x_grad_grad": u})
    np.testing.assert_allclose(actual[0], first.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(actual[1], second.numpy(), rtol=1e-12)
    assert "gradcut.GradientScale" in operators(twice)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "scale", "error", "message"),
    [
        ("nix", 0.5, PatternError, "'nix' matches no value"),
        ([], 0.5, SpecError, "name at least one value, scope or use"),
        ("h", float("nan"), SpecError, "scale is a finite number, not nan"),
        ("h", True, SpecError, "scale is a finite number, not True"),
        ("h", None, SpecError, "scale is a finite number, not None"),
        ("h", "", SpecError, "scale is empty"),
        ("h", "x", SpecError, "scale: 'x' has the shape"),
        ("h", "n", SpecError, "scale: 'n' is INT64; it takes a float scalar"),
        ("h", "last", SpecError, "the name is taken"),
        ("x", "top", SpecError, "'top' is computed from 'x', whose gradient it is to change"),
    ],
)
def test_bad_input_changes_nothing(at: object, scale: object, error: type[Exception], message: str) -> None:
    text = """g (float[2] x, int64 n) => (float[2] y, float top) {
        h = Mul (x, x)  [last] y = Mul (h, x)  top = ReduceMax <keepdims = 0> (x) }"""
    model = ir.from_proto(parse(text))
    with pytest.raises(error, match=message):
        gradcut.gradient_scale(model, at, scale)  # type: ignore[arg-type]
    assert ir.to_proto(model) == ir.to_proto(ir.from_proto(parse(text)))


def test_a_call_without_its_scale_is_refused() -> None:
    text = "g (float[2] x) => (float[2] y) { y = gradcut.GradientScale (x) }"
    with pytest.raises(UnsupportedModelError, match="GradientScale takes 2 values and gives one"):
        gradcut.vjp(parse(text), ["x"], ["y"])


def test_a_file_that_defines_it_otherwise_is_refused() -> None:
    model = gradcut.gradient_scale(net(), "t", 0.5)
    (function,) = model.functions.values()
    next(iter(function)).op_type = "Neg"
    with pytest.raises(UnsupportedModelError, match="GradientScale as something else than Identity"):
        gradcut.vjp(model, ["x"], ["y"])
