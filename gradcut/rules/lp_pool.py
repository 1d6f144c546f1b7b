"""Pooling by a p-norm, and normalisation by the channels near by."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.pool import spread
from gradcut.rules.registry import rule
from gradcut.rules.window import spatial_sizes, window_attributes


@rule("LpPool", "X")
def lp_pool(op: Adjoint) -> Cotangents:
    """Y = (sum |X|^p)^(1/p) of each window: dX = sign(X) |X|^(p-1) times dY Y^(1-p) spread over the windows."""
    window, late = window_attributes(op)
    yield "X", op.b.Cast(_slope(op) * spread(op, _by_norm(op), window, late), to=op["X"].dtype)


@rule("GlobalLpPool", "X")
def global_lp_pool(op: Adjoint) -> Cotangents:
    """The same, of one window that is all."""
    b, X = op.b, op["X"]
    spread_out = b.op("Expand", _by_norm(op), b.shape_of(X), shape=X.shape)
    yield "X", b.Cast(_slope(op) * spread_out, to=X.dtype)


def _slope(op: Adjoint) -> ir.Value:
    """sign(X) |X|^(p-1)."""
    b, X, p = op.b, op.wide(op["X"]), op.attr("p", 2)
    if p == 2:
        return X
    return b.Sign(X) if p == 1 else b.Sign(X) * b.Pow(b.Abs(X), float(p - 1))


def _by_norm(op: Adjoint) -> ir.Value:
    """dY Y^(1-p), and 0 where the norm is, as ReduceL2 has it."""
    b, Y, dY, p = op.b, op.wide(op.out()), op.wide(op.dY), op.attr("p", 2)
    if p == 1:
        return dY
    none = b.Equal(Y, 0.0)
    norm = b.Where(none, b.scalar_like(1.0, Y), Y)
    return b.Where(none, b.scalar_like(0.0, Y), dY / norm if p == 2 else dY * b.Pow(norm, float(1 - p)))


@rule("LRN", "X")
def local_response_normalization(op: Adjoint) -> Cotangents:
    """Y = X S^-beta, S = bias + alpha mean(X^2) over `size` channels around each; Krizhevsky et al. 2012.

    dX = dY S^-beta - 2 alpha beta X mean'(dY X S^(-beta-1)), where mean' is over the channels that each one counts for.
    """
    b, X, dY = op.b, op.wide(op["X"]), op.wide(op.dY)
    size, alpha, beta = op.attr("size"), op.attr("alpha", 1e-4), op.attr("beta", 0.75)
    before = (size - 1) // 2
    S = _channel_mean(op, X * X, size, before) * alpha + op.attr("bias", 1.0)
    scaled = dY * b.Pow(S, -beta)
    through = _channel_mean(op, scaled * X / S, size, size - 1 - before)
    yield "X", b.Cast(scaled - X * through * (2.0 * alpha * beta), to=op["X"].dtype)


def _channel_mean(op: Adjoint, x: ir.Value, size: int, before: int) -> ir.Value:
    """The mean of `size` channels, from `before` before each one; missing ones are zeros."""
    b, X = op.b, op["X"]
    places = b.ReduceProd(spatial_sizes(b, X), keepdims=1)
    flat = b.Reshape(x, b.dims(b.dim(X, 0), 1, b.dim(X, 1), places), allowzero=1)
    pads = [before, 0, size - 1 - before, 0]
    mean = b.op("AveragePool", flat, kernel_shape=[size, 1], pads=pads, count_include_pad=1, dtype=x.dtype)
    return b.op("Reshape", mean, b.shape_of(X), allowzero=1, shape=X.shape)
