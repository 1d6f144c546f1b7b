"""Loop and Scan for onnx's reference evaluator, and marks that hold what they held before.

Onnx's Loop takes an empty condition for false, and joins what it should stack; its Scan has no axes or directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, TypeProto
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_loop import Loop as PlainLoop

from gradcut.dialect import DOMAIN, MARK

Array = np.ndarray[Any, Any]
Context = Mapping[str, Array] | None
_UNTOLD = (TensorProto.UNDEFINED, TensorProto.STRING)


class Loop(PlainLoop):
    """Until the trip count or the condition ends it; what is left out of both ends nothing."""

    def _run(
        self, M: Array | None, cond: Array | None, *states: Any, context: Context = None, **_: Any
    ) -> tuple[Any, ...]:
        body: Any = self.body  # type: ignore[attr-defined]
        names, carried = body.input_names, list(states)
        going, turn = cond is None or bool(cond.item()), 0
        stacks: list[list[Array]] = [[] for _ in body.output_names[1 + len(carried) :]]
        while going and (M is None or turn < M.item()):
            given = dict(zip(names, (np.array(turn, np.int64), np.array(going), *carried), strict=True))
            flag, *results = self._run_body({**(context or {}), **given})  # type: ignore[attr-defined]
            carried, slices = results[: len(carried)], results[len(carried) :]
            for stack, one in zip(stacks, slices, strict=True):
                stack.append(one)
            going, turn = bool(np.asarray(flag).item()), turn + 1
        types = list(body.output_types or [])[1 + len(carried) :]
        return (*carried, *(_stacked(stack, at, types) for at, stack in enumerate(stacks)))


class Scan(OpRun):
    """Along axes of the operands, and along axes of what is stacked, from either end."""

    def need_context(self) -> bool:
        return True

    def _run(
        self,
        *operands: Array,
        context: Context = None,
        num_scan_inputs: int = 0,
        scan_input_axes: Sequence[int] | None = None,
        scan_input_directions: Sequence[int] | None = None,
        scan_output_axes: Sequence[int] | None = None,
        scan_output_directions: Sequence[int] | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        body: Any = self.body  # type: ignore[attr-defined]
        first = len(operands) - num_scan_inputs
        states = list(operands[:first])
        ways = _ways(num_scan_inputs, scan_input_axes, scan_input_directions)
        sliced = [_along(x, *way) for x, way in zip(operands[first:], ways, strict=True)]
        stacks: list[list[Array]] = [[] for _ in body.output_names[first:]]
        for slices in zip(*sliced, strict=True):
            given = dict(zip(body.input_names, (*states, *slices), strict=True))
            results = self._run_body({**(context or {}), **given})  # type: ignore[attr-defined]
            states = list(results[:first])
            for stack, one in zip(stacks, results[first:], strict=True):
                stack.append(one)
        ways = _ways(len(stacks), scan_output_axes, scan_output_directions)
        types = list(body.output_types or [])[first:]
        joined = (_stacked(stack, at, types) for at, stack in enumerate(stacks))
        return (
            *states,
            *(np.moveaxis(x[::-1] if b else x, 0, axis) for x, (axis, b) in zip(joined, ways, strict=True)),
        )


def _ways(count: int, axes: Sequence[int] | None, directions: Sequence[int] | None) -> list[tuple[int, bool]]:
    return list(zip(axes or [0] * count, map(bool, directions or [0] * count), strict=True))


def _along(x: Array, axis: int, backwards: bool) -> Iterator[Array]:
    slices = np.moveaxis(x, axis, 0)
    return iter(slices[::-1] if backwards else slices)


def _stacked(slices: list[Array], at: int, types: Sequence[TypeProto]) -> Array:
    """No slices have the shape and dtype that the body says; a dimension that it does not say is 0."""
    if slices:
        return np.stack(slices)
    tensor = types[at].tensor_type if at < len(types) else TypeProto.Tensor()
    dtype = np.dtype(np.float32) if tensor.elem_type in _UNTOLD else tensor_dtype_to_np_dtype(tensor.elem_type)
    return np.zeros((0, *(dim.dim_value for dim in tensor.shape.dim)), dtype)


class Held:
    """What went through the marks of one run, in order; later runs get the same again.

    So a mark in the body of a Loop holds still in each turn, as long as the same turns are taken.
    """

    def __init__(self) -> None:
        self.values: list[Array] = []
        self._next: int | None = None

    def rewind(self) -> None:
        """From here on, hold."""
        self._next = 0

    def through(self, value: Array) -> Array:
        if self._next is None:
            self.values.append(np.array(value, copy=True))
            return value
        held = self.values[self._next] if self._next < len(self.values) else value
        self._next += 1
        return held

    def mark(self) -> type[OpRun]:
        """The operator of a mark."""
        tape = self

        class StopGradient(OpRun):
            op_domain = DOMAIN

            def _run(self, x: Array, **_: Any) -> tuple[Array]:
                return (tape.through(x),)

        assert StopGradient.__name__ == MARK
        return StopGradient


CONTROL: list[type[OpRun]] = [Loop, Scan]
