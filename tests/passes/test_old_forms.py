"""Operators as files of opsets 7 to 20 write them: converted, they give what ONNX Runtime gives of the file itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import gradcut
from gradcut.runtime.check import check_gradients, require
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, distinct, ints, normal, positive

NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Old:
    """One node, as opsets `first` to `last` have it; integer operands are initializers."""

    op: str
    first: int
    last: int
    operands: tuple[Array, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    name: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.first}-{self.name}"

    def model(self, opset: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
        names = [f"x{index}" for index in range(len(self.operands))]
        feeds = {n: a for n, a in zip(names, self.operands, strict=True) if a.dtype.kind == "f"}
        given = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
        inits = [numpy_helper.from_array(a, n) for n, a in zip(names, self.operands, strict=True) if n not in feeds]
        made = [onnx.ValueInfoProto(name=f"y{index}") for index in range(self.outputs)]
        node = helper.make_node(self.op, names, [value.name for value in made], "node", **self.attributes)
        graph = helper.make_graph([node], "old", given, made, inits)
        imports = [helper.make_opsetid("", opset)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8)), feeds


def old(op: str, first: int, last: int, *operands: Array, name: str = "", outputs: int = 1, **attributes: Any) -> Old:
    return Old(op, first, last, tuple(map(np.asarray, operands)), attributes, outputs, name)


def forms() -> Iterator[Old]:
    yield from _indexed()
    yield from _moved()
    yield from _reduced()
    yield from _flattened()
    yield from _bounded()


def _indexed() -> Iterator[Old]:
    data, where, updates = normal(3, 4), ints(0, 1, 2, 2, 0, 1).reshape(2, 3), normal(2, 3)
    yield old("Scatter", 9, 10, data, where, updates, name="rows")
    yield old("Scatter", 9, 10, data, ints(3, 0).reshape(2, 1), normal(2, 1), axis=1, name="columns")
    yield old("Scatter", 9, 10, data, ints(3, 0).reshape(2, 1), normal(2, 1), axis=-1, name="last")
    yield old("ScatterElements", 11, 20, data, where - 3, updates)
    yield old("ScatterND", 11, 20, data, ints(2, 0).reshape(2, 1), normal(2, 4))
    yield old("Gather", 7, 20, data, where, axis=1)
    yield old("GatherElements", 11, 20, data, where, axis=1)
    yield old("GatherND", 11, 20, data, ints(2, 1, 0, 0).reshape(2, 2))
    yield old("OneHot", 9, 20, ints(0, 2, -1, 9), np.array(3), np.float32([0.5, 2]))
    yield old("Compress", 9, 20, data, np.array([True, False, True]), axis=1)
    yield old("ReverseSequence", 10, 20, data, ints(1, 3, 2, 2))
    yield old("TopK", 7, 9, distinct(3, 4), k=2, outputs=2)
    yield old("TopK", 7, 9, distinct(3, 4), k=2, axis=0, outputs=2, name="axis")
    yield old("TopK", 10, 20, distinct(3, 4), ints(2), outputs=2)
    yield old("TopK", 11, 20, distinct(3, 4), ints(2), largest=0, sorted=0, outputs=2, name="least")


def _moved() -> Iterator[Old]:
    x = normal(2, 1, 3, 4)
    yield old("Slice", 7, 9, x, starts=[1, 0], ends=[3, 99], axes=[2, 3])
    yield old("Slice", 7, 9, x, starts=[0, 0, -2], ends=[2, 1, -1], name="no_axes")
    yield old("Slice", 10, 20, x, ints(3, -1), ints(0, -9), ints(3, 2), ints(-2, -1))
    for mode in ("constant", "edge", "reflect"):
        pads, value = [0, 0, 1, 2, 0, 0, 2, 1], {"value": 0.5} if mode == "constant" else {}
        yield old("Pad", 7, 10, x, pads=pads, mode=mode, name=mode, **value)
        yield old("Pad", 11, 20, x, ints(*pads), mode=mode, name=mode)
    yield old("Pad", 7, 10, x, pads=[0, 0, -1, 2, 0, 0, 0, -1], name="cut")
    yield old("Split", 7, 12, x, axis=3, outputs=2)
    yield old("Split", 7, 12, x, axis=-1, split=[1, 3], outputs=2, name="sizes")
    yield old("Split", 13, 17, x, axis=2, outputs=3)
    yield old("Split", 13, 20, x, ints(3, 1), axis=3, outputs=2, name="sizes")
    yield old("Split", 18, 20, x, axis=2, num_outputs=2, outputs=2, name="uneven")
    yield old("Squeeze", 7, 12, x, axes=[1])
    yield old("Squeeze", 11, 12, x, axes=[-3], name="negative")
    yield old("Squeeze", 7, 20, x, name="all")
    yield old("Unsqueeze", 7, 12, x, axes=[0, 3])
    yield old("Unsqueeze", 11, 12, x, axes=[-1], name="negative")
    yield old("Reshape", 7, 20, x, ints(0, -1))
    yield old("Expand", 8, 20, x, ints(2, 1, 1))
    yield old("Tile", 7, 20, x, ints(1, 2, 1, 3))
    yield old("Concat", 7, 20, x, normal(2, 1, 3, 1), axis=3)
    yield old("Concat", 11, 20, x, normal(2, 1, 3, 1), axis=-1, name="negative")
    yield old("DepthToSpace", 7, 20, normal(1, 8, 2, 3), blocksize=2)
    yield old("DepthToSpace", 11, 20, normal(1, 8, 2, 3), blocksize=2, mode="CRD", name="CRD")
    yield old("SpaceToDepth", 7, 20, normal(1, 2, 4, 2), blocksize=2)
    yield old("Flatten", 7, 20, x, axis=2)
    yield old("Flatten", 11, 20, x, axis=-1, name="negative")
    yield old("Transpose", 7, 20, x, perm=[3, 1, 0, 2])


def _reduced() -> Iterator[Old]:
    for name in ("Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp"):
        op, last = f"Reduce{name}", 12 if name == "Sum" else 17
        x = distinct(2, 3, 4) if name in ("Max", "Min") else positive(2, 3, 4)
        yield old(op, 7, last, x, axes=[0, 2], keepdims=0)
        yield old(op, 7, last, x, keepdims=0, name="all")
        yield old(op, 11, last, x, axes=[-1], name="negative")
        yield old(op, last + 1, 20, x, ints(-1, 0), keepdims=0, name="operand")
        yield old(op, last + 1, 20, x, NONE, noop_with_empty_axes=1, name="none")
    yield old("CumSum", 11, 20, normal(2, 3), np.array(1), reverse=1)


def _flattened() -> Iterator[Old]:
    for op in ("Softmax", "LogSoftmax"):
        yield old(op, 7, 12, normal(2, 3, 4))
        yield old(op, 7, 12, normal(2, 3, 4), axis=0, name="all")
        yield old(op, 7, 12, normal(2, 3, 4), axis=2, name="last")
        yield old(op, 11, 12, normal(2, 3, 4), axis=-2, name="negative")
        yield old(op, 13, 20, normal(2, 3, 4), axis=1)


def _bounded() -> Iterator[Old]:
    x = distinct(3, 4)
    yield old("Clip", 7, 10, x, min=-0.4, max=0.5)
    yield old("Clip", 7, 10, x, max=0.5, name="above")
    yield old("Clip", 7, 10, x, name="none")
    yield old("Clip", 11, 20, x, np.float32(-0.4), np.float32(0.5))
    for op in ("Max", "Min"):
        yield old(op, 8, 20, x, x[0] + np.float32(0.03), x[:, :1] - np.float32(0.04))
    yield old("Sum", 8, 20, x, x[0], x[:, :1])
    yield old("Mean", 8, 20, x, x[0], x[:, :1])
    yield old("PRelu", 7, 20, x, positive(1, 4))
    yield old("Pow", 7, 20, positive(2, 3), normal(3))
    yield old("Mod", 10, 20, np.float32([[3.5, -2.2]]), np.float32([[0.8], [1.5]]), fmod=1)
    for op in ("Elu", "Selu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu", "Shrink", "Softplus", "Softsign"):
        first = {"ThresholdedRelu": 10, "Shrink": 9}.get(op, 7)
        yield old(op, first, 20, x)


@pytest.mark.parametrize("form", list(forms()), ids=str)
def test_an_old_form_converts_right(form: Old) -> None:
    for opset in sorted({form.first, (form.first + form.last) // 2, form.last}):
        model, feeds = form.model(opset)
        expected = runtime(model)(feeds)
        floats = [f"y{index}" for index, array in enumerate(expected) if array.dtype.kind == "f"]
        for name, mine in zip(floats, _forward(model, list(feeds), floats, feeds), strict=True):
            np.testing.assert_allclose(mine, expected[int(name[1:])], rtol=1e-6, atol=1e-6, err_msg=f"opset {opset}")
        require(check_gradients(model, feeds, list(feeds), floats, directions=2))


def _forward(model: onnx.ModelProto, wrt: list[str], of: list[str], feeds: dict[str, Array]) -> list[Array]:
    proto = gradcut.vjp(model, wrt, of)
    shapes = dict(zip((o.name for o in model.graph.output), runtime(model)(feeds), strict=True))
    cotangents = {f"{name}_grad": np.ones_like(shapes[name]) for name in of}
    return runtime(proto)({**feeds, **cotangents})[: len(of)]
