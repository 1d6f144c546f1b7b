"""Normalisations and softmax."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Softmax", "input")
def softmax(op: Adjoint) -> Cotangents:
    """dX = Y (dY - sum(dY Y))."""
    yield "input", _along_axis(op, "SoftmaxGrad")


@rule("LogSoftmax", "input")
def log_softmax(op: Adjoint) -> Cotangents:
    """dX = dY - exp(Y) sum(dY)."""
    yield "input", _along_axis(op, "LogSoftmaxGrad")


def _along_axis(op: Adjoint, kind: str) -> ir.Value:
    Y = op.out()
    axis = op.attr("axis", -1) % op.rank("input")
    return op.b.op(kind, op.dY, Y, axis=axis, domain="gradcut", dtype=Y.dtype, shape=Y.shape)


@rule("LayerNormalization", "X Scale B", weights="Scale B", outputs={"Mean": "X", "InvStdDev": "X"})
def layer_normalization(op: Adjoint) -> Cotangents:
    """Y = Xhat Scale + B, Xhat = (X - Mean) InvStdDev over the axes from `axis` on; Ba et al. 2016.

    dB = sum dY, dScale = sum dY Xhat, dX by `NormalizationGrad`; the statistics are the forward's own outputs.
    """
    if op.cotangent("Mean") is not None or op.cotangent("InvStdDev") is not None:
        op.refuse("its outputs Mean and InvStdDev are differentiated, and only Y is covered")
    b, X, Scale, dY = op.b, op["X"], op["Scale"], op.dY
    axis = op.attr("axis", -1) % op.rank("X")
    if op.wants("B"):
        yield "B", b.sum_to(dY, op["B"])
    if not op.wants("X", "Scale"):
        return
    mean, deviation = (_statistic(op, name, axis) for name in ("Mean", "InvStdDev"))
    Xhat = (X - mean) * deviation
    if op.wants("Scale"):
        yield "Scale", b.sum_to(dY * Xhat, Scale)
    if op.wants("X"):
        yield "X", _normalization_grad(op, dY * Scale, Xhat, deviation, range(axis, op.rank("X")))


def _statistic(op: Adjoint, name: str, axis: int) -> ir.Value:
    """Mean or InvStdDev of the forward node, [D0, ..., 1, ...], in the dtype of X."""
    X, value = op["X"], op.out(name)
    if value.dtype is None:
        value.dtype = ir.DataType.DOUBLE if X.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    value.shape = ir.Shape([1 if i >= axis else dim for i, dim in enumerate(X.shape or ())])
    return op.b.Cast(value, to=X.dtype)


def _normalization_grad(
    op: Adjoint, dXhat: ir.Value, Xhat: ir.Value, deviation: ir.Value, axes: range | list[int]
) -> ir.Value:
    X = op["X"]
    return op.b.op(
        "NormalizationGrad",
        dXhat,
        Xhat,
        deviation,
        op.b.ints(axes),
        domain="gradcut",
        dtype=X.dtype,
        shape=X.shape,
    )


_STATISTICS = {"running_mean": "X input_mean", "running_var": "X input_var"}


@rule("BatchNormalization", "X scale B input_mean input_var", weights="scale B", outputs=_STATISTICS)
def batch_normalization(op: Adjoint) -> Cotangents:
    """Y = Xhat scale + B per channel; Ioffe and Szegedy 2015. Inference: the statistics are operands."""
    if op.attr("training_mode", 0):
        yield from _batch_statistics(op)
    else:
        yield from _given_statistics(op)


def _given_statistics(op: Adjoint) -> Cotangents:
    """dX = dY scale / sqrt(var + eps), dmean = -sum of it, dvar = -1/2 sum(dY Xhat) scale / (var + eps)."""
    b, dY, scale = op.b, op.dY, op["scale"]
    rank = op.rank("X")
    deviation = b.Reciprocal(b.Sqrt(op["input_var"] + op.attr("epsilon", 1e-5)))
    total = _channel_sum(op, dY) if op.wants("B", "input_mean") else None
    if op.wants("X"):
        factor = b.Cast(scale * deviation, to=dY.dtype)
        yield "X", dY * _channels(op, factor, rank)
    if total is not None and op.wants("B"):
        yield "B", b.Cast(total, to=op["B"].dtype)
    if total is not None and op.wants("input_mean"):
        yield "input_mean", -(total * (scale * deviation))
    if op.wants("scale", "input_var"):
        Xhat = (op["X"] - _channels(op, op["input_mean"], rank)) * _channels(op, deviation, rank)
        projection = _channel_sum(op, dY * Xhat)
        if op.wants("scale"):
            yield "scale", projection
        if op.wants("input_var"):
            yield "input_var", projection * scale * (deviation * deviation) * -0.5


def _batch_statistics(op: Adjoint) -> Cotangents:
    """Training mode: the statistics are those of X; each running output is momentum * old + (1 - momentum) * new."""
    b, dY = op.b, op.cotangent()
    rank, momentum = op.rank("X"), op.attr("momentum", 0.9)
    axes = [0, *range(2, rank)]
    running = {name: op.cotangent(name) for name in ("running_mean", "running_var")}
    for name, operand in (("running_mean", "input_mean"), ("running_var", "input_var")):
        cotangent = running[name]
        if op.wants(operand) and cotangent is not None:
            yield operand, cotangent * momentum
    if op.wants("B") and dY is not None:
        yield "B", _channel_sum(op, dY)
    if not op.wants("X", "scale"):
        return
    mean, deviation = _batch_mean(op, axes), _batch_deviation(op, axes)
    Xhat = (op["X"] - mean) * deviation
    if op.wants("scale") and dY is not None:
        yield "scale", _channel_sum(op, dY * Xhat)
    if not op.wants("X"):
        return
    parts = []
    if dY is not None:
        dXhat = dY * _channels(op, op["scale"], rank)
        parts.append(_normalization_grad(op, dXhat, Xhat, deviation, axes))
    parts += _through_running(op, running, Xhat, deviation, momentum, rank)
    yield "X", parts[0] if len(parts) == 1 else b.Sum(*parts)


def _through_running(
    op: Adjoint,
    running: dict[str, ir.Value | None],
    Xhat: ir.Value,
    deviation: ir.Value,
    momentum: float,
    rank: int,
) -> list[ir.Value]:
    """d mean / dX = 1/n and d var / dX = 2 (X - mean) / n, from the running outputs."""
    b, parts = op.b, []
    X = op["X"]
    n = b.Cast(b.Div(b.Size(X), b.Size(op["scale"])), to=X.dtype)
    mean, var = running["running_mean"], running["running_var"]
    if mean is not None:
        share = _channels(op, mean * (1.0 - momentum) / n, rank)
        parts.append(b.op("Expand", share, b.shape_of(X), shape=X.shape))
    if var is not None:
        share = _channels(op, var * (2.0 * (1.0 - momentum)) / n, rank)
        parts.append(Xhat / deviation * share)
    return parts


def _batch_mean(op: Adjoint, axes: list[int]) -> ir.Value:
    """The batch's mean: the node's own output where its momentum is 0, else taken again."""
    if op.attr("momentum", 0.9) == 0.0 and len(op.node.outputs) > 2:
        return _channels(op, op.out("running_mean"), op.rank("X"))
    return op.b.ReduceMean(op["X"], op.b.ints(axes), keepdims=1)


def _batch_deviation(op: Adjoint, axes: list[int]) -> ir.Value:
    b = op.b
    if op.attr("momentum", 0.9) == 0.0 and len(op.node.outputs) > 2:
        var = _channels(op, op.out("running_var"), op.rank("X"))
    else:
        centred = op["X"] - b.ReduceMean(op["X"], b.ints(axes), keepdims=1)
        var = b.ReduceMean(centred * centred, b.ints(axes), keepdims=1)
    return b.Reciprocal(b.Sqrt(var + op.attr("epsilon", 1e-5)))


def _channels(op: Adjoint, value: ir.Value, rank: int) -> ir.Value:
    """[C] as [C, 1, ...], to broadcast against [N, C, *D]."""
    channels = value.shape[0] if value.shape is not None else None
    shape = ir.Shape([channels, *[1] * (rank - 2)])
    if rank == 2:
        return value
    return op.b.op("Reshape", value, op.b.ints([-1, *[1] * (rank - 2)]), shape=shape)


def _channel_sum(op: Adjoint, value: ir.Value) -> ir.Value:
    axes = op.b.ints([0, *range(2, op.rank("X"))])
    return op.b.op("ReduceSum", value, axes, keepdims=0, shape=op["scale"].shape)
