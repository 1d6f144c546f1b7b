"""Makers of operators that read and write by index."""

from __future__ import annotations

import numpy as np

from tests.compositions.makers import makes
from tests.compositions.norms import axis_of
from tests.compositions.writer import Unfit, Writer


@makes("Gather")
def gather(w: Writer, op: str) -> None:
    x = w.ranked(1)
    axis = axis_of(w, x)
    w.op(op, x, w.below(w.shape(x)[axis], w.random_shape(0, 2)), axis=axis)


@makes("GatherElements")
def gather_elements(w: Writer, op: str) -> None:
    x = w.ranked(1)
    axis = axis_of(w, x)
    shape = list(w.shape(x))
    shape[axis] = w.rng.randint(1, 4)
    w.op(op, x, w.below(w.shape(x)[axis], tuple(shape)), axis=axis)


@makes("GatherND")
def gather_nd(w: Writer, op: str) -> None:
    x = w.ranked(1, 4)
    batch = w.rng.randint(0, min(2, w.rank(x) - 1))
    depth = w.rng.randint(1, w.rank(x) - batch)
    sizes = w.shape(x)[batch : batch + depth]
    outer = (*w.shape(x)[:batch], *w.random_shape(0, 1))
    w.op(op, x, w.constant(_tuples(w, sizes, outer)), batch_dims=batch)


def _tuples(w: Writer, sizes: tuple[int, ...], outer: tuple[int, ...]) -> np.ndarray:
    return np.stack([w.numbers.integers(0, size, outer) for size in sizes], -1).astype(np.int64)


def _reduction(w: Writer, summing: int) -> dict[str, str]:
    """By `none`, or where the opset has it `add`; the others have rules of their own."""
    ways = ("none", "add") if w.opset >= summing else ("none",)
    return {"reduction": w.rng.choice(ways)} if w.opset >= summing else {}


@makes("ScatterElements")
def scatter_elements(w: Writer, op: str) -> None:
    """Every place once, unless what falls on one place is summed."""
    x = w.ranked(1)
    axis, reduction = axis_of(w, x), _reduction(w, 16)
    size = w.shape(x)[axis]
    count = w.rng.randint(1, size)
    order = w.numbers.random(w.shape(x)).argsort(axis % w.rank(x))
    indices = np.take(order, range(count), axis).astype(np.int64)
    if reduction.get("reduction") == "add" and w.rng.random() < 0.6:
        indices = w.numbers.integers(0, size, indices.shape)
    w.op(op, x, w.constant(indices), w.like(indices.shape), axis=axis, **reduction)


@makes("ScatterND")
def scatter_nd(w: Writer, op: str) -> None:
    x = w.ranked(1, 4)
    reduction = _reduction(w, 16)
    depth = w.rng.randint(1, w.rank(x))
    sizes, rest = w.shape(x)[:depth], w.shape(x)[depth:]
    places = np.stack(np.unravel_index(w.numbers.permutation(int(np.prod(sizes))), sizes), -1).astype(np.int64)
    places = places[: w.rng.randint(1, min(len(places), 4))]
    if reduction.get("reduction") == "add" and w.rng.random() < 0.6:
        places = _tuples(w, sizes, (w.rng.randint(1, 4),))
    w.op(op, x, w.constant(places), w.like((len(places), *rest)), **reduction)


@makes("TopK")
def top_k(w: Writer, op: str) -> None:
    """Its places pick rows of another value now and then."""
    x = w.ranked(1)
    axis = axis_of(w, x)
    k = w.ints([w.rng.randint(1, w.shape(x)[axis])])
    _, places = w.many(op, x, k, outputs=2, axis=axis, largest=w.rng.randint(0, 1))
    if w.rng.random() < 0.4:
        w.op("GatherElements", w.like(w.shape(x)), places, axis=axis)


@makes("ArgMax ArgMin")
def argument(w: Writer, op: str) -> None:
    x = w.ranked(1)
    axis = axis_of(w, x)
    places = w.op(op, x, axis=axis, keepdims=1)
    w.op("GatherElements", w.like(w.shape(x)), places, axis=axis)


@makes("OneHot")
def one_hot(w: Writer, op: str) -> None:
    depth = w.rng.randint(1, 4)
    indices = w.below(depth, w.random_shape(1, 2))
    w.op(op, indices, w.ints([depth]), w.like((2,)), axis=w.rng.choice((-1, 0, 1)))


@makes("Compress")
def compress(w: Writer, op: str) -> None:
    x = w.ranked(1)
    axis = axis_of(w, x)
    kept = w.numbers.random(w.shape(x)[axis]) < 0.6
    if not kept.any():
        raise Unfit
    w.op(op, x, w.constant(kept), axis=axis)


@makes("ReverseSequence")
def reverse_sequence(w: Writer, op: str) -> None:
    x = w.ranked(2, 4)
    batch = w.rng.randint(0, 1)
    lengths = w.numbers.integers(1, w.shape(x)[1 - batch] + 1, w.shape(x)[batch])
    w.op(op, x, w.constant(lengths), batch_axis=batch, time_axis=1 - batch)
