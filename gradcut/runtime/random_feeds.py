"""Made-up inputs for a model: of the right dtype and shape, with indices that lie in the table they look up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.dims import FLOATS, Dim
from gradcut.errors import FeedError

Array = np.ndarray[Any, Any]
_MOVES = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand", "Slice"})
_MOVES |= {"Concat", "Where"}
#: Operand that holds indices, and the axis of operand 0 (by attribute, else this) that they count along.
_INDEXED = {"Gather": (1, 0), "GatherElements": (1, 0), "ScatterElements": (1, 0)}
_EDGE = 64
_LABELS = frozenset({"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"})


def random_feeds(model: ir.Model, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """One array per graph input, in [-2, 2] and mostly near 0 for floats.

    Integers are indices below the smallest table they reach, and ones where no table is found (a mask, a length).

    Args:
        sizes: a number for each symbolic dimension; where it is not given, 64 for height and width of a batch of
            images, so that what strides and pools leave is not empty, and 2 for any other.

    Raises:
        FeedError: an input without a shape, or of a type that no number has.
    """
    rng = np.random.default_rng(seed)
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    edges = {str(dim.value): _EDGE for value in inputs for dim in _open_edges(value) if dim.value}
    known = {**edges, **(sizes or {})}
    return {value.name or "": _random(value, rng, known) for value in inputs}


def _open_edges(value: ir.Value) -> list[ir.SymbolicDim]:
    """Height and width where [N, C, H, W] leaves them open."""
    if value.dtype not in FLOATS or value.shape is None or len(value.shape) != 4:
        return []
    return [dim for dim in value.shape[2:] if not isinstance(dim, int)]


def _random(value: ir.Value, rng: np.random.Generator, sizes: Mapping[str, int]) -> Array:
    if value.shape is None or value.dtype is None:
        raise FeedError(f"input {value.name!r} has no known shape; give the arrays to check with")
    edges = _open_edges(value)
    shape = [
        _EDGE if any(dim is edge and edge.value is None for edge in edges) else _number(dim, sizes)
        for dim in value.shape
    ]
    if value.dtype in FLOATS:
        return np.clip(rng.standard_normal(shape), -2.0, 2.0).astype(value.dtype.numpy())
    if value.dtype == ir.DataType.BOOL:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if not value.dtype.is_integer():
        raise FeedError(f"input {value.name!r} is {value.dtype.name}; give the arrays to check with")
    limits = list(_limits(value, sizes))
    if not limits:
        return np.ones(shape, value.dtype.numpy())
    return rng.integers(0, max(1, min(limits)), shape).astype(value.dtype.numpy())


def _number(dim: Dim, sizes: Mapping[str, int]) -> int:
    return dim if isinstance(dim, int) else sizes.get(dim.value or "", 2)


def _limits(value: ir.Value, sizes: Mapping[str, int]) -> Iterator[int]:
    """The sizes of the tables in which a value, moved or cast, is looked up."""
    queue, seen = deque([value]), {value}
    while queue:
        for node, index in queue.popleft().uses():
            limit = _limit(node, index, sizes)
            if limit is not None:
                yield limit
            elif node.domain == "" and node.op_type in _MOVES:
                new = [output for output in node.outputs if output not in seen]
                seen.update(new)
                queue.extend(new)


def _range(value: ir.Value | None) -> int | None:
    """The classes of a one-hot that is written out: the numbers 0, 1, 2, ... in some shape."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size < 2 or not tensor.dtype.is_integer():
        return None
    numbers = tensor.numpy().reshape(-1)
    return len(numbers) if np.array_equal(numbers, np.arange(len(numbers))) else None


def _limit(node: ir.Node, index: int, sizes: Mapping[str, int]) -> int | None:
    if node.domain or not node.inputs or node.inputs[0] is None:
        return None
    shape = node.inputs[0].shape
    if node.op_type in _LABELS and index == 1 and shape is not None:
        return _number(shape[1], sizes)
    if node.op_type == "OneHot" and index == 0:
        depth = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
        return None if depth is None else int(depth.numpy().reshape(-1)[0])
    if node.op_type == "Equal":
        return _range(node.inputs[1 - index])
    operand, default = _INDEXED.get(node.op_type, (-1, 0))
    if operand != index or shape is None:
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else default
    return _number(shape[axis], sizes)
