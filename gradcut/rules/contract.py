"""What the engine holds a rule to; one of the user's may be wrong in every way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint
from gradcut.rules.registry import Rule, operand_label
from gradcut.text import join_names


def yielded(rule: Rule, op: Adjoint) -> Iterator[tuple[int | ir.Value, ir.Value]]:
    """What a rule yields, by the operand's index: each wanted operand once, in its type and shape.

    A captured value stands for itself.

    Raises:
        NoGradientError: it does not.
    """
    assert rule.vjp is not None
    yields, served, captured = rule.vjp(op), set[int](), set[ir.Value]()
    if not isinstance(yields, Iterable):
        op.refuse("its rule is no generator; it yields (operand, cotangent)")
    for pair in yields:
        index, cotangent = _pair(op, pair)
        if isinstance(index, ir.Value):
            captured.add(index)
            yield index, cotangent
            continue
        if index in served:
            op.refuse(f"its rule yields {operand_label(op.node, index)} twice; add the two up")
        if index not in op.wanted:
            op.refuse(f"its rule yields {operand_label(op.node, index)}, which is not wanted; ask op.wants before")
        if rule.foreign and not rule.broadcasts:  # ours are proven, and a file's value_info may lie
            _check_fit(op, index, cotangent)
        served.add(index)
        yield index, cotangent
    if served != op.wanted:
        missing = join_names(operand_label(op.node, index) for index in sorted(op.wanted - served))
        op.refuse(f"its rule gives none for {missing}")
    if captured != set(op.captured):
        missing = join_names(value.name or "" for value in op.captured if value not in captured)
        op.refuse(f"its rule gives none for {missing}, which a graph inside it reads")


def _pair(op: Adjoint, pair: Any) -> tuple[int | ir.Value, ir.Value]:
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], ir.Value):
        op.refuse(f"its rule yields {pair!r}; it yields (operand, cotangent), where op.b builds the cotangent")
    return (pair[0] if pair[0] in op.captured else op.index(pair[0])), pair[1]


def _check_fit(op: Adjoint, index: int, cotangent: ir.Value) -> None:
    """As far as types and shapes are known before a run."""
    operand = op[index]
    same_type = cotangent.dtype is None or operand.dtype is None or cotangent.dtype == operand.dtype
    if not same_type or not _may_be_equal(cotangent.shape, operand.shape):
        op.refuse(
            f"its rule gives {operand_label(op.node, index)}, which is {_typed(operand)}, a cotangent that is "
            f"{_typed(cotangent)}; op.b.sum_to undoes broadcasting"
        )


def _may_be_equal(one: ir.Shape | None, other: ir.Shape | None) -> bool:
    if one is None or other is None:
        return True
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs)


def _typed(value: ir.Value) -> str:
    shape = "[...]" if value.shape is None else "[" + ", ".join(str(dim) for dim in value.shape) + "]"
    return f"{value.dtype.name if value.dtype is not None else 'untyped'}{shape}"
