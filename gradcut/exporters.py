"""What an exporter's optimizer destroyed, and the line that keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from gradcut.dims import is_float
from gradcut.parameters import KIND, constant_tensor
from gradcut.text import join_names

#: What a person with the torch module should call.
BETTER = 'gradcut.torch.export(model, args, "model.onnx")'
_ADVICE = f"export with {BETTER} to keep it trainable"
_FOLDED = "pkg.onnxscript.optimizer.folded_from"
#: torch's exporters call what they compute ``val_12``; the one before dynamo ``onnx::MatMul_12``.
_ANONYMOUS = re.compile(r"val_\d+|onnx::[A-Za-z]+_\d+")


def destroyed(graph: ir.Graph) -> Iterator[str]:
    """What an exporter's optimizer took away: weights without their name, BatchNormalization folded into Conv."""
    yield from nameless(graph)
    yield from folded(graph)


def nameless(graph: ir.Graph) -> Iterator[str]:
    """Weights under a number in place of a name, in a sentence."""
    found = [f"{name}{_origin(value)}" for name, value in _weights(graph).items() if _ANONYMOUS.fullmatch(name)]
    if found:
        plural = "weight has lost its name" if len(found) == 1 else "weights have lost their names"
        yield f"{len(found)} {plural} to the exporter's optimizer ({join_names(found, 3)}); {_ADVICE}"


def folded(graph: ir.Graph) -> Iterator[str]:
    """Norms that are part of a Conv now, in a sentence."""
    known = any(KIND in value.metadata_props for value in graph.initializers.values())
    kernels = [node.inputs[1] for node in graph if _holds_norm(node, known)]
    found = [kernel.name or "" for kernel in kernels if kernel is not None]
    if found:
        yield f"{len(found)} BatchNormalization seem folded into Conv ({join_names(found, 3)}); {_ADVICE}"


def _holds_norm(node: ir.Node, known: bool) -> bool:
    """Whether an exporter computed kernel and bias: it does so where it folds a norm.

    Args:
        known: the file says of its initializers what they are.
    """
    operands = [value for value in node.inputs[1:3] if value is not None and value.is_initializer()]
    if node.op_type not in ("Conv", "ConvTranspose") or len(operands) != 2:
        return False
    return all(not _says(one) if known else (one.name or "").startswith("onnx::") for one in operands)


def _weights(graph: ir.Graph) -> dict[str, ir.Value]:
    return {name: value for name, value in graph.initializers.items() if is_float(value) and _is_weight_shaped(value)}


def _is_weight_shaped(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and len(tensor.shape) >= 1 and tensor.size > 1


def _says(value: ir.Value) -> bool:
    return KIND in value.metadata_props


def _origin(value: ir.Value) -> str:
    """The first name that onnxscript's optimizer says it folded, as `` was NAME``."""
    found = re.search(r"'([^']+)'", value.metadata_props.get(_FOLDED, ""))
    return f" was {found.group(1)}" if found else ""
