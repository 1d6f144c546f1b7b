"""What exporters do to weights that are equal: one that stands for several, and a tied one that is written twice."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.parameters import Decision, constant_tensor
from gradcut.spec import reading_scopes

Array = np.ndarray[Any, Any]
#: Fewer numbers are alike by chance.
_SMALLEST = 64


def merged(graph: ir.Graph, names: Collection[str]) -> dict[str, int]:
    """Parameters that stand for several, with how many modules read each.

    torch's exporter makes one of equal weights, as those of fresh norms are; no tied weight is of one number alone.
    """
    several = {name: len(scopes) for name, scopes in reading_scopes(graph, names).items() if len(scopes) > 1}
    values = {name: graph.initializers[name] for name in several if name in graph.initializers}
    return {name: several[name] for name, value in values.items() if _is_uniform(_array(value))}


def twins(decisions: Iterable[Decision]) -> list[tuple[str, str]]:
    """Matrices that the file holds twice, as they are or transposed; vectors of fresh modules are alike."""
    seen: dict[tuple[object, ...], list[tuple[str, Array]]] = {}
    found = []
    for decision in decisions:
        if len(decision.shape) != 2 or decision.size < _SMALLEST or not _stands_for_weight(decision):
            continue
        array = _array(decision.value)
        alike = seen.setdefault(_print(array), [])
        twin = next((name for name, other in alike if _are_equal(other, array)), None)
        if twin is None:
            alike.append((decision.name, array))
        elif not _is_uniform(array):
            found.append((twin, decision.name))
    return found


def _stands_for_weight(decision: Decision) -> bool:
    return decision.kind == "parameter" or decision.overlooked


def _print(array: Array) -> tuple[object, ...]:
    """What a matrix and its transpose have in common, for next to nothing."""
    return (array.dtype, *sorted(array.shape), array[0, 0].tobytes(), array[-1, -1].tobytes())


def _are_equal(a: Array, b: Array) -> bool:
    return np.array_equal(a, b) or np.array_equal(a.T, b)


def _array(value: ir.Value) -> Array:
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor.numpy()


def _is_uniform(array: Array) -> bool:
    return bool(array.size) and bool((array == array.flat[0]).all())
