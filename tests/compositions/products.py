"""Makers of products of matrices."""

from __future__ import annotations

import torch

from tests.compositions.makers import makes
from tests.compositions.writer import Unfit, Writer

_LETTERS = "abcd"


@makes("MatMul")
def matmul(w: Writer, op: str) -> None:
    x = w.ranked(1, 4)
    inner, columns = w.shape(x)[-1], w.rng.randint(1, 4)
    if w.rng.random() < 0.2:
        w.op(op, x, w.like((inner,)))
        return
    batch = w.shape(x)[:-2] if w.rng.random() < 0.5 else w.random_shape(0, 1)
    batch = tuple(1 if w.rng.random() < 0.3 else size for size in batch)
    _broadcast(batch, w.shape(x)[:-2])
    w.op(op, x, w.like((*batch, inner, columns)))


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    try:
        torch.broadcast_shapes(one, other)
    except RuntimeError:
        raise Unfit from None


@makes("Gemm")
def gemm(w: Writer, op: str) -> None:
    x, trans_a, trans_b = w.ranked(2, 2), w.rng.randint(0, 1), w.rng.randint(0, 1)
    rows, inner = w.shape(x)[:: -1 if trans_a else 1]
    columns = w.rng.randint(1, 4)
    y = w.like((columns, inner) if trans_b else (inner, columns))
    c = w.rng.choice(("", w.like((columns,)), w.like((rows, 1)), w.like((rows, columns)), w.like(())))
    numbers = {name: round(w.rng.uniform(0.3, 1.5), 3) for name in ("alpha", "beta") if w.rng.random() < 0.4}
    w.op(op, x, y, c, transA=trans_a, transB=trans_b, **numbers)


@makes("Einsum")
def einsum(w: Writer, op: str) -> None:
    """One to three operands over four letters, an ellipsis now and then."""
    sizes = {letter: w.rng.randint(1, 3) for letter in _LETTERS}
    dots = w.random_shape(1, 2) if w.rng.random() < 0.3 else ()
    terms, operands = [], []
    for _ in range(w.rng.choice((1, 2, 2, 3))):
        letters = w.rng.sample(_LETTERS, w.rng.randint(1, 3))
        repeated = letters + ([letters[0]] if w.rng.random() < 0.15 else [])
        terms.append(("..." if dots else "") + "".join(repeated))
        operands.append(w.like((*dots, *(sizes[letter] for letter in repeated))))
    seen = sorted({letter for term in terms for letter in term if letter != "."})
    kept = w.rng.sample(seen, w.rng.randint(0, len(seen)))
    right = ("..." if dots else "") + "".join(kept)
    equation = ",".join(terms) + ("" if w.rng.random() < 0.15 else f"->{right}")
    w.op(op, *operands, equation=equation)


@makes("Attention")
def attention(w: Writer, op: str) -> None:
    batch, heads, rows, columns, size, width = (w.rng.randint(1, 3) for _ in range(6))
    shared = w.rng.choice((1, 1, 2))
    q, k = w.like((batch, heads * shared, rows, size)), w.like((batch, heads, columns, size))
    mask = w.like((rows, columns)) if w.rng.random() < 0.4 else ""
    causal = {"is_causal": 1} if not mask and w.rng.random() < 0.3 else {}
    scale = {"scale": 0.7} if w.rng.random() < 0.4 else {}
    w.op(op, q, k, w.like((batch, heads, columns, width)), mask, **causal, **scale)


@makes("Det")
def det(w: Writer, op: str) -> None:
    size = w.rng.randint(1, 3)
    w.op(op, w.like((*w.random_shape(0, 1), size, size)))
