"""`zero_grad_like`, the batch form of `stop_gradient`, and marks on copies."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

import gradcut
from gradcut.errors import PatternError, SpecError
from gradcut.passes import verify
from tests.written import parse, run, session

TWICE = """g (float[2] x) => (float[2] y) {
    c = Identity (x)  [left] a = Sin (c)  [right] b = Exp (x)  y = Mul (a, b) }"""


@pytest.mark.parametrize(
    ("like", "shape", "dtype"),
    [
        (np.ones((2, 0, 3), np.float32), (2, 0, 3), np.float32),
        (np.ones((), np.float64), (), np.float64),
        (np.ones(4, np.float16), (4,), np.float16),
        (np.ones(4, ml_dtypes.bfloat16), (4,), ml_dtypes.bfloat16),
        (torch.ones(2, 3, requires_grad=True), (2, 3), np.float32),
        (torch.ones(5, dtype=torch.bfloat16), (5,), ml_dtypes.bfloat16),
        (torch.ones(5, dtype=torch.float64), (5,), np.float64),
        (ir.tensor(np.ones((1, 2), np.float16)), (1, 2), np.float16),
        (2.5, (), np.float64),
        ([[1.0, 2.0]], (1, 2), np.float64),
    ],
)
def test_zeros_of_an_array(like: object, shape: tuple[int, ...], dtype: type) -> None:
    zeros = gradcut.zero_grad_like(like)
    assert zeros.shape == shape and zeros.dtype == dtype and not zeros.any()


@pytest.mark.parametrize(
    "like", [np.ones(2, int), np.ones(2, bool), np.array(["a"]), torch.ones(2, dtype=torch.int32), 3, 1j]
)
def test_what_carries_no_gradient_is_refused(like: object) -> None:
    with pytest.raises(SpecError, match="carries no gradient; only floats do"):
        gradcut.zero_grad_like(like)


@pytest.mark.parametrize("model", ["model.onnx", parse(TWICE)])
def test_a_model_alone_is_refused(model: object) -> None:
    with pytest.raises(SpecError, match="an array, or a model and the name of a value of it"):
        gradcut.zero_grad_like(model)


@pytest.mark.parametrize(
    ("name", "dtype"), [("x", np.float32), ("h", np.float32), ("w", np.float64), ("z", np.float16)]
)
def test_zeros_of_a_value_have_its_shape_in_each_run(name: str, dtype: type) -> None:
    text = """g (float[n] x, int64[k] s) => (float[n, n] y) <double[2, 1] w = {1, 2}> {
        r = Unsqueeze (x, axes)  h = Reshape (y, s)  y = MatMul (r, t)  t = Transpose (r)
        axes = Constant <value_ints = [1]> ()  z = Cast <to = 10> (h) }"""
    model = gradcut.zero_grad_like(parse(text), name)
    if model.graph.outputs[-1].shape is not None:  # onnx's checker insists on the rank of an output
        verify(model, "zero_grad_like")
    assert [value.name for value in model.graph.outputs] == ["y", f"{name}_grad"]
    for n, s in ((2, (4, 1)), (3, (9,)), (0, (0, 5))):
        given = {"x": np.ones(n, np.float32), "s": np.array(s)}
        zeros = session(ir.to_proto(model)).run([f"{name}_grad"], given)[0]
        assert zeros.shape == {"x": (n,), "h": s, "w": (2, 1), "z": s}[name]
        assert zeros.dtype == dtype and not zeros.any()


def test_a_name_that_is_taken_gets_the_next_free_one() -> None:
    model = gradcut.zero_grad_like(gradcut.zero_grad_like(parse(TWICE), "a"), "a")
    assert [value.name for value in model.graph.outputs] == ["y", "a_grad", "a_grad_2"]
    text = "g (int64[2] i) => (float[2] y) { y = Cast <to = 1> (i) }"
    for name, message in (("i", "'i' is INT64, which carries no gradient"), ("nix", "there is no value 'nix'")):
        model = ir.from_proto(parse(text))
        with pytest.raises(SpecError, match=message):
            gradcut.zero_grad_like(model, name)
        assert len(model.graph.outputs) == 1


# --- many at once, and copies ----------------------------------------------------------------------------------------


def gradient(model: ir.Model) -> np.ndarray:
    (_, dx) = run(gradcut.vjp(model, ["x"], ["y"]), {"x": [0.3, 1.2], "y_grad": [1, 1]})
    return dx


X = np.array([0.3, 1.2], np.float32)
LEFT, RIGHT = np.cos(X) * np.exp(X), np.sin(X) * np.exp(X)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ([], LEFT + RIGHT),
        (["a"], RIGHT),
        (["c"], RIGHT),
        (["x->right"], LEFT),
        (["c", "x->right"], 0 * X),
        (["a", "b"], 0 * X),
        (["?->left", "b"], 0 * X),
        (["[ab]", "a"], None),
        ("*", 0 * X),
        (("a", "a"), RIGHT),
    ],
)
def test_one_name_a_glob_or_many(at: object, expected: np.ndarray | None) -> None:
    """A mark on the copy, or on the one use that reads it, leaves the other use alone."""
    model = ir.from_proto(parse(TWICE))
    if expected is None:
        with pytest.raises(PatternError):
            gradcut.stop_gradient(model, at)  # type: ignore[arg-type]
        assert len(model.graph) == 4
        return
    np.testing.assert_allclose(gradient(gradcut.stop_gradient(model, at)), expected, rtol=1e-6)  # type: ignore[arg-type]


def test_marking_a_copy_in_torch_is_the_same() -> None:
    x = torch.tensor(X, requires_grad=True)
    (torch.sin(x.clone().detach()) * torch.exp(x)).sum().backward()
    np.testing.assert_allclose(gradient(gradcut.stop_gradient(parse(TWICE), "c")), x.grad, rtol=1e-6)
