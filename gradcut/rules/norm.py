"""Normalisations and softmax."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule


@rule("Softmax", "input")
def softmax(op: Adjoint) -> Cotangents:
    """dX = Y (dY - sum(dY Y)); 0 in a row that is no number, all of it -inf, where the model looks for such."""
    yield "input", _along_axis(op, "SoftmaxGrad")


@rule("LogSoftmax", "input")
def log_softmax(op: Adjoint) -> Cotangents:
    """dX = dY - exp(Y) sum(dY)."""
    yield "input", _along_axis(op, "LogSoftmaxGrad")


def _along_axis(op: Adjoint, kind: str) -> ir.Value:
    Y = op.out()
    axis = op.attr("axis", -1)
    if Y.shape is not None:
        axis %= len(Y.shape)
    if _is_mended(op.node.outputs[0]):
        Y = op.b.op("Where", op.b.IsNaN(Y), op.b.scalar_like(0.0, Y), Y, dtype=Y.dtype, shape=Y.shape)
    return op.b.op(kind, op.dY, Y, axis=axis, domain="gradcut", dtype=Y.dtype, shape=Y.shape)


def _is_mended(Y: ir.Value) -> bool:
    """Whether the model may replace what is no number in Y: a masked attention does so with rows that see nothing.

    Their cotangent is 0 then, and 0 times what is no number would be none.
    """
    for node, _ in Y.uses():
        if node.domain == "" and node.op_type in ("Where", "IsNaN"):
            return True
        if node.domain == "" and node.op_type in ("Cast", "Identity") and _is_mended(node.outputs[0]):
            return True
    return False


@rule(
    "LayerNormalization",
    "X Scale B",
    weights="Scale B",
    outputs=lambda node: {"Mean": "X", "InvStdDev": "X"},
)
def layer_normalization(op: Adjoint) -> Cotangents:
    """Y = Xhat Scale + B, Xhat = (X - Mean) InvStdDev over the axes from `axis` on; Ba et al. 2016.

    dB = sum dY, dScale = sum dY Xhat, dX by `NormalizationGrad`; the statistics are the forward's own outputs.
    Through them: dX += dMean / n - dInvStdDev InvStdDev^2 Xhat / n.
    """
    b, dY = op.b, op.cotangent("Y")
    axis = op.attr("axis", -1) % op.rank("X")
    if op.wants("B") and dY is not None:
        yield "B", b.Cast(b.sum_to(op.wide(dY), op["B"]), to=op["B"].dtype)
    if not op.wants("X", "Scale"):
        return
    mean, deviation = _layer_statistics(op, axis)
    kind = mean.dtype
    Xhat = (b.Cast(op["X"], to=kind) - mean) * deviation
    cotangent = None if dY is None else b.Cast(dY, to=kind)
    if op.wants("Scale") and cotangent is not None:
        yield "Scale", b.Cast(b.sum_to(cotangent * Xhat, op["Scale"]), to=op["Scale"].dtype)
    if not op.wants("X"):
        return
    parts = []
    if cotangent is not None:
        dXhat = cotangent * b.Cast(op["Scale"], to=kind)
        parts.append(_normalization_grad(op, dXhat, Xhat, deviation, range(axis, op.rank("X"))))
    parts += _through_layer_statistics(op, Xhat, deviation)
    yield "X", b.Cast(_add_up(op, parts), to=op["X"].dtype)


def _layer_statistics(op: Adjoint, axis: int) -> tuple[ir.Value, ir.Value]:
    """Mean and InvStdDev, [D0, ..., 1, ...], in the type they are kept in: at least float32.

    They are outputs of the forward node. Those are float32 for a float64 X too, and ONNX Runtime gives none of another
    `stash_type`, so there they are taken again.
    """
    b, X = op.b, op["X"]
    if X.dtype == ir.DataType.DOUBLE or op.attr("stash_type", ir.DataType.FLOAT) != ir.DataType.FLOAT:
        X, axes = op.wide(X), b.ints(range(axis, op.rank("X")))
        mean = b.ReduceMean(X, axes, keepdims=1)
        return mean, _inverse_deviation(op, X - mean, axes)
    shape = ir.Shape([1 if i >= axis else dim for i, dim in enumerate(X.shape or ())])
    found = [op.out(name) for name in ("Mean", "InvStdDev")]
    for value in found:
        value.dtype, value.shape = value.dtype or ir.DataType.FLOAT, shape
    return found[0], found[1]


def _through_layer_statistics(op: Adjoint, Xhat: ir.Value, deviation: ir.Value) -> list[ir.Value]:
    b, parts, kind = op.b, [], Xhat.dtype
    n = b.Cast(b.Div(b.Size(Xhat), b.Size(deviation)), to=kind)
    dMean, dInvStdDev = op.cotangent("Mean"), op.cotangent("InvStdDev")
    if dMean is not None:
        share = b.Cast(dMean, to=kind) / n
        parts.append(b.op("Expand", share, b.shape_of(op["X"]), shape=op["X"].shape))
    if dInvStdDev is not None:
        parts.append(-(b.Cast(dInvStdDev, to=kind) * (deviation * deviation) / n * Xhat))
    return parts


def _inverse_deviation(op: Adjoint, centred: ir.Value, axes: ir.Value) -> ir.Value:
    b = op.b
    var = b.ReduceMean(centred * centred, axes, keepdims=1)
    return b.Reciprocal(b.Sqrt(var + op.attr("epsilon", 1e-5)))


def _normalization_grad(
    op: Adjoint,
    dXhat: ir.Value,
    Xhat: ir.Value,
    deviation: ir.Value,
    axes: range | list[int],
    operand: str = "X",
) -> ir.Value:
    operands = dXhat, Xhat, deviation, op.b.ints(axes)
    return op.b.op("NormalizationGrad", *operands, domain="gradcut", dtype=Xhat.dtype, shape=op[operand].shape)


def _add_up(op: Adjoint, parts: list[ir.Value]) -> ir.Value:
    return parts[0] if len(parts) == 1 else op.b.Sum(*parts)


def _batch_outputs(node: ir.Node) -> dict[str, str]:
    """In training the statistics given to Y are those of X, and the given ones only move the running ones."""
    if "training_mode" in node.attributes and node.attributes["training_mode"].as_int():
        return {"Y": "X scale B", "running_mean": "X input_mean", "running_var": "X input_var"}
    return {}


@rule("BatchNormalization", "X scale B input_mean input_var", weights="scale B", outputs=_batch_outputs)
def batch_normalization(op: Adjoint) -> Cotangents:
    """Y = Xhat scale + B per channel; Ioffe and Szegedy 2015. Inference: the statistics are operands.

    The type of the statistics may be wider than that of X; the backward is computed in the widest.
    """
    rule = _batch_statistics if op.attr("training_mode", 0) else _given_statistics
    for operand, cotangent in rule(op):
        yield operand, op.b.Cast(cotangent, to=op[operand].dtype)


def _wide(op: Adjoint, value: ir.Value) -> ir.Value:
    """A value in the widest type among the operands, float32 at least."""
    kinds = {op[name].dtype for name in ("X", "scale", "input_var")}
    for kind in (ir.DataType.DOUBLE, ir.DataType.FLOAT):
        if kind in kinds:
            return op.b.Cast(value, to=kind)
    return op.wide(value)


def _given_statistics(op: Adjoint) -> Cotangents:
    """dX = dY scale / sqrt(var + eps), dmean = -sum of it, dvar = -1/2 sum(dY Xhat) scale / (var + eps)."""
    b, dY, scale = op.b, _wide(op, op.dY), _wide(op, op["scale"])
    rank = op.rank("X")
    deviation = b.Reciprocal(b.Sqrt(_wide(op, op["input_var"]) + op.attr("epsilon", 1e-5)))
    if op.wants("X"):
        yield "X", dY * _channels(op, scale * deviation, rank)
    total = _channel_sum(op, dY) if op.wants("B", "input_mean") else None
    if total is not None and op.wants("B"):
        yield "B", total
    if total is not None and op.wants("input_mean"):
        yield "input_mean", -(total * (scale * deviation))
    if not op.wants("scale", "input_var"):
        return
    centred = _wide(op, op["X"]) - _channels(op, _wide(op, op["input_mean"]), rank)
    projection = _channel_sum(op, dY * (centred * _channels(op, deviation, rank)))
    if op.wants("scale"):
        yield "scale", projection
    if op.wants("input_var"):
        yield "input_var", projection * scale * (deviation * deviation) * -0.5


def _batch_statistics(op: Adjoint) -> Cotangents:
    """Training mode: the statistics are those of X; each running output is momentum * old + (1 - momentum) * new."""
    momentum = op.attr("momentum", 0.9)
    for name, operand in (("running_mean", "input_mean"), ("running_var", "input_var")):
        running = op.cotangent(name)
        if op.wants(operand) and running is not None:
            yield operand, running * momentum
    found = op.cotangent()
    dY = None if found is None else _wide(op, found)
    total = None if dY is None else _channel_sum(op, dY)
    if op.wants("B") and total is not None:
        yield "B", total
    if not op.wants("X", "scale"):
        return
    centred, deviation = _batch_moments(op)
    projection = None if dY is None else _channel_sum(op, dY * centred)
    if op.wants("scale") and projection is not None:
        yield "scale", projection * deviation
    if not op.wants("X"):
        return
    parts = []
    if dY is not None and total is not None and projection is not None:
        parts.append(_through_batch(op, dY, centred, deviation, total, projection))
    yield "X", _add_up(op, parts + _through_running(op, centred, 1.0 - momentum))


def _through_batch(
    op: Adjoint, dY: ir.Value, centred: ir.Value, deviation: ir.Value, total: ir.Value, projection: ir.Value
) -> ir.Value:
    """scale deviation (dY - mean(dY) - centred deviation^2 mean(dY centred)), in four passes over the data.

    Args:
        deviation, total, projection: 1 / sqrt(var + eps), sum dY and sum dY centred, [C].
    """
    rank, scale = op.rank("X"), _wide(op, op["scale"])
    n = _count(op)
    slope, shift = -(deviation * deviation * projection / n), -(total / n)
    inner = centred * _channels(op, slope, rank) + dY + _channels(op, shift, rank)
    return op.b.Mul(inner, _channels(op, scale * deviation, rank))


def _count(op: Adjoint) -> ir.Value:
    """How many elements of X a channel has, in the widest type."""
    kind = _wide(op, op["X"]).dtype
    assert kind is not None
    return op.b.per_channel(op["X"], op["scale"], kind)


def _through_running(op: Adjoint, centred: ir.Value, fraction: float) -> list[ir.Value]:
    """d mean / dX = 1/n and d var / dX = 2 (X - mean) / n, from the running outputs."""
    b, X, rank, parts = op.b, op["X"], op.rank("X"), []
    mean, var = op.cotangent("running_mean"), op.cotangent("running_var")
    n = _count(op)
    if mean is not None:
        share = _channels(op, _wide(op, mean) * fraction / n, rank)
        parts.append(b.op("Expand", share, b.shape_of(X), shape=X.shape))
    if var is not None:
        parts.append(centred * _channels(op, _wide(op, var) * (2.0 * fraction) / n, rank))
    return parts


def _batch_moments(op: Adjoint) -> tuple[ir.Value, ir.Value]:
    """X - mean, and 1 / sqrt(var + eps) [C] of the batch: by the node's own outputs where its momentum is 0."""
    b, X, rank = op.b, _wide(op, op["X"]), op.rank("X")
    if op.attr("momentum", 0.9) == 0.0 and len(op.node.outputs) > 2:
        mean, var = (_wide(op, op.out(name)) for name in ("running_mean", "running_var"))
        centred = X - _channels(op, mean, rank)
    else:
        axes = b.ints([0, *range(2, rank)])
        centred = X - b.ReduceMean(X, axes, keepdims=1)
        var = b.op("ReduceMean", centred * centred, axes, keepdims=0, shape=op["scale"].shape)
    return centred, b.Reciprocal(b.Sqrt(var + op.attr("epsilon", 1e-5)))


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


@rule("InstanceNormalization", "input scale B", weights="scale B")
def instance_normalization(op: Adjoint) -> Cotangents:
    """Y = Xhat scale + B per channel, the statistics over the places of each channel; Ulyanov et al. 2016."""
    b, rank, kind = op.b, op.rank("input"), op["input"].dtype
    dY, X = op.wide(op.dY), op.wide(op["input"])
    if op.wants("B"):
        yield "B", b.Cast(_sum_but_channels(op, dY, rank), to=kind)
    if not op.wants("input", "scale"):
        return
    axes = range(2, rank)
    centred = X - b.ReduceMean(X, b.ints(axes), keepdims=1)
    deviation = _inverse_deviation(op, centred, b.ints(axes))
    Xhat = centred * deviation
    if op.wants("scale"):
        yield "scale", b.Cast(_sum_but_channels(op, dY * Xhat, rank), to=kind)
    if op.wants("input"):
        dXhat = dY * _channels(op, op.wide(op["scale"]), rank)
        yield "input", b.Cast(_normalization_grad(op, dXhat, Xhat, deviation, axes, "input"), to=kind)


@rule("GroupNormalization", "X scale bias", weights="scale bias", since=21)
def group_normalization(op: Adjoint) -> Cotangents:
    """Y = Xhat scale + bias per channel, the statistics over groups of channels; Wu and He 2018.

    The statistics are taken in float32 at least; X is seen as [N, groups, -1].
    """
    b, X, rank = op.b, op["X"], op.rank("X")
    dY = op.wide(op.dY)
    if op.wants("bias"):
        yield "bias", b.Cast(_sum_but_channels(op, dY, rank), to=op["bias"].dtype)
    if not op.wants("X", "scale"):
        return
    groups, wide = b.ints([0, op.attr("num_groups"), -1]), b.shape_of(X)
    flat = b.Reshape(op.wide(X), groups)
    centred = flat - b.ReduceMean(flat, b.ints([2]), keepdims=1)
    deviation = _inverse_deviation(op, centred, b.ints([2]))
    Xhat = centred * deviation
    if op.wants("scale"):
        full = b.op("Reshape", Xhat, wide, shape=X.shape)
        yield "scale", b.Cast(_sum_but_channels(op, dY * full, rank), to=op["scale"].dtype)
    if op.wants("X"):
        dXhat = b.Reshape(dY * _channels(op, op.wide(op["scale"]), rank), groups)
        operands = dXhat, Xhat, deviation, b.ints([2])
        dX = b.op("NormalizationGrad", *operands, domain="gradcut", dtype=Xhat.dtype)
        yield "X", b.Cast(b.op("Reshape", dX, wide, shape=X.shape), to=X.dtype)


@rule("RMSNormalization", "X scale", weights="scale", since=23)
def rms_normalization(op: Adjoint) -> Cotangents:
    """Y = Xhat scale, Xhat = X / sqrt(mean X^2 + eps) over the axes from `axis` on; Zhang and Sennrich 2019.

    dX = (dXhat - Xhat mean(dXhat Xhat)) / sqrt(mean X^2 + eps).
    """
    b, rank = op.b, op.rank("X")
    X, dY = op.wide(op["X"]), op.wide(op.dY)
    axes = b.ints(range(op.attr("axis", -1) % rank, rank))
    deviation = _inverse_deviation(op, X, axes)
    Xhat = X * deviation
    if op.wants("scale"):
        yield "scale", b.Cast(b.sum_to(dY * Xhat, op["scale"]), to=op["scale"].dtype)
    if op.wants("X"):
        dXhat = dY * op.wide(op["scale"])
        projection = b.ReduceMean(dXhat * Xhat, axes, keepdims=1)
        dX = (dXhat - Xhat * projection) * deviation
        yield "X", b.Cast(dX, to=op["X"].dtype)


def _sum_but_channels(op: Adjoint, value: ir.Value, rank: int) -> ir.Value:
    return op.b.ReduceSum(value, op.b.ints([0, *range(2, rank)]), keepdims=0)
