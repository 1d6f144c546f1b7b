"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.in_torch.call import Call


def gemm(a: Call, x: Tensor, y: Tensor, c: Tensor | None = None) -> Tensor:
    x, y = x.T if a.get("transA", 0) else x, y.T if a.get("transB", 0) else y
    product = a.get("alpha", 1.0) * (x @ y)
    return product if c is None else product + a.get("beta", 1.0) * c


def attention(a: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Heads of their own [batch, heads, length, size], or shared by groups of query heads."""
    assert q.ndim == 4 and a.outputs == 1
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    causal = bool(a.get("is_causal", 0))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=a.get("scale"))


OPERATORS = {
    "Attention": attention,
    "Det": lambda a, x: torch.linalg.det(x),
    "Einsum": lambda a, *xs: torch.einsum(a.text("equation", ""), *xs),
    "Gemm": gemm,
    "MatMul": lambda a, x, y: x @ y,
}
