"""Products of matrices."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Gemm", "A B C", weights="B C")
def gemm(op: Adjoint) -> Cotangents:
    """Y = alpha A' B' + beta C, A' and B' transposed where asked: dA' = alpha dY B'^T, dB' = alpha A'^T dY."""
    b, dY = op.b, op.dY
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)
    trans_a, trans_b = op.attr("transA", 0), op.attr("transB", 0)
    if op.wants("A"):
        shape = op["A"].shape
        if trans_a:
            yield "A", _gemm(op, op["B"], dY, trans_b, 1, alpha, shape)
        else:
            yield "A", _gemm(op, dY, op["B"], 0, 1 - trans_b, alpha, shape)
    if op.wants("B"):
        shape = op["B"].shape
        if trans_b:
            yield "B", _gemm(op, dY, op["A"], 1, trans_a, alpha, shape)
        else:
            yield "B", _gemm(op, op["A"], dY, 1 - trans_a, 0, alpha, shape)
    if op.wants("C"):
        scaled = dY if beta == 1.0 else dY * beta
        yield "C", b.sum_to(scaled, op["C"])


def _gemm(
    op: Adjoint, a: ir.Value, c: ir.Value, trans_a: int, trans_b: int, alpha: float, shape: ir.Shape | None
) -> ir.Value:
    return op.b.op(
        "Gemm",
        a,
        c,
        transA=trans_a or None,
        transB=trans_b or None,
        alpha=alpha if alpha != 1.0 else None,
        shape=shape,
    )


@rule("MatMul", "A B", weights="A B")
def matmul(op: Adjoint) -> Cotangents:
    """Y = A B over broadcast batches: dA = dY B^T, dB = A^T dY; a vector counts as a row (A) or a column (B)."""
    if any(0 in (op[name].shape or ()) for name in ("A", "B")):  # of no terms, the runtime's product is not 0
        for name in ("A", "B"):
            if op.wants(name):
                yield name, op.b.zeros_like(op[name])
    elif op.rank("B") == 2 and (op["A"].shape is None or op.rank("A") >= 2):
        yield from _linear(op)
    else:
        yield from _batched(op)


def _linear(op: Adjoint) -> Cotangents:
    """B is one matrix: dB as a single product over all rows, which no batch of products matches in speed.

    It is right for an A of any rank, known or not.
    """
    b, A, B, dY = op.b, op["A"], op["B"], op.dY
    is_matrix = A.shape is not None and len(A.shape) == 2
    if op.wants("A"):
        if is_matrix:
            yield "A", b.op("Gemm", dY, B, transB=1, shape=A.shape)
        else:
            product = b.MatMul(dY, b.transpose(B))
            product.shape = A.shape
            yield "A", product
    if op.wants("B"):
        inner, outer = b.dim(B, 0), b.dim(B, 1)
        rows = A if is_matrix else b.Reshape(A, b.dims(-1, inner))
        cotangent = dY if is_matrix else b.Reshape(dY, b.dims(-1, outer))
        yield "B", b.op("Gemm", rows, cotangent, transA=1, shape=B.shape)


def _batched(op: Adjoint) -> Cotangents:
    b = op.b
    A, B, dY = op["A"], op["B"], op.dY
    row, column = op.rank("A") == 1, op.rank("B") == 1
    if row and column:
        for mine, other in (("A", B), ("B", A)):
            if op.wants(mine):
                yield mine, dY * other
        return
    left = b.Unsqueeze(A, b.ints([0])) if row else A
    right = b.Unsqueeze(B, b.ints([1])) if column else B
    for axis, is_vector in ((-2, row), (-1, column)):
        dY = b.Unsqueeze(dY, b.ints([axis])) if is_vector else dY
    rank_a, rank_b = max(2, op.rank("A")), max(2, op.rank("B"))
    if op.wants("A"):
        full = b.MatMul(dY, b.transpose(right, rank_b))
        yield "A", b.sum_to(_drop(op, full, -2, row), A)
    if op.wants("B"):
        full = b.MatMul(b.transpose(left, rank_a), dY)
        yield "B", b.sum_to(_drop(op, full, -1, column), B)


def _drop(op: Adjoint, x: ir.Value, axis: int, present: bool) -> ir.Value:
    if not present:
        return x
    shape = None
    if x.shape is not None:
        dims = list(x.shape)
        del dims[axis]
        shape = ir.Shape(dims)
    return op.b.op("Squeeze", x, op.b.ints([axis]), shape=shape)


@rule("Det", "X")
def det(op: Adjoint) -> Cotangents:
    """dX = dY times the cofactors, each a determinant itself: X with one row replaced by a unit vector.

    No division, so singular matrices are right, at every order; n^2 determinants, which need n^4 numbers at once.
    """
    b, X, dY = op.b, op.wide(op["X"]), op.wide(op.dY)
    n, kind, rank = b.dim(X, -1), X.dtype or ir.DataType.FLOAT, op.rank("X")
    square = b.Concat(n, n, axis=0)
    identity = b.op("EyeLike", b.zeros(square, kind))
    batch = b.ints([*range(rank - 2)])
    row = b.Unsqueeze(b.op("EyeLike", b.zeros(square, ir.DataType.FLOAT)), b.ints([1, 3]))  # [i, 1, row, 1]
    units = b.Unsqueeze(identity, b.ints([0, 2]))  # [1, j, 1, column]
    matrices = b.Unsqueeze(X, b.ints([rank - 2, rank - 1]))
    if rank > 2:
        row, units = b.Unsqueeze(row, batch), b.Unsqueeze(units, batch)
    replaced = b.Where(b.Cast(row, to=ir.DataType.BOOL), units, matrices)
    cofactors = b.op("Det", replaced, dtype=kind)
    yield "X", b.Cast(b.Mul(cofactors, b.Unsqueeze(dY, b.ints([rank - 2, rank - 1]))), to=op["X"].dtype)
