"""`gradient_clip`: against clamp and clip_grad_norm_ of torch, and at the values where bounds are unusual."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch

import gradcut
from gradcut.errors import PatternError, SpecError
from gradcut.passes import verify
from tests.relatives.subjects import DTYPES, by_torch, check, feeds, gradients, net, operators
from tests.written import parse, session

BOUNDS = [(0.05, None), (None, 0.3), (None, 1e3), (0.1, 0.2)]
NEG = "g ({dtype}[n] x) => ({dtype}[n] y) {{ h = Neg (x)  y = Identity (h) }}"


def by_bounds(value: float | None, norm: float | None, g: torch.Tensor) -> torch.Tensor:
    g = g if value is None else g.clamp(-value, value)
    return g if norm is None else g * min(1.0, norm / float(g.norm()))


def clipped(dtype: str, cotangent: list[float], **bounds: float) -> np.ndarray:
    """What of a cotangent comes out, with its sign as it was."""
    proto = gradcut.vjp(gradcut.gradient_clip(parse(NEG.format(dtype=dtype)), "h", **bounds), ["x"], ["y"])
    dY = np.array(cotangent, DTYPES[dtype])
    return -session(proto).run(["x_grad"], {"x": np.zeros_like(dY), "y_grad": dY})[0]


@pytest.mark.parametrize(("bounds", "dtype"), itertools.product(BOUNDS, DTYPES))
def test_the_gradient_is_torchs(bounds: tuple[float | None, float | None], dtype: str) -> None:
    model = gradcut.gradient_clip(net(dtype), "t", *bounds)
    verify(model, "gradient_clip")
    check(gradients(model, feeds(dtype)), by_torch(feeds(dtype), lambda g: by_bounds(*bounds, g)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_norm_is_clip_grad_norm(dtype: str) -> None:
    """torch divides by the norm plus 1e-6."""
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    parameter.grad = torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([parameter], 2.0)
    np.testing.assert_allclose(
        clipped(dtype, [3, -4, 12], norm=2), parameter.grad, rtol=2 * np.finfo(DTYPES[dtype]).eps + 1e-6
    )


def test_the_norm_of_halves_does_not_overflow() -> None:
    """300^2 is no half."""
    np.testing.assert_allclose(clipped("float16", [300.0, -400.0], norm=5), [3, -4], rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_nan_and_infinity(dtype: str) -> None:
    inf, nan = np.inf, np.nan
    np.testing.assert_array_equal(clipped(dtype, [0, 0], norm=2), [0, 0])
    np.testing.assert_array_equal(clipped(dtype, [nan, 1, inf, -inf, -5], value=2), [nan, 1, 2, -2, -2])
    np.testing.assert_array_equal(clipped(dtype, [nan, 1], norm=2), [nan, nan])
    np.testing.assert_array_equal(clipped(dtype, [inf, 1], norm=2), [nan, 0])


def test_no_elements() -> None:
    for bounds in ({"value": 1.0}, {"norm": 1.0}):
        assert clipped("float", [], **bounds).shape == (0,)


def test_both_bounds_are_two_nodes_and_the_value_comes_first() -> None:
    assert operators(gradcut.gradient_clip(net(), "t", value=1, norm=2)) == [
        "MatMul", "Tanh", "gradcut.GradientClipNorm", "gradcut.GradientClipValue", "MatMul", "Sin",
    ]  # fmt: skip
    np.testing.assert_allclose(clipped("float", [9, 0.5], value=1, norm=2), [1, 0.5])


def test_each_use_of_a_value_has_a_cotangent_of_its_own() -> None:
    text = "g (float[2] x) => (float[2] y) { [a] p = Neg (x)  [b] q = Neg (x)  y = Add (p, q) }"
    for at, expected in (("x", -1.0), (["x->a", "x->b"], -2.0), ("x->a", -4.0)):
        proto = gradcut.vjp(gradcut.gradient_clip(parse(text), at, value=1), ["x"], ["y"])
        dx = session(proto).run(["x_grad"], {"x": np.zeros(2, "f4"), "y_grad": np.full(2, 3, "f4")})[0]
        np.testing.assert_array_equal(dx, [expected, expected])


@pytest.mark.parametrize(("value", "norm"), BOUNDS)
def test_a_second_derivative_is_torchs(value: float | None, norm: float | None) -> None:
    text = "g (double[3] x) => (double[3] y) { s = Sin (x)  y = Exp (s) }"
    twice = gradcut.vjp(
        gradcut.vjp(gradcut.gradient_clip(parse(text), "s", value, norm), ["x"], ["y"]), ["x"], ["x_grad"]
    )
    x, c, u = (np.random.default_rng(seed).standard_normal(3) for seed in range(3))

    class Clip(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, g: torch.Tensor) -> torch.Tensor:
            g = g if value is None else g.clamp(-value, value)
            return g if norm is None else g * torch.clamp(norm / g.norm(), max=1.0)

    t = torch.tensor(x, requires_grad=True)
    (first,) = torch.autograd.grad(torch.exp(Clip.apply(torch.sin(t))), t, torch.tensor(c), create_graph=True)
    (second,) = torch.autograd.grad(first, t, torch.tensor(u))
    actual = session(twice).run(None, {"x": x, "y_grad": c, "x_grad_grad": u})
    np.testing.assert_allclose(actual[0], first.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(actual[1], second.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "say a bound, value= of each element or norm= of the whole gradient"),
        ({"value": 0}, "value is 0; a bound is above 0, and gradcut.stop_gradient stops"),
        ({"norm": -1.5}, "norm is -1.5; a bound is above 0"),
        ({"norm": float("inf")}, "norm is a finite number, not inf"),
        ({"value": "1"}, "value is a finite number, not '1'"),
    ],
)
def test_bad_bounds_change_nothing(bounds: dict[str, float], message: str) -> None:
    model = ir.from_proto(net())
    with pytest.raises(SpecError, match=message):
        gradcut.gradient_clip(model, "t", **bounds)
    with pytest.raises(PatternError):
        gradcut.gradient_clip(model, "nix", value=1)
    assert operators(model) == ["MatMul", "Tanh", "MatMul", "Sin"]
