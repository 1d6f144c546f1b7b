"""Sizes that are numbers where shapes are known, and values where only run time knows them."""

from __future__ import annotations

import math

import onnx_ir as ir

from gradcut.ops import Builder

INT64 = ir.DataType.INT64
#: A size that is known, or INT64 [1].
Size = int | ir.Value


def size(b: Builder, x: ir.Value, axis: int) -> Size:
    """One dimension."""
    known = None if x.shape is None else x.shape[axis]
    return known if isinstance(known, int) else b.dim(x, axis)


def value(b: Builder, one: Size) -> ir.Value:
    return b.ints([one]) if isinstance(one, int) else one


def times(b: Builder, *sizes: Size) -> Size:
    """The product of sizes."""
    known = math.prod(one for one in sizes if isinstance(one, int))
    others = [one for one in sizes if not isinstance(one, int)]
    if not others:
        return known
    total = others[0]
    for one in others[1:]:
        total = b.Mul(total, one)
    return total if known == 1 else b.Mul(total, b.ints([known]))


def over(b: Builder, one: Size, parts: int) -> Size:
    """A size over a number that divides it."""
    return one // parts if isinstance(one, int) else b.Div(one, b.ints([parts]))


def counting(b: Builder, one: Size) -> ir.Value:
    """0, 1, ..., INT64 [size]."""
    if isinstance(one, int):
        return b.ints(range(one))
    end = b.op("Squeeze", one, shape=ir.Shape([]))
    return b.Range(b.constant(0, INT64), end, b.constant(1, INT64), dtype=INT64)
