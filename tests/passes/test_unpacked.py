"""What ONNX Runtime's kernels do not take, or compute wrong, is written in another way; against torch and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradcut
from gradcut.runtime.check import check_gradients, require
from tests.written import parse, session

RNG = np.random.default_rng(5)
B, S, L, HEADS, SIZE = 2, 3, 4, 2, 5


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def by_torch(q: np.ndarray, k: np.ndarray, v: np.ndarray, dY: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Attention in float64 of operands [batch, sequence, heads, size], and their gradients."""
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (q, k, v)]
    heads = [x.transpose(1, 2) for x in leaves]
    y = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    grads = torch.autograd.grad(y, leaves, torch.tensor(dY, dtype=torch.float64))
    return y.detach().numpy(), [g.numpy() for g in grads]


@pytest.mark.parametrize("length", [str(S), "N"])
def test_query_key_and_value_in_one(length: str) -> None:
    text = f"""g (float[{B}, {length}, {HEADS}, 3, {SIZE}] x) => (float[{B}, {length}, {HEADS * SIZE}] y) {{
        y = com.microsoft.MultiHeadAttention<num_heads = {HEADS}>(x) }}"""
    x, dY = normal(B, S, HEADS, 3, SIZE), normal(B, S, HEADS * SIZE)
    proto = gradcut.vjp(parse(text, also=', "com.microsoft" : 1'), ["x"], ["y"])
    y, dx = session(proto).run(None, {"x": x, "y_grad": dY})
    expected, gradients = by_torch(x[..., 0, :], x[..., 1, :], x[..., 2, :], dY)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, np.stack(gradients, 3), rtol=1e-4, atol=1e-6)


def test_key_and_value_in_one() -> None:
    text = f"""g (float[{B}, {S}, D] x, float[{B}, {L}, {HEADS}, 2, {SIZE}] kv) => (float[{B}, {S}, D] y) {{
        y = com.microsoft.MultiHeadAttention<num_heads = {HEADS}>(x, kv) }}"""
    x, kv, dY = normal(B, S, HEADS * SIZE), normal(B, L, HEADS, 2, SIZE), normal(B, S, HEADS * SIZE)
    proto = gradcut.vjp(parse(text, also=', "com.microsoft" : 1'), ["x", "kv"], ["y"])
    y, dx, dkv = session(proto).run(None, {"x": x, "kv": kv, "y_grad": dY})
    expected, gradients = by_torch(x.reshape(B, S, HEADS, SIZE), kv[..., 0, :], kv[..., 1, :], dY)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, gradients[0].reshape(x.shape), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dkv, np.stack(gradients[1:], 3), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_transposed_matrix_by_a_vector_is_multiplied_right(batch: tuple[int, ...]) -> None:
    """ONNX Runtime fuses the two nodes, and its fused kernel reads the matrix as if it lay transposed already."""
    perm = [1, 0] if not batch else [0, 2, 1]
    dims, out = ", ".join(map(str, (*batch, 4, 3))), ", ".join(map(str, (*batch, 3)))
    text = f"g (float[{dims}] a, float[4] b) => (float[{out}] y) {{ t = Transpose<perm = {perm}>(a) y = MatMul(t, b) }}"
    a, b, dY = normal(*batch, 4, 3), normal(4), normal(*batch, 3)
    y, da, db = session(gradcut.vjp(parse(text), ["a", "b"], ["y"])).run(None, {"a": a, "b": b, "y_grad": dY})
    np.testing.assert_allclose(y, np.swapaxes(a, -1, -2) @ b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(da, b[:, None] * dY[..., None, :], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(db, (a * dY[..., None, :]).sum(-1).reshape(-1, 4).sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "node",
    [
        "Trilu<upper = 0>(x)",
        "TransposeMatMul<transA = 1>(x, x)",
        'GridSample<mode = "bilinear", padding_mode = "border">(image, grid)',
        'GridSample<mode = "bicubic">(image, grid)',
        "Pad(x, pads)",
    ],
)
def test_operators_that_onnx_has_by_now(node: str) -> None:
    text = f"""g (float[3, 3] x) => (float y) <int64[4] pads = {{1, 0, 0, 2}}, int64[4] dims = {{1, 1, 3, 3}},
        float[1, 1, 2, 2] grid = {{0.3, -0.4, 0.55, 0.1}}> {{
        image = Reshape(x, dims) r = com.microsoft.{node} e = Exp(r) y = ReduceSum<keepdims = 0>(e) }}"""
    proto = parse(text, also=', "com.microsoft" : 1')
    x = normal(3, 3) * 0.3
    require(check_gradients(proto, {"x": x}, seed=1))
    (y,) = session(proto).run(None, {"x": x})
    np.testing.assert_allclose(session(gradcut.vjp(proto, ["x"], ["y"])).run(["y"], {"x": x, "y_grad": y})[0], y, 1e-5)
