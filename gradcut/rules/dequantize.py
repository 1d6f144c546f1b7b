"""DequantizeLinear: y = (x - x_zero_point) x_scale, where x is stored in few bits.

The scale has a derivative, and it alone: dx_scale = sum over its share of dy (x - x_zero_point), the share of a scale
being all of x, one place along `axis`, or a block of places.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("DequantizeLinear", "x_scale")
def dequantize_linear(op: Adjoint) -> Cotangents:
    """dx_scale as above; the difference is what a scale of one gives."""
    scale, dY = op["x_scale"], op.wide(op.dY)
    products = op.b.Mul(dY, op.wide(_levels(op)))
    total = op.b.Cast(_shares(op, products), to=scale.dtype)
    yield "x_scale", op.b.op("Reshape", total, op.b.shape_of(scale), dtype=scale.dtype, shape=scale.shape)


def _levels(op: Adjoint) -> ir.Value:
    """x - x_zero_point, in the type of y."""
    scale, attributes = op["x_scale"], {name: op.attr(name) for name in op.node.attributes}
    one = op.b.op("Expand", op.b.scalar_like(1.0, scale), op.b.shape_of(scale), dtype=scale.dtype, shape=scale.shape)
    return op.b.op("DequantizeLinear", op["x"], one, op.get("x_zero_point"), dtype=op.dY.dtype, shape=op.dY.shape,
                   **attributes)  # fmt: skip


def _shares(op: Adjoint, products: ir.Value) -> ir.Value:
    """The sum over what each scale is for."""
    if op.rank("x_scale") == 0 or op.static("x_scale") == (1,):
        return op.b.op("ReduceSum", products, keepdims=0, shape=ir.Shape([]))
    rank = op.rank("x")
    axis = op.attr("axis", 1) % rank
    if not op.attr("block_size", 0):
        axes = [at for at in range(rank) if at != axis]
        places = op.b.op("ReduceSum", products, op.b.ints(axes), keepdims=0, noop_with_empty_axes=1)
        return op.b.sum_to(places, op["x_scale"])  # at run time it may be one scale for all
    return _blocks(op, products, axis)


def _blocks(op: Adjoint, products: ir.Value, axis: int) -> ir.Value:
    """The sum over each block; the last one may be cut short, so zeros fill it up."""
    b, size, count = op.b, op.attr("block_size"), op.b.dim(op["x_scale"], axis)
    missing = b.op("Sub", b.op("Mul", count, b.ints([size])), b.dim(products, axis))
    none = b.ints([0])
    whole = b.op("Pad", products, b.op("Concat", none, missing, axis=0), None, b.ints([axis]), dtype=products.dtype)
    rank = op.rank("x")
    sizes = [b.dim(op["x"], at) for at in range(rank)]
    apart = b.op("Reshape", whole, b.dims(*sizes[:axis], count, size, *sizes[axis + 1 :]), dtype=products.dtype)
    return b.op("ReduceSum", apart, b.ints([axis + 1]), keepdims=0, dtype=products.dtype)


__all__ = ["dequantize_linear"]
