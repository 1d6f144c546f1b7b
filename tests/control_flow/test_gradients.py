"""If, Loop and Scan against central differences, first and second order, and against torch, unrolled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

import gradcut
from gradcut.errors import NoGradientError
from gradcut.runtime.check import check_gradients, require
from gradcut.runtime.widen import runtime
from tests.control_flow.subjects import BRANCHES, EARLY, GROWING, IN_TURN, LOOP, NESTED, Array, W, X, feeds, model

CASES = {
    "then": (BRANCHES, feeds(c=True)),
    "else": (BRANCHES, feeds(c=False)),
    "three_turns": (LOOP, feeds(n=3, go=True)),
    "no_turns": (LOOP, feeds(n=0, go=True)),
    "never": (LOOP, feeds(n=3, go=False)),
    "ended_by_its_condition": (EARLY, {**feeds(n=9), "x": np.abs(X)}),
    "ended_by_its_count": (EARLY, {**feeds(n=2), "x": np.abs(X)}),
    "nested": (NESTED, feeds(n=3, c=True)),
    "nested_no_turns": (NESTED, feeds(n=0, c=True)),
    "nested_else": (NESTED, feeds(n=3, c=False)),
    "loop_in_loop": (IN_TURN, feeds(n=2)),
    "growing": (GROWING, {**feeds(n=3), "x": X[None], "w": np.outer(W, X)}),
    "growing_no_turns": (GROWING, {**feeds(n=0), "x": X[None], "w": np.outer(W, X)}),
}


@pytest.mark.parametrize("name", CASES)
def test_first_order(name: str) -> None:
    text, given = CASES[name]
    require(check_gradients(model(text), given, seed=4))


@pytest.mark.parametrize("name", CASES)
def test_second_order(name: str) -> None:
    text, given = CASES[name]
    twice = gradcut.vjp(model(text), ["x", "w"], ["y"])
    cotangent = np.array([0.5, -1.2], np.float32)
    if name.startswith("growing"):
        cotangent = np.tile(cotangent, (2 ** int(given["n"]), 1))
    require(check_gradients(twice, {**given, "y_grad": cotangent}, directions=2, seed=4))


@pytest.mark.parametrize("opset", [11, 13, 26])
@pytest.mark.parametrize("name", ["then", "three_turns", "nested"])
def test_other_opsets(name: str, opset: int) -> None:
    text, given = CASES[name]
    require(check_gradients(model(text, opset), given, directions=1, seed=4))


# --- torch, unrolled -------------------------------------------------------------------------------------------


def by_torch(function: Callable[..., torch.Tensor], *arrays: Array) -> list[Array]:
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    return [g.numpy() for g in torch.autograd.grad(function(*leaves).sum(), leaves)]


def by_gradcut(text: str, given: dict[str, Array], wrt: list[str]) -> list[Array]:
    proto = gradcut.vjp(model(text), wrt, ["y"])
    return runtime(proto)({**given, "y_grad": np.ones_like(given["x"])})[1:]


@pytest.mark.parametrize("turns", [0, 1, 5])
def test_loop_is_torch_unrolled(turns: int) -> None:
    def unrolled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(turns):
            x = torch.tanh(x * w)
        return x + 0 * w  # with no turns w is unused

    mine = by_gradcut(LOOP, feeds(n=turns, go=True), ["x", "w"])
    for got, expected in zip(mine, by_torch(unrolled, X, W), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_condition_ends_as_torch_does() -> None:
    def unrolled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        g, still = x, True
        while still:
            still = bool(x.sum() < 6.0)
            x, g = x + g * (x * w), x
        return x

    mine = by_gradcut(EARLY, {**feeds(n=99), "x": np.abs(X)}, ["x", "w"])
    for got, expected in zip(mine, by_torch(unrolled, np.abs(X), W), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_scan_is_torchs_recurrent_network() -> None:
    text = """(float[N, T, 2] x, float[2, 3] w, float[3, 3] u, float[N, 3] h) => (float[N, T, 3] y) {
        last, y = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = cell (float[N, 3] s, float[N, 2] a) => (float[N, 3] next, float[N, 3] o) {
                p = MatMul(a, w)
                q = MatMul(s, u)
                r = Add(p, q)
                next = Tanh(r)
                o = Identity(next)
            }>(h, x)
    }"""
    rng = np.random.default_rng(2)
    shapes = {"x": (4, 5, 2), "w": (2, 3), "u": (3, 3), "h": (4, 3)}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    cell = torch.nn.RNN(2, 3, bias=False, batch_first=True)
    with torch.no_grad():
        cell.weight_ih_l0.copy_(torch.tensor(given["w"].T))
        cell.weight_hh_l0.copy_(torch.tensor(given["u"].T))
    x, h = (torch.tensor(given[name], requires_grad=True) for name in "xh")
    cotangent = rng.standard_normal((4, 5, 3)).astype(np.float32)
    y, _ = cell(x, h[None])
    y.backward(torch.tensor(cotangent))
    mine = runtime(gradcut.vjp(model(text), list(shapes), ["y"]))({**given, "y_grad": cotangent})[1:]
    theirs = [x.grad, cell.weight_ih_l0.grad.T, cell.weight_hh_l0.grad.T, h.grad]
    for got, expected in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


# --- what is refused -------------------------------------------------------------------------------------------


def test_a_body_that_draws_numbers_of_classes_is_refused() -> None:
    draw = "k = Constant<value_ints = [0]>() e = Unsqueeze(h, k) m = Multinomial(e) r = Cast<to = 1>(m)"
    text = LOOP.replace("t = Mul(h, w)", f"{draw} s = Squeeze(r, k) t = Mul(h, s)")
    with pytest.raises(NoGradientError, match=r"draws at random \(Multinomial\)"):
        gradcut.vjp(model(text), ["x"], ["y"])


def test_a_draw_that_no_gradient_reads_is_none() -> None:
    text = LOOP.replace("o = Sin(next)", "o = RandomNormalLike(next)")
    require(check_gradients(model(text), feeds(n=2, go=True), of=["y"]))


def test_the_batched_scan_of_opset_8_is_refused() -> None:
    text = """(float[1, 2] x, float[1, 3, 2] a) => (float[1, 2] y) {
        y = Scan<num_scan_inputs = 1, body = b (float[2] s, float[2] t) => (float[2] n) { n = Add(s, t) }>(, x, a)
    }"""
    with pytest.raises(gradcut.errors.UnsupportedModelError, match="the Scan of opset 8 has a batch axis"):
        gradcut.vjp(model(text, 8), ["x"], ["y"])


# --- the form of what comes out --------------------------------------------------------------------------------


def test_names_of_gradients_are_free_of_those_inside() -> None:
    proto = gradcut.vjp(model(NESTED), ["x", "w"], ["y"])
    assert [output.name for output in proto.graph.output] == ["y", "x_grad", "w_grad"]
    onnx.checker.check_model(proto, full_check=True)


def test_nothing_is_kept_of_a_body_that_is_linear_in_its_state() -> None:
    text = LOOP.replace("next = Tanh(t)", "next = Identity(t)")
    loops = [node for node in gradcut.vjp(model(text), ["x"], ["y"]).graph.node if node.op_type == "Loop"]
    forward, _ = loops
    assert len(forward.output) == 3  # the state, its stack, and the count of turns
