"""What is a parameter, and why.

1. Where any initializer says what it is (``InputSpec.kind`` of torch's exporter), exactly those of kind PARAMETER.
2. Elsewhere a float initializer or Constant of rank >= 1 that reaches, possibly through operators that only move or
   cast it, an operand that its rule declares a weight. An Add or Mul takes a constant of more than one element as a
   weight, and an Add directly behind a MatMul or a Conv by a parameter takes any. In a file whose weights are
   initializers, a Constant of nothing but ones or zeros is none: so exporters write a norm without scale and bias.
3. BatchNormalization's mean and variance are state.
4. Everything else is constant.

The decision is only about training: `vjp` differentiates by any float value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import onnx_ir as ir

from gradcut.dialect import is_relative, is_transparent
from gradcut.dialect.relatives import carriers
from gradcut.dialect.straight import is_straight
from gradcut.dims import FLOATS

KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
#: Metadata of a Constant node that a pass computed: it was none in the model, so it does not become a weight.
COMPUTED = "gradcut.computed"
#: Metadata of a model: a JSON list of the parameters that it freezes.
FROZEN = "gradcut.frozen"
#: Metadata of a BatchNormalization whose mode stays, whether its scale and bias train or are frozen.
KEEPS_MODE = "gradcut.keeps_mode"
_CARRIERS = frozenset(
    "Transpose Reshape Flatten Expand Cast CastLike Identity Unsqueeze Squeeze Concat Slice Split".split()
)
_PRODUCTS = frozenset({"MatMul", "Conv", "ConvTranspose"})
#: A mask of -inf is often written as a large finite number; nothing that trains starts there.
_MASK_LIMIT = 1e4


#: By operator, the operands that scale or shift what a layer gives.
_BIASES = {"Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "LSTM": (3,), "GRU": (3,), "RNN": (3,)}
_NORMS = dict.fromkeys(
    "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization RMSNormalization".split(), (1, 2)
)
_SCALES_AND_SHIFTS = _BIASES | _NORMS
#: Operators whose other weights are matrices, kernels and tables.
_PRODUCTS = frozenset({"MatMul", "Einsum", "Gather", *_BIASES})


class Declarations(Protocol):
    """What the rules declare: whether a constant at an operand is a weight."""

    def weight(self, node: ir.Node, operand: int) -> bool: ...


@dataclass(frozen=True)
class Decision:
    """What one constant tensor of the model is: ``parameter``, ``state`` or ``constant``, and by which rule.

    Attributes:
        overlooked: a constant by rule 1 that stands where a weight does; the exporter has lost what it was.
    """

    value: ir.Value
    kind: str
    reason: str
    overlooked: bool = False

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def shape(self) -> tuple[int, ...]:
        tensor = constant_tensor(self.value)
        return () if tensor is None else tuple(tensor.shape.numpy())

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node."""
    if value.const_value is not None:
        return value.const_value
    return ir.convenience.get_const_tensor(value)


def is_bias_or_norm(value: ir.Value) -> bool:
    """Whether a parameter only scales or shifts what a layer gives, which weight decay commonly spares.

    It does where its rank is 0 or 1, or it is the bias operand of a layer or the scale or bias of a norm, or it has at
    most one dimension above 1 and is in no product, look-up or convolution (a bias of [1, C, 1, 1]).
    """
    tensor = constant_tensor(value)
    dims = () if tensor is None else tuple(tensor.shape.numpy())
    if len(dims) <= 1:
        return True
    uses = [(node.op_type, index) for node, index in _uses(value) if node.domain == ""]
    if any(index in _SCALES_AND_SHIFTS.get(op_type, ()) for op_type, index in uses):
        return True
    return sum(dim != 1 for dim in dims) <= 1 and not any(op_type in _PRODUCTS for op_type, _ in uses)


def decide(graph: ir.Graph, declarations: Declarations) -> dict[str, Decision]:
    """Each initializer and Constant of the main graph, in order, with what it is."""
    candidates = list(_candidates(graph))
    said = {value.name: kind for value in candidates if (kind := _declared_kind(value))}
    finder = _Weights(declarations)
    decide_one = partial(_by_file, said, finder) if said else finder.decision
    decisions = {value.name or "": decide_one(value) for value in candidates}
    return decisions if said else _without_trivial(decisions)


def parameters(graph: ir.Graph, declarations: Declarations) -> dict[str, ir.Value]:
    """The parameters by name, in the order of the file."""
    return {name: d.value for name, d in decide(graph, declarations).items() if d.kind == "parameter"}


def _candidates(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    for node in graph:
        if node.op_type == "Constant" and node.domain == "":
            yield node.outputs[0]


def _declared_kind(value: ir.Value) -> str | None:
    kind = value.metadata_props.get(KIND)
    return None if kind is None else kind.rsplit(".", 1)[-1].upper()


def _by_file(said: dict[str | None, str], finder: _Weights, value: ir.Value) -> Decision:
    kind = said.get(value.name)
    if kind == "PARAMETER" and _dtype(value) in FLOATS:
        return Decision(value, "parameter", "the file says PARAMETER")
    if any(_is_statistic(node, index) for node, index in value.uses()):
        return Decision(value, "state", "mean or variance of a BatchNormalization")
    if kind:
        return Decision(value, "constant", f"the file says {kind}")
    found = finder.decision(value)
    if found.kind == "parameter" and finder.is_certain(value) and not _is_trivial(value):
        return Decision(value, "constant", f"{found.reason}, but the file names it no parameter", overlooked=True)
    return Decision(value, "constant", "the file names it no parameter")


def _without_trivial(decisions: dict[str, Decision]) -> dict[str, Decision]:
    """Where weights are initializers, a Constant of ones or zeros is a constant."""
    if not any(d.kind == "parameter" and d.value.is_initializer() for d in decisions.values()):
        return decisions
    for name, decision in decisions.items():
        if decision.kind == "parameter" and not decision.value.is_initializer() and _is_trivial(decision.value):
            decisions[name] = Decision(decision.value, "constant", "a Constant of ones or zeros alone")
    return decisions


def _is_trivial(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    if tensor is None:
        return False
    array = tensor.numpy()
    return array.size == 0 or (array.flat[0] in (0, 1) and bool((array == array.flat[0]).all()))


def _dtype(value: ir.Value) -> ir.DataType | None:
    tensor = constant_tensor(value)
    return value.dtype if tensor is None else tensor.dtype


def _is_statistic(node: ir.Node, index: int) -> bool:
    return node.op_type == "BatchNormalization" and node.domain == "" and index in (3, 4)


class _Weights:
    """Rule 2: follows a constant to the operands it reaches."""

    def __init__(self, declarations: Declarations) -> None:
        self.declarations = declarations

    def decision(self, value: ir.Value) -> Decision:
        return Decision(value, *self._kind(value))

    def is_certain(self, value: ir.Value) -> bool:
        """Whether some operand that takes hardly anything but weights is reached: no sum, product or look-up."""
        return any(
            self.declarations.weight(node, index) and node.op_type not in ("Add", "Mul", "Gather")
            for node, index in _uses(value)
        )

    def _kind(self, value: ir.Value) -> tuple[str, str]:
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype not in FLOATS:
            return "constant", "not a float"
        if len(tensor.shape) == 0:
            return "constant", "a scalar"
        producer = value.producer()
        if producer is not None and COMPUTED in producer.metadata_props:
            return "constant", "computed from other constants"
        uses = list(_uses(value))
        if any(_is_statistic(node, index) for node, index in uses):
            return "state", "mean or variance of a BatchNormalization"
        weights = [(node, index) for node, index in uses if self._is_weight(node, index, tensor)]
        if not weights:
            return "constant", "no operand that it reaches is a weight"
        if any(node.op_type in ("Add", "Mul") for node, _ in weights) and _is_mask(tensor):
            return "constant", "a mask of very large or infinite numbers"
        node, index = weights[0]
        return "parameter", f"operand {index} of {node.op_type} ({node.name})"

    def _is_weight(self, node: ir.Node, index: int, tensor: ir.TensorProtocol) -> bool:
        if not self.declarations.weight(node, index):
            return False
        if node.op_type == "MatMul" and node.domain == "":
            other = node.inputs[1 - index]
            return other is None or constant_tensor(other) is None
        if node.op_type in ("Add", "Mul") and node.domain == "":
            return tensor.size > 1 or (node.op_type == "Add" and _behind_product(node, index))
        return True


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Every operand that a value reaches, as it is or moved, cast or marked."""
    stack, seen = [value], {value}
    while stack:
        for node, index in stack.pop().uses():
            yield node, index
            carries = (node.domain == "" and node.op_type in _CARRIERS) or is_transparent(node)
            carries_rounded = (is_straight(node) and index == 1) or (is_relative(node) and index in carriers(node))
            if carries_rounded or (carries and (index == 0 or node.op_type == "Concat")):
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                stack += fresh


def _behind_product(node: ir.Node, index: int) -> bool:
    """Whether the other operand is a product with a constant, as a bias stands behind."""
    other = node.inputs[1 - index]
    producer = other.producer() if other is not None else None
    while producer is not None and producer.op_type == "Identity" and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    if producer is None or producer.op_type not in _PRODUCTS:
        return False
    return any(operand is not None and _is_constant(operand) for operand in producer.inputs)


def _is_constant(value: ir.Value) -> bool:
    """A tensor of the file, as it is or under another name."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Identity" and producer.inputs[0] is not None:
        return _is_constant(producer.inputs[0])
    return constant_tensor(value) is not None


def _is_mask(tensor: ir.TensorProtocol) -> bool:
    """Without a copy: a table of positions may be large."""
    values = tensor.numpy()
    with np.errstate(invalid="ignore"):
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
    return not (low > -_MASK_LIMIT and high < _MASK_LIMIT)  # NaN is in no order
