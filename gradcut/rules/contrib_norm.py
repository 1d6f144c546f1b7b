"""Norms of ONNX Runtime's own: with a residual connection before them, without a mean, behind embeddings.

Operands and attributes: docs/ContribOperators.md of onnxruntime. In half precision the backward computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint
from gradcut.rules.attention import of_rank
from gradcut.rules.compose import composed
from gradcut.rules.contrib import MICROSOFT

_SUM = "input skip bias"


@composed(
    "SkipLayerNormalization",
    "input skip gamma beta bias",
    operands="input skip gamma beta bias",
    weights="gamma beta bias",
    outputs=lambda node: {"1": _SUM, "2": _SUM, "3": _SUM},
    domain=MICROSOFT,
)
def skip_layer_normalization(op: Adjoint) -> Sequence[ir.Value | None]:
    """output = LayerNormalization(input + skip + bias); its statistics, and the sum itself."""
    total = _residual(op)
    beta = op.get("beta")
    scaling = [op.wide(op["gamma"]), *([] if beta is None else [op.wide(beta)])]
    y, mean, deviation = _layer_norm(op, op.wide(total), scaling, op.attr("epsilon", 1e-12))
    return [op.b.Cast(y, to=total.dtype), mean, deviation, total]


@composed(
    "SkipSimplifiedLayerNormalization",
    "input skip gamma bias",
    operands="input skip gamma bias",
    weights="gamma bias",
    outputs=lambda node: {"2": _SUM, "3": _SUM},
    domain=MICROSOFT,
)
def skip_simplified_layer_normalization(op: Adjoint) -> Sequence[ir.Value | None]:
    """output = SimplifiedLayerNormalization(input + skip + bias), 1 / the root mean square, and the sum itself."""
    total = _residual(op)
    y, deviation = _root_mean_square(op, op.wide(total), op.wide(op["gamma"]), [-1], op.attr("epsilon", 1e-12))
    return [op.b.Cast(y, to=total.dtype), None, deviation, total]


def _residual(op: Adjoint) -> ir.Value:
    bias, total = op.get("bias"), op.b.Add(op["input"], op["skip"])
    return total if bias is None else op.b.Add(total, bias)


def _layer_norm(
    op: Adjoint, x: ir.Value, scaling: list[ir.Value], epsilon: float
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """LayerNormalization over the last axis, its mean, and 1 / its deviation."""
    x = of_rank(op.b, x, 3)
    node = op.b.node("LayerNormalization", x, *scaling, axis=-1, epsilon=epsilon, outputs=3, shape=x.shape)
    for value in node.outputs[1:]:
        value.type, value.shape = x.type, ir.Shape([*(x.shape or ())[:-1], 1])
    return node.outputs[0], node.outputs[1], node.outputs[2]


def _root_mean_square(
    op: Adjoint, x: ir.Value, gamma: ir.Value, axes: Sequence[int], epsilon: float
) -> tuple[ir.Value, ir.Value]:
    """x gamma / rms(x) over some axes, and 1 / rms(x); Zhang and Sennrich 2019."""
    b = op.b
    deviation = b.Reciprocal(b.Sqrt(b.ReduceMean(x * x, b.ints(axes), keepdims=1) + epsilon))
    return x * deviation * gamma, deviation


@composed(
    "SimplifiedLayerNormalization", "X scale", operands="X scale", weights="scale", outputs=lambda node: {"1": "X"}
)
def simplified_layer_normalization(op: Adjoint) -> Sequence[ir.Value | None]:
    """Y = X scale / rms(X) over the axes from `axis` on, and 1 / rms(X). ONNX Runtime has it in ONNX's domain."""
    axis = op.attr("axis", -1)
    axes = [-1] if axis == -1 else range(axis % op.rank("X"), op.rank("X"))
    y, deviation = _root_mean_square(op, op.wide(op["X"]), op.wide(op["scale"]), list(axes), op.attr("epsilon", 1e-5))
    return [op.b.Cast(y, to=op["scale"].dtype), deviation]


_TABLES = "word_embedding position_embedding segment_embedding"


@composed(
    "EmbedLayerNormalization",
    f"{_TABLES} gamma beta",
    operands=f"input_ids segment_ids {_TABLES} gamma beta mask position_ids",
    weights=f"{_TABLES} gamma beta",
    outputs=lambda node: {"1": "", "2": _TABLES},
    domain=MICROSOFT,
)
def embed_layer_normalization(op: Adjoint) -> Sequence[ir.Value | None]:
    """output = LayerNormalization(words + positions + segments), and the sum itself, as BERT begins."""
    b, ids = op.b, of_rank(op.b, op["input_ids"], 2)
    total = _looked_up(op, "word_embedding", ids) + _looked_up(op, "position_embedding", _positions(op, ids))
    segments = op.get("segment_ids")
    if segments is not None and op.get("segment_embedding") is not None:
        total = total + _looked_up(op, "segment_embedding", of_rank(b, segments, 2))
    scaling = [op.wide(op["gamma"]), op.wide(op["beta"])]
    y, _, _ = _layer_norm(op, op.wide(total), scaling, op.attr("epsilon", 1e-12))
    return [b.Cast(y, to=total.dtype), None, total]


def _positions(op: Adjoint, ids: ir.Value) -> ir.Value:
    """0, 1, 2, ... for each row of the batch where nothing else is said, [1, sequence]."""
    b, given = op.b, op.get("position_ids")
    if given is not None:
        return of_rank(b, given, 2)
    length = ids.shape[1] if ids.shape is not None else None
    zero, one = (b.constant(n, ir.DataType.INT64) for n in (0, 1))
    end = b.op("Squeeze", b.dim(ids, 1), dtype=ir.DataType.INT64, shape=ir.Shape([]))
    row = b.op("Range", zero, end, one, dtype=ir.DataType.INT64, shape=ir.Shape([length]))
    return b.op("Unsqueeze", row, b.ints([0]), shape=ir.Shape([1, length]))


def _looked_up(op: Adjoint, name: str, ids: ir.Value) -> ir.Value:
    table = of_rank(op.b, op[name], 2)
    width = table.shape[1] if table.shape is not None else None
    return op.b.op("Gather", table, ids, axis=0, shape=ir.Shape([*(ids.shape or (None, None)), width]))
