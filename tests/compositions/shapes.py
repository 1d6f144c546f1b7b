"""Makers of operators that move elements."""

from __future__ import annotations

import math

from tests.compositions.makers import makes
from tests.compositions.norms import axis_of
from tests.compositions.writer import Writer


@makes("Reshape")
def reshape(w: Writer, op: str) -> None:
    """To a product of the same size: axes joined, split, kept by 0, or told by -1."""
    x = w.pick()
    shape = list(w.shape(x))
    if len(shape) > 1 and w.rng.random() < 0.5:
        at = w.rng.randrange(len(shape) - 1)
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    if w.rng.random() < 0.4:
        shape.insert(w.rng.randint(0, len(shape)), 1)
    if shape and w.rng.random() < 0.3:
        at = w.rng.randrange(len(shape))
        if at < w.rank(x) and shape[at] == w.shape(x)[at]:
            shape[at] = 0
    if shape and w.rng.random() < 0.3:
        shape[w.rng.randrange(len(shape))] = -1
    w.op(op, x, w.ints(shape))


@makes("Shape")
def shape_arithmetic(w: Writer, op: str) -> None:
    """A Reshape to a shape computed from another value's."""
    x = w.ranked(1)
    sizes = w.op(op, x)
    first = w.op("Gather", sizes, w.ints([w.rng.randrange(w.rank(x))]))
    w.op("Reshape", x, w.op("Concat", first, w.ints([-1]), axis=0))


@makes("ConstantOfShape")
def constant_of_shape(w: Writer, op: str) -> None:
    x = w.pick()
    w.op("Add", x, w.op(op, w.op("Shape", x)))


@makes("Size")
def size(w: Writer, op: str) -> None:
    x = w.pick()
    w.op("Div", x, w.op("Cast", w.op(op, x), to=1))


@makes("Flatten")
def flatten(w: Writer, op: str) -> None:
    x = w.pick()
    w.op(op, x, axis=w.rng.randint(-w.rank(x), w.rank(x)))


@makes("Transpose")
def transpose(w: Writer, op: str) -> None:
    x = w.ranked(1)
    perm = w.rng.sample(range(w.rank(x)), w.rank(x))
    w.op(op, x, **({"perm": perm} if w.rng.random() < 0.8 else {}))


@makes("Squeeze")
def squeeze(w: Writer, op: str) -> None:
    x = w.pick(lambda shape: 1 in shape)
    ones = [axis for axis, size in enumerate(w.shape(x)) if size == 1]
    axes = w.rng.sample(ones, w.rng.randint(1, len(ones)))
    w.op(op, x, *([w.ints([axis - w.rank(x) for axis in axes])] if w.rng.random() < 0.7 else []))


@makes("Unsqueeze")
def unsqueeze(w: Writer, op: str) -> None:
    x = w.pick(lambda shape: len(shape) < 5)
    rank = w.rank(x) + w.rng.randint(1, 5 - w.rank(x))
    axes = w.rng.sample(range(rank), rank - w.rank(x))
    w.op(op, x, w.ints([axis - rank * w.rng.randint(0, 1) for axis in axes]))


@makes("Concat")
def concat(w: Writer, op: str) -> None:
    x = w.ranked(1)
    axis = axis_of(w, x)
    others = []
    for _ in range(w.rng.randint(0, 2)):
        shape = list(w.shape(x))
        shape[axis] = w.rng.randint(1, 3)
        others.append(x if w.rng.random() < 0.1 else w.like(tuple(shape)))
    w.op(op, x, *others, axis=axis)


@makes("Split")
def split(w: Writer, op: str) -> None:
    """Into given parts or equal ones, not all of them used."""
    x = w.ranked(1)
    axis = axis_of(w, x)
    size = w.shape(x)[axis]
    first = w.rng.randint(1, size)
    sizes = [first, size - first] if first < size else [size]
    if w.rng.random() < 0.6:
        w.many(op, x, w.ints(sizes), outputs=len(sizes), axis=axis)
        return
    parts = w.rng.choice(
        [n for n in (1, 2, 3, 4) if size % n == 0 or (w.opset >= 18 and -(-size // n) * (n - 1) < size)]
    )
    w.many(op, x, outputs=parts, axis=axis, **({"num_outputs": parts} if w.opset >= 18 else {}))


@makes("Slice")
def slice_(w: Writer, op: str) -> None:
    x = w.ranked(1)
    axes = w.rng.sample(range(w.rank(x)), w.rng.randint(1, w.rank(x)))
    rows = [_range(w, w.shape(x)[axis]) for axis in axes]
    starts, ends, steps = (list(column) for column in zip(*rows, strict=True))
    w.op(op, x, w.ints(starts), w.ints(ends), w.ints(axes), w.ints(steps))


def _range(w: Writer, size: int) -> tuple[int, int, int]:
    step = w.rng.choice((1, 1, 2, -1, -2))
    if step > 0:
        start = w.rng.randrange(size)
        end = w.rng.choice((w.rng.randint(start + 1, size), 2**31))
        return w.rng.choice((start, start - size)), end, step
    start = w.rng.randrange(size)
    return start, w.rng.choice((-(2**31), w.rng.randint(-1, start - 1) - size)), step


@makes("Pad")
def pad(w: Writer, op: str) -> None:
    """Before or behind, by a mode; by `constant` also less than nothing, and with a value that has a gradient."""
    x = w.ranked(1, 4)
    modes = ["constant", "constant", "edge", "reflect"] + (["wrap"] if w.opset >= 19 else [])
    mode, axes = w.rng.choice(modes), list(range(w.rank(x)))
    if w.opset >= 18 and w.rng.random() < 0.4:
        axes = w.rng.sample(axes, w.rng.randint(1, len(axes)))
    most = {"reflect": -1, "wrap": 0}.get(mode, 2)
    reach = [min(2, w.shape(x)[axis] + most) for axis in axes] * 2
    low = -1 if mode == "constant" and min(w.shape(x)) > 2 else 0
    pads = w.ints([w.rng.randint(min(low, r), r) if r > 0 else 0 for r in reach])
    value = w.like(()) if mode == "constant" and w.rng.random() < 0.5 else ""
    w.op(op, x, pads, value, *([w.ints(axes)] if axes != list(range(w.rank(x))) else []), mode=mode)


@makes("CenterCropPad")
def center_crop_pad(w: Writer, op: str) -> None:
    x = w.ranked(1)
    axes = sorted(w.rng.sample(range(w.rank(x)), w.rng.randint(1, w.rank(x))))
    w.op(op, x, w.ints([w.rng.randint(1, 5) for _ in axes]), axes=axes)


@makes("Tile")
def tile(w: Writer, op: str) -> None:
    x = w.ranked(1, 4)
    w.op(op, x, w.ints([w.rng.choice((1, 1, 2, 3)) for _ in w.shape(x)]))


@makes("Expand")
def expand(w: Writer, op: str) -> None:
    x = w.pick()
    shape = [w.rng.randint(2, 3) if size == 1 else w.rng.choice((1, size)) for size in w.shape(x)]
    w.op(op, x, w.ints([*w.random_shape(0, max(0, min(2, 5 - len(shape)))), *shape]))


@makes("DepthToSpace")
def depth_to_space(w: Writer, op: str) -> None:
    block = w.rng.choice((1, 2))
    shape = (w.rng.randint(1, 2), w.rng.randint(1, 2) * block**2, w.rng.randint(1, 3), w.rng.randint(1, 3))
    w.op(op, w.like(shape), blocksize=block, mode=w.rng.choice(("DCR", "CRD")))


@makes("SpaceToDepth")
def space_to_depth(w: Writer, op: str) -> None:
    block = w.rng.choice((1, 2))
    shape = (w.rng.randint(1, 2), w.rng.randint(1, 3), block * w.rng.randint(1, 2), block * w.rng.randint(1, 2))
    w.op(op, w.like(shape), blocksize=block)


@makes("Trilu")
def trilu(w: Writer, op: str) -> None:
    diagonal = [w.ints(w.rng.randint(-2, 2))] if w.rng.random() < 0.7 else []
    w.op(op, w.ranked(2), *diagonal, upper=w.rng.randint(0, 1))


@makes("Col2Im")
def col2im(w: Writer, op: str) -> None:
    image, block = ([w.rng.randint(*limits) for _ in range(2)] for limits in ((2, 4), (1, 2)))
    places = math.prod(size - k + 1 for size, k in zip(image, block, strict=True))
    x = w.like((w.rng.randint(1, 2), w.rng.randint(1, 2) * math.prod(block), places))
    w.op(op, x, w.ints(image), w.ints(block))


@makes("EyeLike")
def eye_like(w: Writer, op: str) -> None:
    x = w.ranked(2, 2)
    w.op("Mul", x, w.op(op, x, k=w.rng.randint(-1, 1)))
