"""Products and activations of ONNX Runtime's own domain, as its optimiser writes them into the files that it saves.

Operands and attributes: docs/ContribOperators.md of onnxruntime. Each is declared by what it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.compose import composed
from gradcut.rules.registry import rule

MICROSOFT = "com.microsoft"


@composed("FusedMatMul", "A B", operands="A B", weights="A B", domain=MICROSOFT)
def fused_matmul(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = alpha A' B', A' and B' transposed where asked: the last two axes, or the first behind the batches.

    Not covered: a vector B beside a transposed A, where ONNX Runtime's product is that of another matrix.
    """
    b = op.b
    if op.rank("B") == 1 and op.attr("transA", 0) and op.rank("A") > 1:
        op.refuse("B is a vector and A transposed, and ONNX Runtime multiplies by another matrix there; unfuse it")
    left, right = (_turned(op, name) for name in ("A", "B"))
    product, alpha = b.MatMul(left, right), op.attr("alpha", 1.0)
    return [product if alpha == 1.0 else product * alpha]


def _turned(op: Adjoint, name: str) -> ir.Value:
    rank, x = op.rank(name), op[name]
    perm = list(range(rank))
    if rank > 2 and op.attr(f"transBatch{name}", 0):
        perm = [*perm[1:-1], 0, perm[-1]]
    if rank > 1 and op.attr(f"trans{name}", 0):
        perm[-2:] = perm[-1], perm[-2]
    return x if perm == sorted(perm) else op.b.Transpose(x, perm=perm)


@composed("FusedGemm", "A B C", operands="A B C", weights="B C", domain=MICROSOFT)
def fused_gemm(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = f(alpha A' B' + beta C), f the activation."""
    own = {name: op.attr(name) for name in ("alpha", "beta", "transA", "transB")}
    C = op.get("C")
    operands = (op["A"], op["B"]) if C is None else (op["A"], op["B"], C)
    y = op.b.op("Gemm", *operands, dtype=op["A"].dtype, shape=op.node.outputs[0].shape, **own)
    settings = [op.attr(f"activation_{name}") for name in ("alpha", "beta", "gamma")]
    return [_activated(op, y, [number for number in settings if number is not None])]


@composed("FusedConv", "X W B Z", operands="X W B Z", weights="W B", domain=MICROSOFT)
def fused_conv(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = f(conv(X, W) + B + Z), f the activation."""
    own = {name: op.attr(name) for name in ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")}
    B, Z = op.get("B"), op.get("Z")
    operands = (op["X"], op["W"]) if B is None else (op["X"], op["W"], B)
    y = op.b.op("Conv", *operands, dtype=op["X"].dtype, shape=op.node.outputs[0].shape, **own)
    return [_activated(op, y if Z is None else y + Z, list(op.attr("activation_params", ())))]


_ACTIVATIONS: dict[str, Callable[[Builder, ir.Value, list[float]], ir.Value]] = {
    "": lambda b, x, p: x,
    "Relu": lambda b, x, p: b.Relu(x),
    "Tanh": lambda b, x, p: b.Tanh(x),
    "Sigmoid": lambda b, x, p: b.Sigmoid(x),
    "LeakyRelu": lambda b, x, p: b.op("LeakyRelu", x, alpha=p[0] if p else 0.01, shape=x.shape),
    "HardSigmoid": lambda b, x, p: b.HardSigmoid(x, alpha=p[0], beta=p[1]),
    "Clip": lambda b, x, p: b.Clip(x, b.scalar_like(p[0], x), b.scalar_like(p[1], x)),
    "Elu": lambda b, x, p: b.op("Elu", x, alpha=p[0] if p else 1.0, shape=x.shape),
    "Softplus": lambda b, x, p: b.Softplus(x),
    "Softsign": lambda b, x, p: b.op("Softsign", x, shape=x.shape),
}


def _activated(op: Adjoint, x: ir.Value, settings: list[float]) -> ir.Value:
    name = op.attr("activation", "")
    if name not in _ACTIVATIONS:
        op.refuse(f"its activation {name!r} has no rule")
    return _ACTIVATIONS[name](op.b, x, settings)


@rule("Inverse", "X", operands="X", domain=MICROSOFT)
def inverse(op: Adjoint) -> Cotangents:
    """Y = X^-1 of square matrices along the last axes: dX = -Y^T dY Y^T; Giles 2008."""
    b, X, rank = op.b, op["X"], op.rank("X")
    turned = b.op("Transpose", op.out(), perm=[*range(rank - 2), rank - 1, rank - 2], dtype=X.dtype, shape=X.shape)
    product = b.op("MatMul", turned, op.dY, dtype=X.dtype, shape=X.shape)
    yield "X", -b.op("MatMul", product, turned, dtype=X.dtype, shape=X.shape)


# --- activations ---------------------------------------------------------------------------------------------


@composed("Gelu", "X", operands="X", domain=MICROSOFT)
def gelu(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = X Phi(X), Phi the normal distribution; Hendrycks and Gimpel 2016."""
    return [op.b.Gelu(op["X"])]


@composed("BiasGelu", "A B", operands="A B", weights="B", domain=MICROSOFT)
def bias_gelu(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = gelu(A + B)."""
    return [op.b.Gelu(op["A"] + op["B"])]


@composed("FastGelu", "X bias", operands="X bias", weights="bias", domain=MICROSOFT)
def fast_gelu(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = gelu(X + bias) by its approximation through tanh."""
    bias = op.get("bias")
    return [op.b.Gelu(op["X"] if bias is None else op["X"] + bias, approximate="tanh")]


@composed("QuickGelu", "X", operands="X", domain=MICROSOFT)
def quick_gelu(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = X sigmoid(alpha X)."""
    return [op["X"] * op.b.Sigmoid(op["X"] * op.attr("alpha", 1.702))]
