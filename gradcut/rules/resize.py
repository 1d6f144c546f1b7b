"""Resize and the operators that trade channels for places."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule

_OF_SEVERAL_AXES = ("axes", "keep_aspect_ratio_policy", "extrapolation_value")


@rule("Resize", "X", constant="roi scales")
def resize(op: Adjoint) -> Cotangents:
    """Each axis is resized by a matrix of its own, whatever the mode: dX = dY times its transpose, axis by axis.

    The matrix is the identity resized in the same way, so coordinates, ties, antialiasing and what a crop leaves out
    (a row of zeros) are the forward's own. An axis of scale 1 stays as it is, in a crop too: so does the runtime's.
    """
    b, X = op.b, op["X"]
    if _is_copied(op):
        yield "X", op.dY
        return
    rank = op.rank("X")
    grad = op.wide(op.dY)
    for position, axis in enumerate(op.attr("axes") or range(rank)):
        axis %= rank
        if _is_unchanged(op, position, axis):
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
    yield "X", b.Cast(grad, to=X.dtype)


def _is_proportional(op: Adjoint) -> bool:
    return op.get("sizes") is not None and op.attr("keep_aspect_ratio_policy", "stretch") != "stretch"


def _is_copied(op: Adjoint) -> bool:
    """ONNX Runtime keeps the proportions of negative axes by leaving all as it is."""
    return _is_proportional(op) and min(op.attr("axes") or [0]) < 0


def _is_unchanged(op: Adjoint, position: int, axis: int) -> bool:
    """Whether an axis is known to be left as it is: a scale of 1."""
    if _is_proportional(op):
        return False
    if op.get("sizes") is None:
        scales = op.constant("scales")
        return scales is not None and float(scales[position]) == 1.0
    before, sizes = op["X"].shape, op.constant("sizes")
    if sizes is not None and before is not None:
        return isinstance(before[axis], int) and before[axis] == int(sizes[position])
    return False


def _matrix(op: Adjoint, position: int, axis: int) -> ir.Value:
    """[in, out]: the identity with its second axis resized as `axis` is."""
    b, kind = op.b, op.wide(op["X"]).dtype or ir.DataType.FLOAT
    size = b.dim(op["X"], axis)
    identity = b.EyeLike(b.zeros(b.Concat(size, size, axis=0), kind))
    where = b.ints([position]), b.ints([position + 1]), b.ints([0])
    kept = {name: value for name, value in op.node.attributes.items() if name not in _OF_SEVERAL_AXES}
    roi = None
    if op.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        roi = _roi(op, position)
    if op.get("sizes") is None:
        return _scaled(op, axis, identity, roi, b.Slice(op["scales"], *where), kept)
    if _is_proportional(op):
        return _in_proportion(op, identity, roi, b.Slice(op["sizes"], *where), kept)
    sizes = b.Concat(size, b.Slice(op["sizes"], *where), axis=0)
    return b.op("Resize", identity, roi, None, sizes, dtype=kind, **kept)


def _scaled(
    op: Adjoint, axis: int, identity: ir.Value, roi: ir.Value | None, scale: ir.Value, kept: dict[str, ir.Attr]
) -> ir.Value:
    """ONNX Runtime copies what has the size of its result, whatever the scales.

    Where the axis may keep its size, another stands beside the identity, and doubles where any axis of X changes.
    """
    b, kind, one = op.b, identity.dtype, op.b.constant([1.0], ir.DataType.FLOAT)
    before, after = (None if v.shape is None else v.shape[axis] for v in (op["X"], op.out()))
    if isinstance(before, int) and isinstance(after, int) and before != after:
        return b.op("Resize", identity, roi, b.Concat(one, scale, axis=0), dtype=kind, **kept)
    change = b.ReduceMax(b.Abs(b.shape_of(op["X"]) - b.shape_of(op.out())), keepdims=1)
    beside = b.Cast(b.Min(change, b.constant(1)), to=ir.DataType.FLOAT) + one
    if roi is not None:
        roi = b.Gather(roi, b.ints([0, 0, 1, 0, 2, 2, 3, 2]))
    wide = b.Unsqueeze(identity, b.ints([0, 3]))
    resized = b.op("Resize", wide, roi, b.Concat(one, one, scale, beside, axis=0), dtype=kind, **kept)
    return b.op("Gather", b.Squeeze(resized, b.ints([0])), b.constant(0), axis=2, dtype=kind)


def _roi(op: Adjoint, position: int) -> ir.Value:
    """Of [start, .., end, ..] of all resized axes, those of a first axis that stays and of this one."""
    b, roi = op.b, op["roi"]
    count = len(op.attr("axes") or range(op.rank("X")))
    start, end = (b.Slice(roi, b.ints([at]), b.ints([at + 1]), b.ints([0])) for at in (position, position + count))
    whole = b.constant([0.0], roi.dtype), b.constant([1.0], roi.dtype)
    return b.Concat(whole[0], start, whole[1], end, axis=0)


def _in_proportion(
    op: Adjoint, identity: ir.Value, roi: ir.Value | None, size: ir.Value, kept: dict[str, ir.Attr]
) -> ir.Value:
    """The axis that decides on the scale of all stands beside the identity, and one place along it is taken."""
    b, rank, policy = op.b, op.rank("X"), op.attr("keep_aspect_ratio_policy")
    axes = [axis % rank for axis in op.attr("axes") or range(rank)]
    lengths, sizes = b.Concat(*(b.dim(op["X"], axis) for axis in axes), axis=0), op["sizes"]
    ratios = b.Cast(sizes, to=ir.DataType.FLOAT) / b.Cast(lengths, to=ir.DataType.FLOAT)
    decides = b.op("ArgMin" if policy == "not_larger" else "ArgMax", ratios, axis=0, keepdims=1)
    length, result = b.Gather(lengths, decides), b.Gather(sizes, decides)
    wide = b.Expand(b.Unsqueeze(identity, b.ints([0, 3])), b.Concat(b.ints([1, 1, 1]), length, axis=0))
    kept = {**kept, "keep_aspect_ratio_policy": op.node.attributes["keep_aspect_ratio_policy"]}
    if roi is not None:  # of the axis beside, all
        at = b.constant([1, 0, 3, 2], ir.DataType.INT64)
        roi = b.Gather(roi, at)
    resized = b.op("Resize", wide, roi, None, b.Concat(size, result, axis=0), axes=[2, 3], **kept)
    return b.op("Gather", b.Squeeze(resized, b.ints([0])), b.constant(0), axis=2)


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
