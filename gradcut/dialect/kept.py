"""Parts of a cotangent: what a constant mask keeps of it, taken out along one axis and put back into zeros.

`gradcut.passes.sink` moves what is taken out into the operations that make the cotangent, so that no more is computed.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import AttributeType

from gradcut.dialect.core import DOMAIN, dialect_op
from gradcut.ops import AttrRef, Builder

TAKE, PLACE = "TakeKept", "PlaceKept"


@dialect_op("X indices", axis=AttributeType.INT)
def take_kept(b: Builder, X: ir.Value, indices: ir.Value, *, axis: int | AttrRef) -> ir.Value:
    """The slices of X at `indices`, INT64 [k] and growing, along an axis."""
    return b.Gather(X, indices, axis=axis)


@dialect_op("X indices", axis=AttributeType.INT, size=AttributeType.INT)
def place_kept(b: Builder, X: ir.Value, indices: ir.Value, *, axis: int | AttrRef, size: int | AttrRef) -> ir.Value:
    """Zeros, `size` long along an axis, with the slices of X at `indices`.

    Behind the last slice comes one of zeros, and each place looks up the slice that belongs there.
    """
    one = b.ints([1])
    count = b.Reshape(b.Size(indices), one)
    ends = b.Concat(b.ints([0]), one, axis=0)
    filled = b.Pad(X, ends, None, b.Reshape(_number(b, axis), one))
    nothing = b.Expand(count, b.Reshape(_number(b, size), one))
    first, step = (b.constant(number, ir.DataType.INT64) for number in (0, 1))
    numbers = b.Range(first, b.Squeeze(count, b.ints([0])), step, dtype=ir.DataType.INT64)
    return b.Gather(filled, b.ScatterElements(nothing, indices, numbers, axis=0), axis=axis)


def _number(b: Builder, value: int | AttrRef) -> ir.Value:
    if isinstance(value, AttrRef):
        return b.op("Constant", value_int=value, dtype=ir.DataType.INT64)
    return b.constant(value, ir.DataType.INT64)


def is_take(node: ir.Node | None) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type == TAKE


def take(b: Builder, X: ir.Value, indices: ir.Value, axis: int) -> ir.Value:
    """The slices of X at the indices along an axis that is not negative."""
    kept = b.op(TAKE, X, indices, domain=DOMAIN, axis=axis, dtype=X.dtype)
    if X.shape is not None and indices.shape is not None:
        kept.shape = ir.Shape([indices.shape[0] if at == axis else dim for at, dim in enumerate(X.shape)])
    return kept


def place(b: Builder, X: ir.Value, indices: ir.Value, axis: int, size: int) -> ir.Value:
    """The inverse of `take`, with zeros where nothing was taken."""
    placed = b.op(PLACE, X, indices, domain=DOMAIN, axis=axis, size=size, dtype=X.dtype)
    if X.shape is not None:
        placed.shape = ir.Shape([size if at == axis else dim for at, dim in enumerate(X.shape)])
    return placed
