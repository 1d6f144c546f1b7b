"""Einsum."""

from __future__ import annotations

import string

import onnx_ir as ir

from gradcut.dims import Dim, same_dim
from gradcut.ops import Builder
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Einsum", "Inputs", weights="Inputs")
def einsum(op: Adjoint) -> Cotangents:
    """The cotangent of an operand is the einsum of dY and the other operands into the operand's own indices.

    An index that only this operand has was summed over: the cotangent is repeated along it. Of a diagonal (``ii``),
    the second i becomes an index of its own, tied to the first by an identity matrix. Where an operand is empty, all
    cotangents are sums of nothing, which ends the process in ONNX Runtime's kernel.
    """
    if any(value is not None and 0 in (value.shape or ()) for value in op.node.inputs):
        for index in sorted(op.wanted):
            yield index, op.b.zeros_like(op[index])
        return
    b, (terms, result) = op.b, _parse(op)
    for index in sorted(op.wanted):
        operand = op[index]
        operands = [(result, op.dY), *((term, op[at]) for at, term in enumerate(terms) if at != index)]
        mine, ties = _untied(terms[index], "".join([*terms, result]))
        for tie in ties:
            size = b.dim(operand, mine.index(tie[1]))
            square = b.zeros(b.Concat(size, size, axis=0), op.dY.dtype or ir.DataType.FLOAT)
            operands.append((tie, b.op("EyeLike", square, dtype=op.dY.dtype)))
        read = "".join(letter for letter in mine if any(letter in term for term, _ in operands))
        equation = f"{','.join(term for term, _ in operands)}->{read}"
        product = b.op("Einsum", *(value for _, value in operands), equation=equation)
        product.shape = _shape(operands, read)
        if read != mine:
            product = _repeated(b, product, operand, [letter not in read for letter in mine])
        others = [(term, op[at]) for at, term in enumerate(terms) if at != index]
        wide = [
            letter not in result and _may_be_wider(operand, axis, letter, others) for axis, letter in enumerate(mine)
        ]
        if any(wide):
            sizes = b.dims(*(b.dim(operand, axis) if one else 1 for axis, one in enumerate(wide)))
            product = b.op("Expand", product, sizes, dtype=product.dtype)
        yield index, b.sum_to(product, operand)


def _may_be_wider(operand: ir.Value, axis: int, letter: str, others: list[tuple[str, ir.Value]]) -> bool:
    """Whether an index that is summed over may be of size 1 in other operands alone: ONNX Runtime repeats those."""
    shapes = [(term, value.shape) for term, value in others if letter in term]
    if not shapes or operand.shape is None:
        return bool(shapes)
    return operand.shape[axis] != 1 and not any(
        shape and same_dim(operand.shape[axis], shape[term.index(letter)]) for term, shape in shapes
    )


def _repeated(b: Builder, product: ir.Value, operand: ir.Value, missing: list[bool]) -> ir.Value:
    """The product repeated along axes that it misses; the others stay, for one may be 1 in the operand alone."""
    axes = [axis for axis, repeat in enumerate(missing) if repeat]
    sizes = b.dims(*(b.dim(operand, axis) if repeat else 1 for axis, repeat in enumerate(missing)))
    shape = None
    if product.shape is not None and operand.shape is not None:
        dims = iter(product.shape)
        shape = ir.Shape([operand.shape[axis] if repeat else next(dims) for axis, repeat in enumerate(missing)])
    return b.op("Expand", b.Unsqueeze(product, b.ints(axes)), sizes, shape=shape)


def _parse(op: Adjoint) -> tuple[list[str], str]:
    """The indices of each operand and of the result, explicit: an ellipsis becomes letters that nothing else uses."""
    equation = op.attr("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    hidden = [op.rank(at) - len(term) + 3 if "..." in term else 0 for at, term in enumerate(terms)]
    free = [letter for letter in string.ascii_letters if letter not in equation]
    dots = "".join(free[: max(hidden)])
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        result = "".join(
            ["..." if "..." in left else "", *sorted(one for one in set(letters) if letters.count(one) == 1)]
        )
    spelled = [term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms, hidden, strict=True)]
    return spelled, result.replace("...", dots)


def _untied(term: str, taken: str) -> tuple[str, list[str]]:
    """The term with no letter twice, and the pairs of letters that must be equal for that."""
    free = (letter for letter in string.ascii_letters if letter not in taken)
    mine, ties = "", []
    for letter in term:
        fresh = next(free) if letter in mine else letter
        if fresh != letter:
            ties.append(letter + fresh)
        mine += fresh
    return mine, ties


def _shape(operands: list[tuple[str, ir.Value]], letters: str) -> ir.Shape | None:
    """The dimensions of letters; one that operands name differently is open: either may turn out to be 1."""
    found: dict[str, Dim] = {}
    for term, value in operands:
        if value.shape is None or len(value.shape) != len(term):
            return None
        for letter, dim in zip(term, value.shape, strict=True):
            if letter not in found or found[letter] == 1:
                found[letter] = dim
            elif dim not in (1, found[letter]):
                found[letter] = ir.SymbolicDim(None)
    return ir.Shape([found[letter] for letter in letters])
