"""The places that windows read, as tables that become the indices of a Gather.

A table of one spatial axis is an array of places, [rows, columns], times the stride of that axis in the flattened
space; what lies outside is at least the size of that space, so that the sum over the axes, cut at that size, points
at one row of zeros that the caller appends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gradcut.lowering.registry import Call
from gradcut.ops import Builder

Table = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """How windows of `kernel` lie over `inputs` and make `outputs`; spatial sizes, one number an axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    dilations: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, call: Call, kernel: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]) -> Window:
        """From a call's strides, pads and dilations, or what ONNX takes for them."""
        rank = len(kernel)
        strides, dilations = (tuple(call.get(name) or [1] * rank) for name in ("strides", "dilations"))
        pads = tuple(call.get("pads") or [0] * 2 * rank)
        return cls(tuple(kernel), strides, pads[:rank], pads[rank:], dilations, tuple(inputs), tuple(outputs))

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def places(self) -> int:
        """Places of the input."""
        return math.prod(self.inputs)

    @property
    def count(self) -> int:
        """Windows, places of the output."""
        return math.prod(self.outputs)

    def reach(self, axis: int) -> int:
        """Places of the input from the first to behind the last that one window covers."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def leftover(self, axis: int) -> int:
        """Places at the end of the padded input that no window covers; negative where windows reach beyond it."""
        covered = (self.outputs[axis] - 1) * self.strides[axis] + self.reach(axis)
        return self.inputs[axis] + self.begins[axis] + self.ends[axis] - covered

    def is_pointwise(self) -> bool:
        """Whether each window is one place, in order, none left out."""
        return self.taps == 1 and self.inputs == self.outputs and not any(self.begins) and set(self.strides) == {1}

    def read(self, axis: int) -> Table:
        """[output, tap] -> the place of the input that it reads, or -1."""
        at = self._steps(self.outputs[axis], self.strides[axis])[:, None]
        places = at + self._steps(self.kernel[axis], self.dilations[axis]) - self.begins[axis]
        return np.where((places >= 0) & (places < self.inputs[axis]), places, -1)

    def written(self, axis: int) -> Table:
        """[input, tap] -> the output whose window reads this place with this tap, or -1."""
        at = np.arange(self.inputs[axis])[:, None] + self.begins[axis]
        offset = at - self._steps(self.kernel[axis], self.dilations[axis])
        output = offset // self.strides[axis]
        inside = (offset % self.strides[axis] == 0) & (output >= 0) & (output < self.outputs[axis])
        return np.where(inside, output, -1)

    @staticmethod
    def _steps(count: int, step: int) -> Table:
        return np.arange(count, dtype=np.int64) * step


def row_major(sizes: Sequence[int]) -> list[int]:
    """The stride of each axis in the flattened space."""
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def flat_index(b: Builder, tables: Sequence[Table], strides: Sequence[int], limit: int, first: int) -> ir.Value:
    """The sums of one entry of each table as an INT32 index, computed by nodes that the runtime folds.

    Tables are [rows, columns], -1 where nothing is; such sums become `limit`.

    Args:
        first: 0 for the index [*rows, *columns], 1 for [*columns, *rows].
    """
    rank = len(tables)
    parts = []
    for axis, (table, stride) in enumerate(zip(tables, strides, strict=True)):
        marked = np.where(table < 0, limit, table * stride).astype(np.int32)
        shape = [1] * (2 * rank)
        shape[axis + rank * first], shape[axis + rank * (1 - first)] = table.shape
        parts.append(b.constant((marked.T if first else marked).reshape(shape)))
    summed = functools.reduce(b.Add, parts)
    return b.Min(summed, b.constant(np.int32(limit)))


def compacted(reads: Table, tap: int, output: int) -> Table:
    """[place, tap] -> output or -1, without gaps, as [place, most]: `tap` * its tap + `output` * its output."""
    rows = [[tap * t + output * o for t, o in enumerate(row) if o >= 0] for row in reads.tolist()]
    most = max(1, *map(len, rows))
    return np.array([row + [-1] * (most - len(row)) for row in rows], dtype=np.int64)
