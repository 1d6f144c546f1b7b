"""``python -m tests.benchmarks.lowerings``: every lowering that applies to a shape, as x of torch's own kernel.

One thread on each side, its own processor time, medians of rounds in which the sides alternate. ``*`` marks the one
that `choose` takes; the third column is that one's time over the fastest's. The constants of `gradcut.lowering.cost`
come from this table.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from gradcut.dialect import DOMAIN, expand
from gradcut.lowering import LOWERINGS, Call, Lowering, choose
from gradcut.ops import Builder, Names

Array = np.ndarray[Any, Any]
PAUSE = 0.002
#: Operands that are initializers in every case.
SIZES = frozenset({"shape"})


@dataclass(frozen=True)
class Case:
    """One call of an adjoint op, and what torch has for it.

    Attributes:
        operands: by name, in order.
        constants: the operands that are initializers.
        batched: the operands, and ``result``, whose first dimension is symbolic.
        torch: computes the expected result from the operands.
    """

    op: str
    title: str
    operands: Mapping[str, Array]
    attributes: Mapping[str, Any]
    shape: tuple[int, ...]
    torch: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    constants: frozenset[str] = SIZES
    batched: frozenset[str] = frozenset({"dY", "result"})

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in self.operands.items()}

    def static(self) -> Case:
        """The same with no symbolic dimension."""
        return replace(self, batched=frozenset())

    def call(self) -> Call:
        """The call in a graph of its own."""
        values = self._values()
        result = self._typed("result", ir.DataType.FLOAT, self.shape)
        attributes = ir.convenience.convert_attributes(dict(self.attributes))
        node = ir.Node(DOMAIN, self.op, values, attributes=attributes, outputs=[result])
        self._graph(values, [node], result)
        return Call(node)

    def model(self, lowering: Lowering | None) -> onnx.ModelProto:
        """The call lowered; None: by its reference."""
        call = self.call()
        b = Builder(Names(self.operands))
        with b.arithmetic():
            result = expand(b, call.node) if lowering is None else lowering.build(b, call)
        values = {value.name: value for value in self._values()}
        for node in b.nodes:
            for index, operand in enumerate(node.inputs):
                if operand is not None and operand.producer() is None:
                    node.replace_input_with(index, values[operand.name])
        result.name, result.shape = "result", call.output.shape
        graph = self._graph([value for value in values.values() if value.uses()], b.nodes, result)
        return ir.to_proto(ir.Model(graph, ir_version=10))

    def applicable(self) -> list[Lowering]:
        call = self.call()
        return [one for one in LOWERINGS.get(self.op, ()) if math.isfinite(one.cost(call))]

    def _graph(self, values: Sequence[ir.Value], nodes: Sequence[ir.Node], result: ir.Value) -> ir.Graph:
        return ir.Graph(
            [value for value in values if value.name not in self.constants],
            [result],
            nodes=nodes,
            initializers=[value for value in values if value.name in self.constants],
            opset_imports={"": 21},
            name=self.op,
        )

    def _values(self) -> list[ir.Value]:
        values = []
        for name, array in self.operands.items():
            value = self._typed(name, ir.DataType.from_numpy(array.dtype), array.shape)
            value.const_value = ir.tensor(array, name=name) if name in self.constants else None
            values.append(value)
        return values

    def _typed(self, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        dims: list[int | str] = [*shape]
        if name in self.batched:
            dims[0] = "N"
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    taken = session(model)
    result: Array = taken.run(None, {value.name: feeds[value.name] for value in taken.get_inputs()})[0]
    return result


# --- cases -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """A convolution of square images."""

    n: int
    c: int
    m: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = (3, 3)
    stride: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    group: int = 1

    def __str__(self) -> str:
        by = lambda sizes: "x".join(map(str, sizes))
        extra = f" s{by(self.stride)}" if set(self.stride) != {1} else ""
        extra += f" d{by(self.dilation)}" if set(self.dilation) != {1} else ""
        extra += f" g{self.group}" if self.group != 1 else ""
        return f"{self.n},{self.c}->{self.m} {by(self.size)} k{by(self.kernel)}{extra}"

    def outputs(self) -> tuple[int, ...]:
        axes = zip(self.size, self.kernel, self.stride, self.pads, self.dilation, strict=True)
        return tuple((h + 2 * p - (k - 1) * d - 1) // s + 1 for h, k, s, p, d in axes)

    def attributes(self) -> dict[str, Any]:
        spatial = {"strides": self.stride, "pads": self.pads * 2, "dilations": self.dilation}
        return {**{name: list(value) for name, value in spatial.items()}, "group": self.group}

    def input_grad(self, frozen: bool = False) -> Case:
        shape = (self.n, self.c, *self.size)
        operands = {"dY": self._dY(), "W": normal(*self._weight()), "shape": np.array(shape, np.int64)}
        title = f"dX {self}{' frozen' if frozen else ''}"
        constants = SIZES | {"W"} if frozen else SIZES
        return Case("ConvInputGrad", title, operands, self.attributes(), shape, self._torch(0), constants)

    def weight_grad(self) -> Case:
        shape, X = self._weight(), normal(self.n, self.c, *self.size)
        operands = {"dY": self._dY(), "X": X, "shape": np.array(shape, np.int64)}
        batched = frozenset({"dY", "X"})
        title = f"dW {self}"
        return Case("ConvWeightGrad", title, operands, self.attributes(), shape, self._torch(1), batched=batched)

    def _weight(self) -> tuple[int, ...]:
        return (self.m, self.c // self.group, *self.kernel)

    def _dY(self) -> Array:
        return normal(self.n, self.m, *self.outputs())

    def _torch(self, which: int) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
        shapes = {"X": (self.n, self.c, *self.size), "W": self._weight()}
        mask = [index == which for index in range(3)]
        zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}

        def compute(given: Mapping[str, torch.Tensor]) -> torch.Tensor:
            X, W = (given.get(name, zeros[name]) for name in ("X", "W"))
            spatial = (self.stride, self.pads, self.dilation)
            rest = (False, [0] * len(self.size), self.group, mask)
            result: torch.Tensor = torch.ops.aten.convolution_backward(given["dY"], X, W, None, *spatial, *rest)[which]
            return result

        return compute


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def max_pool(n: int, c: int, size: int, kernel: int, stride: int, pad: int = 0) -> Case:
    """Two-dimensional; the operands are those of the forward's real indices."""
    shape = (n, c, size, size)
    X = normal(*shape)
    window = ([kernel] * 2, [stride] * 2, [pad] * 2)
    Y, local = torch.nn.functional.max_pool2d(torch.from_numpy(X), *window, return_indices=True)
    offsets = torch.arange(n * c).reshape(n, c, 1, 1) * size * size
    operands = {"dY": normal(*Y.shape), "Indices": (local + offsets).numpy(), "shape": np.array(shape, np.int64)}
    grad = torch.ops.aten.max_pool2d_with_indices_backward
    compute = lambda given: grad(given["dY"], torch.from_numpy(X), *window, [1, 1], False, local)
    title = f"MaxPool {n},{c} {size} k{kernel} s{stride}"
    batched = frozenset({"dY", "Indices", "result"})
    attributes = _pool_attributes(kernel, stride, pad)
    return Case("MaxPoolGrad", title, operands, attributes, shape, compute, batched=batched)


def average_pool(n: int, c: int, size: int, kernel: int, stride: int, pad: int = 0) -> Case:
    """Two-dimensional; the cotangent counts as divided already."""
    shape = (n, c, size, size)
    outputs = (size + 2 * pad - kernel) // stride + 1
    operands = {"dY": normal(n, c, outputs, outputs), "shape": np.array(shape, np.int64)}
    window = ([kernel] * 2, [stride] * 2, [pad] * 2, False, True, 1)
    compute = lambda given: torch.ops.aten.avg_pool2d_backward(given["dY"], torch.zeros(shape), *window)
    title = f"AveragePool {n},{c} {size} k{kernel} s{stride}"
    return Case("AveragePoolGrad", title, operands, _pool_attributes(kernel, stride, pad), shape, compute)


def _pool_attributes(kernel: int, stride: int, pad: int) -> dict[str, Any]:
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "dilations": [1, 1]}


def gelu(*shape: int) -> Case:
    """The exact form."""
    operands = {"dY": normal(*shape), "X": 3 * normal(*shape)}
    grad = torch.ops.aten.gelu_backward
    compute = lambda given: grad(given["dY"], given["X"])
    return Case("GeluGrad", f"Gelu {shape}", operands, {}, shape, compute, batched=frozenset({"dY", "X", "result"}))


def embedding(rows: int, columns: int, shape: tuple[int, ...]) -> Case:
    """Rows of a table, by random indices of a shape."""
    indices = np.random.default_rng(rows).integers(0, rows, shape)
    operands = {"dY": normal(*shape, columns), "indices": indices, "shape": np.array([rows, columns], np.int64)}
    grad = torch.ops.aten.embedding_dense_backward
    compute = lambda given: grad(given["dY"], given["indices"], rows, -1, False)
    batched = frozenset({"dY", "indices"})
    return Case(
        "GatherGrad",
        f"Gather {rows}x{columns} {shape}",
        operands,
        {"axis": 0},
        (rows, columns),
        compute,
        batched=batched,
    )


CONVOLUTIONS = [
    Conv(8, 64, 64, (56, 56)),
    Conv(8, 64, 64, (16, 16)),
    Conv(32, 64, 64, (16, 16)),
    Conv(8, 128, 128, (28, 28)),
    Conv(8, 128, 128, (8, 8)),
    Conv(8, 256, 256, (14, 14)),
    Conv(8, 256, 256, (4, 4)),
    Conv(8, 512, 512, (7, 7)),
    Conv(8, 512, 512, (2, 2)),
    Conv(8, 64, 128, (16, 16), stride=(2, 2)),
    Conv(8, 128, 256, (28, 28), stride=(2, 2)),
    Conv(8, 256, 512, (4, 4), stride=(2, 2)),
    Conv(8, 64, 128, (16, 16), (1, 1), (2, 2), (0, 0)),
    Conv(8, 256, 128, (28, 28), (1, 1), pads=(0, 0)),
    Conv(8, 512, 2048, (7, 7), (1, 1), pads=(0, 0)),
    Conv(8, 3, 64, (64, 64), (7, 7), (2, 2), (3, 3)),
    Conv(32, 1, 32, (8, 8)),
    Conv(32, 32, 64, (8, 8)),
    Conv(32, 64, 64, (4, 4)),
    Conv(8, 8, 8, (8, 8)),
    Conv(8, 64, 64, (56, 56), group=64),
    Conv(8, 256, 256, (14, 14), group=256),
    Conv(8, 64, 64, (56, 56), stride=(2, 2), group=64),
    Conv(8, 128, 128, (28, 28), group=32),
]


def cases() -> list[Case]:
    """What the table shows."""
    found = [one.weight_grad() for one in CONVOLUTIONS]
    found += [one.input_grad() for one in CONVOLUTIONS]
    found += [one.input_grad(frozen=True) for one in CONVOLUTIONS]
    found += [max_pool(8, 64, 32, 2, 2), max_pool(8, 64, 32, 3, 2, 1)]
    found += [average_pool(8, 64, 32, 2, 2), average_pool(8, 64, 32, 3, 2, 1), average_pool(8, 64, 35, 3, 1, 1)]
    return [
        *found,
        gelu(8, 128, 1024),
        embedding(30522, 256, (8, 32)),
        embedding(1000, 128, (8, 32)),
        embedding(512, 256, (8, 128)),
        embedding(30522, 256, (8, 128)),
        embedding(1000, 128, (8, 128)),
        embedding(2, 256, (8, 128)),
    ]


# --- the table -------------------------------------------------------------------------------------------------


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Median seconds of torch, of the reference and of each lowering."""
    given = case.tensors()
    sides: dict[str, Callable[[], object]] = {"torch": lambda: case.torch(given)}
    for one in (None, *case.applicable()):
        taken = session(case.model(one))
        feeds = {v.name: onnxruntime.OrtValue.ortvalue_from_numpy(case.operands[v.name]) for v in taken.get_inputs()}
        sides[one.name if one else "reference"] = _runner(taken, feeds)
    taken_times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(PAUSE)
            side()
            for _ in range(3):
                start = time.thread_time()
                side()
                taken_times[name].append(time.thread_time() - start)
    return {name: statistics.median(times) for name, times in taken_times.items()}


def _runner(taken: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> Callable[[], object]:
    names = [output.name for output in taken.get_outputs()]
    return lambda: taken.run_with_ort_values(names, feeds)


def row(case: Case, times: Mapping[str, float], chosen: str) -> str:
    base = times["torch"]
    mine = {name: seconds for name, seconds in times.items() if name != "torch"}
    ratios = "  ".join(f"{name}{'*' * (name == chosen)} {seconds / base:.2f}" for name, seconds in mine.items())
    over = times[chosen] / min(mine.values())
    return f"{case.title:<44} {base * 1e6:>8.0f} us  {over:>5.2f}  {ratios}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose title contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':<44} {'torch':>11}  chosen/best  lowerings as x of torch")
    for case in cases():
        if options.only in case.title:
            print(row(case, measure(case, options.rounds), choose(case.call()).name), flush=True)


if __name__ == "__main__":
    main()
