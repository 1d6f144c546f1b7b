"""A sample: one operator with operands and attributes, and the models made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gradcut.rules import REGISTRY, Rule
from gradcut.runtime.widen import is_real

Array = np.ndarray[Any, Any]
_RNG = np.random.default_rng(20240607)
FORMS = ("static", "dynamic", "unknown")


def normal(*shape: int) -> Array:
    """Numbers on both sides of zero."""
    return _RNG.standard_normal(shape).astype(np.float32)


def away(*shape: int, low: float = 0.3, high: float = 2.0) -> Array:
    """Numbers of either sign that are not near zero."""
    return (positive(*shape, low=low, high=high) * _RNG.choice([-1.0, 1.0], shape)).astype(np.float32)


def positive(*shape: int, low: float = 0.3, high: float = 2.0) -> Array:
    return _RNG.uniform(low, high, shape).astype(np.float32)


def within(*shape: int, bound: float = 0.9) -> Array:
    return _RNG.uniform(-bound, bound, shape).astype(np.float32)


def distinct(*shape: int) -> Array:
    """Numbers no two of which are near each other, for maxima."""
    count = int(np.prod(shape))
    return (_RNG.permutation(count).reshape(shape) * 0.13 - 0.065 * count).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Sample:
    """One node.

    Attributes:
        operands: arrays in the operator's order, None for one that is left out.
        outputs: how many outputs the node has. blank: those of them that it leaves out.
        runtime: names of integer and boolean operands that are graph inputs; the others are initializers.
        constant: names of float operands that are initializers.
        known: names of operands whose shape stays known where the others' become symbolic.
        opset: the first opset at which this form exists.
        unwanted: operands by which nothing is to be differentiated here (a power of a negative number).
        needs_rank: the rule needs to know the rank of an operand, and refuses where it does not.
        dtypes: in which some program there is runs the operator.
    """

    op: str
    name: str
    operands: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    blank: tuple[int, ...] = ()
    runtime: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    opset: int = 21
    needs_rank: bool = False
    domain: str = ""
    dtypes: tuple[str, ...] = ("float16", "float64")

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    @property
    def rule(self) -> Rule:
        (rule,) = [r for r in REGISTRY if (r.domain, r.op_type) == (self.domain, self.op) and r.since <= self.opset]
        return rule

    def operand(self, index: int) -> str:
        """The operator's own name of an operand; one of many has its number behind it."""
        names = self.rule.operands
        return names[index] if len(self.operands) <= len(names) else f"{names[-1]}_{index}"

    @property
    def wanted(self) -> tuple[str, ...]:
        """The operands that want a gradient: floats that have a derivative."""
        names = []
        for index, array in enumerate(self.operands):
            name = self.rule.operands[min(index, len(self.rule.operands) - 1)]
            if array is not None and is_real(array) and name in self.rule.differentiable:
                names.append(self.operand(index))
        return tuple(name for name in names if name not in self.unwanted)

    def with_dtype(self, dtype: str) -> Sample:
        cast = lambda array: array.astype(dtype) if array is not None and is_real(array) else array
        return replace(self, operands=tuple(map(cast, self.operands)))


def sample(op: str, name: str, *operands: Array | None, **options: Any) -> Sample:
    """A sample; options that are none of its fields are attributes of the node."""
    own = {key: options.pop(key) for key in list(options) if key in Sample.__dataclass_fields__ and key != "op"}
    for key in ("runtime", "constant", "known", "unwanted", "dtypes"):
        if key in own:
            own[key] = tuple(own[key].split())
    arrays = tuple(a if a is None else np.asarray(a) for a in operands)
    return Sample(op, name, arrays, options, **own)


@dataclass(frozen=True)
class Built:
    """A model around a sample, its feeds, and the names of its float outputs."""

    model: onnx.ModelProto
    feeds: dict[str, Array]
    of: tuple[str, ...]


def build(sample: Sample, form: str = "static", opset: int = 21, *, fan_out: bool = False) -> Built:
    """The model of one node.

    Args:
        form: what is known of shapes: all, ranks alone, nothing.
        fan_out: every wanted operand and every output has a second use.
    """
    opset = max(opset, sample.opset)
    inputs, initializers, feeds, names = [], [], {}, []
    for index, array in enumerate(sample.operands):
        name = "" if array is None else sample.operand(index)
        names.append(name)
        if array is None:
            continue
        moving = is_real(array) and name not in sample.constant
        if moving or name in sample.runtime:
            shape = _shape(name, array, "static" if name in sample.known else form)
            inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape))
            feeds[name] = array
        else:
            initializers.append(numpy_helper.from_array(array, name))
    written = ["" if index in sample.blank else f"y{index}" for index in range(sample.outputs)]
    outputs = [name for name in written if name]
    node = helper.make_node(sample.op, names, written, "node", domain=sample.domain, **sample.attributes)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(sample.domain, 1)] if sample.domain else [])
    model, of = _model([node], inputs, initializers, outputs, opsets)
    if fan_out:
        twice = [helper.make_node("Neg", [name], [f"{name}_twice"], name) for name in (*sample.wanted, *of)]
        model, of = _model([node, *twice], inputs, initializers, [*outputs, *(n.output[0] for n in twice)], opsets)
    return Built(model, feeds, of)


def _shape(name: str, array: Array, form: str) -> Sequence[int | str] | None:
    if form == "unknown":
        return None
    return array.shape if form == "static" else [f"{name}_d{axis}" for axis in range(array.ndim)]


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    initializers: list[TensorProto],
    outputs: list[str],
    opsets: list[onnx.OperatorSetIdProto],
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A model whose outputs' types are inferred, and the outputs that are floats."""
    untyped = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "sample", inputs, untyped, initializers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    kinds = [value.type.tensor_type.elem_type for value in inputs]
    for output in inferred.graph.output:
        if not output.type.tensor_type.elem_type:  # an operator without inference: that of the first float operand
            output.type.tensor_type.elem_type = next((kind for kind in kinds if kind in floats), kinds[0])
    of = tuple(o.name for o in inferred.graph.output if o.type.tensor_type.elem_type in floats)
    return inferred, of
