"""Einsum."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Dim
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Einsum", "Inputs", weights="Inputs")
def einsum(op: Adjoint) -> Cotangents:
    """The cotangent of an operand is the einsum of dY and the other operands into the operand's own indices.

    An index that only this operand has was summed over: the cotangent is repeated along it.
    """
    b, (terms, result) = op.b, _parse(op)
    for index in sorted(op.wanted):
        mine, operand = terms[index], op[index]
        operands = [(result, op.dY), *((term, op[at]) for at, term in enumerate(terms) if at != index)]
        if any(not any(letter in term for term, _ in operands) for letter in mine):
            operands.append((mine, b.op("Expand", b.scalar_like(1.0, op.dY), b.shape_of(operand), shape=operand.shape)))
        equation = f"{','.join(term for term, _ in operands)}->{mine}"
        product = b.op("Einsum", *(value for _, value in operands), equation=equation)
        product.shape = _shape(operands, mine)
        yield index, b.sum_to(product, operand)


def _parse(op: Adjoint) -> tuple[list[str], str]:
    """The indices of each operand and of the result, explicit; refuses diagonals and ellipses."""
    equation = op.attr("equation").replace(" ", "")
    if "." in equation:
        op.refuse(f"an ellipsis in {equation!r} has no rule; write the indices out")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "")
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if any(len(set(term)) < len(term) for term in terms):
        op.refuse(f"a diagonal in {equation!r} has no rule")
    return terms, result


def _shape(operands: list[tuple[str, ir.Value]], letters: str) -> ir.Shape | None:
    """The dimensions of letters, from the first operand that has each."""
    found: dict[str, Dim] = {}
    for term, value in operands:
        if value.shape is None or len(value.shape) != len(term):
            return None
        for letter, dim in zip(term, value.shape, strict=True):
            if letter not in found or found[letter] == 1:
                found[letter] = dim
    return ir.Shape([found[letter] for letter in letters])
