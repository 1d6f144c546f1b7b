"""Resize and the operators that trade channels for places."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule

_OF_SEVERAL_AXES = ("axes", "keep_aspect_ratio_policy", "extrapolation_value")


@rule("Resize", "X")
def resize(op: Adjoint) -> Cotangents:
    """Each axis is resized by a matrix of its own, whatever the mode: dX = dY times its transpose, axis by axis.

    The matrix is the identity resized in the same way, so coordinates, ties and antialiasing are the forward's own.

    Not covered: tf_crop_and_resize; keep_aspect_ratio_policy other than stretch.
    """
    b = op.b
    _check(op)
    rank = op.rank("X")
    axes = [axis % rank for axis in op.attr("axes") or range(rank)]
    grad = op.dY
    for position, axis in enumerate(axes):
        if _same_size(op, axis):
            continue
        last = [*(a for a in range(rank) if a != axis), axis]
        back = [last.index(a) for a in range(rank)]
        matrix = b.Transpose(_matrix(op, position, axis), perm=[1, 0])
        if axis == rank - 1:
            grad = b.MatMul(grad, matrix)
        elif axis == rank - 2:
            grad = b.MatMul(b.Transpose(matrix, perm=[1, 0]), grad)
        else:
            grad = b.Transpose(b.MatMul(b.Transpose(grad, perm=last), matrix), perm=back)
    yield "X", grad


def _check(op: Adjoint) -> None:
    if op.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        op.refuse("coordinate_transformation_mode='tf_crop_and_resize' has no rule")
    if op.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        op.refuse("keep_aspect_ratio_policy other than 'stretch' has no rule")


def _same_size(op: Adjoint, axis: int) -> bool:
    """Whether an axis is left as it is: by its numbers, or as batch and channels of a scale of 1."""
    before, after = op["X"].shape, op.out().shape
    if before is not None and after is not None and isinstance(before[axis], int) and before[axis] == after[axis]:
        scales = op.constant("scales")
        return scales is None or scales.size == 0 or float(scales[_position(op, axis)]) == 1.0
    scales = op.constant("scales")
    return scales is not None and scales.size > 0 and float(scales[_position(op, axis)]) == 1.0


def _position(op: Adjoint, axis: int) -> int:
    """Where an axis stands among the sizes or scales."""
    axes = op.attr("axes")
    return axis if axes is None else [a % op.rank("X") for a in axes].index(axis)


def _matrix(op: Adjoint, position: int, axis: int) -> ir.Value:
    """[in, out]: the identity with its second axis resized as `axis` is."""
    b, kind = op.b, op["X"].dtype or ir.DataType.FLOAT
    size = b.dim(op["X"], axis)
    identity = b.EyeLike(b.zeros(b.Concat(size, size, axis=0), kind))
    where = b.ints([position]), b.ints([position + 1]), b.ints([0])
    kept = {name: value for name, value in op.node.attributes.items() if name not in _OF_SEVERAL_AXES}
    if op.get("sizes") is not None:
        sizes = b.Concat(size, b.Slice(op["sizes"], *where), axis=0)
        return b.op("Resize", identity, None, None, sizes, dtype=kind, **kept)
    scales = b.Concat(b.constant([1.0], ir.DataType.FLOAT), b.Slice(op["scales"], *where), axis=0)
    return b.op("Resize", identity, None, scales, dtype=kind, **kept)


@rule("DepthToSpace", "input")
def depth_to_space(op: Adjoint) -> Cotangents:
    """The inverse: SpaceToDepth for mode DCR, for CRD the places go inside of each channel."""
    b, X, block = op.b, op["input"], op.attr("blocksize")
    if op.attr("mode", "DCR") == "DCR":
        yield "input", b.op("SpaceToDepth", op.dY, blocksize=block, shape=X.shape)
        return
    wide = b.shape_of(X)
    n, rows, columns = (b.Slice(wide, b.ints([axis]), b.ints([axis + 1]), b.ints([0])) for axis in (0, 2, 3))
    blocks = b.dims(n, -1, rows, block, columns, block)
    moved = b.Transpose(b.Reshape(op.dY, blocks), perm=[0, 1, 3, 5, 2, 4])
    yield "input", b.op("Reshape", moved, wide, allowzero=1, shape=X.shape)


@rule("SpaceToDepth", "input")
def space_to_depth(op: Adjoint) -> Cotangents:
    """The inverse."""
    yield "input", op.b.op("DepthToSpace", op.dY, blocksize=op.attr("blocksize"), shape=op["input"].shape)
