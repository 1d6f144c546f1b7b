"""What is known of a value's type and shape: comparing dimensions that may be unknown, and broadcasting them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

Dim = int | ir.SymbolicDim

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def is_float(value: ir.Value) -> bool:
    """Whether a value can carry a gradient by its dtype; an unknown dtype may."""
    return value.dtype is None or value.dtype in FLOATS


def same_dim(a: Dim, b: Dim) -> bool:
    """Equal numbers, or the same known symbol."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value


def same_shape(a: ir.Shape | None, b: ir.Shape | None) -> bool:
    """Whether two shapes are known to be equal."""
    return a is not None and b is not None and len(a) == len(b) and all(map(same_dim, a, b))


def static_dims(shape: ir.Shape | None) -> tuple[int, ...] | None:
    """The shape as integers, or None where a dimension is symbolic or unknown."""
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return tuple(int(dim) for dim in shape)  # type: ignore[arg-type]


def broadcast_shapes(shapes: Sequence[ir.Shape | None]) -> ir.Shape | None:
    """NumPy's rule; a dimension that cannot be told is unknown."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or not known:
        return None
    wide = max(known, key=len)
    if all(shape is wide or len(shape) == 0 for shape in known):
        return wide
    rank = len(wide)
    padded: list[list[Dim]] = [[*[1] * (rank - len(shape)), *shape] for shape in known]
    return ir.Shape([_broadcast_dim(dims) for dims in zip(*padded, strict=True)])


def _broadcast_dim(dims: Sequence[Dim]) -> Dim | None:
    wide = [dim for dim in dims if not (isinstance(dim, int) and dim == 1)]
    if not wide:
        return 1
    for dim in wide:
        if isinstance(dim, int):
            return dim
    return wide[0] if all(same_dim(wide[0], dim) for dim in wide) else None
