"""Discrete Fourier transforms. Complex numbers stand as pairs along the last axis, real ones alone."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("DFT", "input")
def dft(op: Adjoint) -> Cotangents:
    """The transform with the opposite sign, without the forward's 1/L (inverse: with it); L is the length transformed.

    A one-sided spectrum is zero beyond its half; one that is transformed back counts all but its ends twice. What was
    cut off gets zeros, what was padded gets nothing, a real input the real part.
    """
    b, X, dY = op.b, op["input"], op.wide(op.dY)
    if _is_cut_spectrum(op):
        yield "input", b.Cast(_by_matrix(op), to=X.dtype)
        return
    axis, length = _axis(op), _length(op)
    inverse, onesided = op.attr("inverse", 0), op.attr("onesided", 0)
    count = b.Cast(length, to=dY.dtype)
    if inverse:
        full = b.op("DFT", dY, b.Squeeze(length), b.Squeeze(axis), onesided=onesided) / count
        if onesided:
            full = full * _twice(op, length, axis)
    else:
        full = b.op("DFT", dY, b.Squeeze(length), b.Squeeze(axis), inverse=1) * count
    if op.get("dft_length") is not None:
        full = _fitted(op, full, axis)
    yield "input", b.Cast(_like(op, full, X), to=X.dtype)


def _axis(op: Adjoint) -> ir.Value:
    """INT64 [1]."""
    axis = op.constant("axis")
    if op.get("axis") is None or axis is not None:
        return op.b.ints([-2 if axis is None else int(axis.reshape(()))])
    return op.b.Reshape(op["axis"], op.b.ints([1]))


def _length(op: Adjoint) -> ir.Value:
    """INT64 [1]: how many numbers are transformed along the axis."""
    b, said = op.b, op.constant("dft_length")
    if said is not None:
        return b.ints([int(said.reshape(()))])
    if op.get("dft_length") is not None:
        return b.Cast(b.Reshape(op["dft_length"], b.ints([1])), to=ir.DataType.INT64)
    size = b.Gather(b.shape_of(op["input"]), _axis(op))
    return (size - 1) * 2 if op.attr("inverse", 0) and op.attr("onesided", 0) else size


def _is_cut_spectrum(op: Adjoint) -> bool:
    """Whether half a spectrum is transformed back to a length that it may not be the half of."""
    if not (op.attr("inverse", 0) and op.attr("onesided", 0)) or op.get("dft_length") is None:
        return False
    length, axis, shape = op.constant("dft_length"), op.constant("axis"), op["input"].shape
    if length is None or shape is None or (op.get("axis") is not None and axis is None):
        return True
    size = shape[-2 if axis is None else int(axis.reshape(()))]
    return not isinstance(size, int) or size != int(length.reshape(())) // 2 + 1


def _by_matrix(op: Adjoint) -> ir.Value:
    """The transform of every unit spectrum is a matrix, so that what is padded or cut is as the runtime has it."""
    b, X, dY, kind = op.b, op["input"], op.wide(op.dY), ir.DataType.INT64
    shape, length, axis, pair = b.shape_of(X), _length(op), _axis(op), b.ints([2])
    rank = b.Shape(shape)
    place = b.Where(b.Less(axis, b.constant(0, kind)), axis + rank, axis)
    size = b.Gather(shape, place)
    identity = b.op("EyeLike", b.zeros(b.Concat(size * 2, size * 2, axis=0), dY.dtype or ir.DataType.FLOAT))
    units = b.Reshape(identity, b.Concat(size * 2, size, pair, axis=0))
    waves = b.op("DFT", units, b.Squeeze(length), b.constant(1), inverse=1, onesided=1)
    before = b.ReduceProd(b.Slice(shape, b.ints([0]), place), keepdims=1)
    after = b.ReduceProd(b.Slice(shape, place + 1, b.ints([-1])), keepdims=1)
    rows = b.Reshape(dY, b.Concat(before, length, after, axis=0))
    product = b.op("MatMul", b.Squeeze(waves, b.ints([2])), rows)
    pairs = b.op("Transpose", b.Reshape(product, b.Concat(before, size, pair, after, axis=0)), perm=[0, 1, 3, 2])
    return b.op("Reshape", pairs, shape, shape=X.shape)


def _twice(op: Adjoint, length: ir.Value, axis: ir.Value) -> ir.Value:
    """2 for each number of half a spectrum but the first, and the last of an even length; it lies along `axis`."""
    b, kind = op.b, ir.DataType.INT64
    half = b.Div(length, b.constant(2, kind)) + 1
    at = b.Range(b.constant(0, kind), b.Squeeze(half), b.constant(1, kind), dtype=kind)
    once = b.Or(b.Equal(at, b.constant(0, kind)), b.Equal(at * 2, length))
    counts = b.Where(once, b.scalar_like(1.0, op.wide(op.dY)), b.scalar_like(2.0, op.wide(op.dY)))
    ones = b.op("ConstantOfShape", b.Shape(b.Shape(op["input"])), value=ir.tensor([1], dtype=kind), dtype=kind)
    rank = b.Shape(b.Shape(op["input"]))
    place = b.Where(b.Less(axis, b.constant(0, kind)), axis + rank, axis)
    return b.Reshape(counts, b.op("ScatterElements", ones, place, half, axis=0))


def _fitted(op: Adjoint, full: ir.Value, axis: ir.Value) -> ir.Value:
    """As long along the axis as the input was: shortened, or zeros behind."""
    b = op.b
    size = b.Gather(b.shape_of(op["input"]), axis)
    short = b.Slice(full, b.ints([0]), size, axis)
    missing = size - b.Gather(b.Shape(short), axis)
    return b.op("Pad", short, b.Concat(b.ints([0]), missing, axis=0), None, axis)


def _like(op: Adjoint, pairs: ir.Value, value: ir.Value) -> ir.Value:
    """The real part, where `value` is real."""
    b = op.b
    if value.shape is not None and value.shape[-1] == 2:
        return pairs
    last = b.ints([1]) if value.shape is not None and value.shape[-1] == 1 else b.dim(value, -1)
    return b.Slice(pairs, b.ints([0]), last, b.ints([-1]))


@rule("STFT", "signal window", weights="window")
def stft(op: Adjoint) -> Cotangents:
    """Frames of the signal times the window, each transformed: the transform back, then the adjoint of both.

    The signal adds up what its frames get, the window sums over frames.
    """
    b, signal, dY, kind = op.b, _channels_last(op), op.wide(op.dY), ir.DataType.INT64
    length = _frame_length(op)
    spectra = b.op("DFT", dY, b.Squeeze(length), b.constant(2), inverse=1) * b.Cast(length, to=dY.dtype)
    frames = _like(op, spectra, signal)
    zero, one = b.constant(0, kind), b.constant(1, kind)
    count = b.Range(zero, b.Squeeze(b.op("Shape", dY, start=1, end=2)), one, dtype=kind)
    step = b.Cast(b.Reshape(op["frame_step"], b.ints([1])), to=kind)
    places = b.Unsqueeze(count * step, b.ints([1])) + b.Range(zero, b.Squeeze(length), one, dtype=kind)
    if op.wants("signal"):
        rows = frames
        if op.get("window") is not None:
            rows = frames * b.Unsqueeze(op.wide(op["window"]), b.ints([1]))
        operands = rows, places, b.shape_of(signal)
        added = b.op("GatherGrad", *operands, axis=1, domain="gradcut", dtype=rows.dtype, shape=signal.shape)
        given = op["signal"]
        alike = added if signal is given else b.op("Reshape", added, b.shape_of(given), allowzero=1, shape=given.shape)
        yield "signal", b.Cast(alike, to=signal.dtype)
    if op.wants("window"):
        window, seen = op["window"], b.op("Gather", op.wide(signal), places, axis=1)
        yield "window", b.Cast(b.ReduceSum(frames * seen, b.ints([0, 1, 3]), keepdims=0), to=window.dtype)


def _channels_last(op: Adjoint) -> ir.Value:
    """The signal [N, L, C]; torch's exporter writes a real one as [N, L], which ONNX Runtime takes."""
    b, signal = op.b, op["signal"]
    if signal.shape is not None and len(signal.shape) == 3:
        return signal
    known = None if signal.shape is None else ir.Shape([*signal.shape, 1])
    return b.op("Reshape", signal, b.ints([0, 0, -1]), dtype=signal.dtype, shape=known)


def _frame_length(op: Adjoint) -> ir.Value:
    """INT64 [1]."""
    b, said = op.b, op.constant("frame_length")
    if said is not None:
        return b.ints([int(said.reshape(()))])
    if op.get("frame_length") is not None:
        return b.Cast(b.Reshape(op["frame_length"], b.ints([1])), to=ir.DataType.INT64)
    return b.dim(op["window"], 0) if op.get("window") is not None else b.dim(op["signal"], 1)
