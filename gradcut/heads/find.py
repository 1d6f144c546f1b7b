"""Finding a head: the last layer with weights before an output, and what stands behind it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gradcut.dialect import is_transparent
from gradcut.errors import SpecError
from gradcut.heads.constants import Operand, constant_operand
from gradcut.parameters import constant_tensor
from gradcut.softmax import written_softmax

#: Operators that may stand behind a head, by what their result does with the classes.
ACTIVATIONS = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
POINTWISE = frozenset("Identity Cast Dropout Relu LeakyRelu Tanh Softplus Elu Clip HardSigmoid Neg Exp Log".split())
POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"})
MOVES = frozenset("Reshape Flatten Squeeze Unsqueeze Transpose ReduceMean ReduceMax Resize Upsample".split())
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_PASSED = ACTIVATIONS | POINTWISE | POOLS | MOVES
_NO_HEADS = {
    "Gather": "an embedding",
    "Einsum": "an Einsum, whose class axis gradcut does not look for",
    "ConvTranspose": "a transposed convolution",
    "LayerNormalization": "a norm",
    "BatchNormalization": "a norm",
    "GroupNormalization": "a norm",
    "InstanceNormalization": "a norm",
    "RMSNormalization": "a norm",
}


@dataclass(frozen=True)
class Step:
    """What stands behind the head: one node, or a softmax written out, from `source` to the output of `node`."""

    node: ir.Node
    source: ir.Value
    op_type: str


@dataclass(frozen=True)
class Head:
    """The last layer with weights.

    Attributes:
        layer: a Gemm, MatMul or Conv.
        weight: its constant; axis: that of the classes in it, as the layer reads it.
        biases: constants of one number a class that are added to what it gives, its own first.
        behind: from the layer to the output.
    """

    layer: ir.Node
    weight: Operand
    axis: int
    biases: tuple[Operand, ...]
    behind: tuple[Step, ...]

    @property
    def classes(self) -> int:
        return self.weight.shape[self.axis]

    @property
    def class_axis(self) -> int:
        """Of the layer's output; from the end where it is a product."""
        return 1 if self.layer.op_type == "Conv" else _axis_from_end(self.weight)

    def bias_axis(self, bias: Operand) -> int:
        """Of the classes in a bias, from the end."""
        return -1 if bias.node is self.layer else _axis_from_end(self.weight)


def find_head(output: ir.Value) -> Head:
    """Walk back from an output to the last layer with weights.

    Raises:
        SpecError: another operator stands in the way, or there is none.
    """
    value, behind = output, list[Step]()
    while True:
        node = value.producer()
        if node is None:
            what = "an input" if constant_tensor(value) is None else "a constant"
            raise SpecError(
                f"replace_head: {output.name!r} has no head: walking back leads to {what}, {value.name!r}, and past no "
                "layer with weights"
            )
        found = weight_of(node)
        if found is not None:
            return _head(node, *found, behind)
        step = _step(node)
        if step is None:
            raise SpecError(_refusal(node, output))
        behind.insert(0, step)
        value = step.source


def weight_of(node: ir.Node) -> tuple[Operand, int] | None:
    """The weight of a Gemm, MatMul or Conv and its class axis; None for any other node."""
    if node.domain != "" or node.op_type not in ("Gemm", "MatMul", "Conv"):
        return None
    for index in (1, 0) if node.op_type == "MatMul" else (1,):
        weight = constant_operand(node, index)
        if weight is None or constant_operand(node, 1 - index) is not None:
            continue
        if node.op_type == "Conv":
            group = node.attributes["group"].as_int() if "group" in node.attributes else 1
            return (weight, 0) if group == 1 else None
        if len(weight.shape) != 2:
            return None
        if node.op_type == "Gemm":
            transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
            return weight, 0 if transposed else 1
        return weight, index
    return None


def _head(layer: ir.Node, weight: Operand, axis: int, behind: list[Step]) -> Head:
    """The layer with its biases: its own operand, and Adds of one number a class that stand right behind it."""
    classes, biases = weight.shape[axis], list[Operand]()
    if layer.op_type != "MatMul" and len(layer.inputs) > 2 and layer.inputs[2] is not None:
        bias = constant_operand(layer, 2)
        if bias is None:
            raise SpecError(f"replace_head: the bias of {layer.name!r} ({layer.op_type}) is computed, not a constant")
        biases.append(bias)
    for step in behind:
        operand = _added(step.node)
        if operand is None or not _is_bias(operand, weight, classes) or (classes == 1 and biases):
            if step.op_type in ("Identity", "Cast", "mark"):
                continue
            break
        biases.append(operand)
    kept = [step for step in behind if not any(step.node is bias.node for bias in biases)]
    for step in kept:
        operand = _scalar_side(step.node)
        if operand is not None and operand.size != 1:
            raise SpecError(
                f"replace_head: {step.node.name!r} ({step.op_type}) holds {operand.size} numbers ({operand.name}), "
                "which belong to the old classes; name a value before it with output="
            )
    return Head(layer, weight, axis, tuple(biases), tuple(behind))


def _axis_from_end(weight: Operand) -> int:
    """Of the classes in what the layer gives."""
    if weight.node.op_type == "Conv":
        return 1 - len(weight.shape)
    return -1 if weight.index == 1 else -2


def _is_bias(operand: Operand, weight: Operand, classes: int) -> bool:
    """Whether it is one number a class, along the classes."""
    place = _axis_from_end(weight)
    return operand.size == classes and len(operand.shape) >= -place and operand.shape[place] == classes


def _added(node: ir.Node) -> Operand | None:
    return _scalar_side(node) if node.op_type == "Add" else None


def _scalar_side(node: ir.Node) -> Operand | None:
    """The constant side of a sum or product."""
    if node.domain != "" or node.op_type not in _ARITHMETIC:
        return None
    return next((found for index in (1, 0) if (found := constant_operand(node, index)) is not None), None)


def _step(node: ir.Node) -> Step | None:
    """A node that may stand behind a head; None for any other."""
    if is_transparent(node):
        assert node.inputs[0] is not None
        return Step(node, node.inputs[0], "mark")
    if node.domain != "":
        return None
    source = written_softmax(node)
    if source is not None:
        return Step(node, source, "Softmax")
    if node.op_type in _PASSED and node.inputs[0] is not None:
        return Step(node, node.inputs[0], node.op_type)
    constant = _scalar_side(node)
    if constant is None or (node.op_type == "Div" and constant.index == 0):
        return None
    other = node.inputs[1 - constant.index]
    return None if other is None else Step(node, other, node.op_type)


# --- refusals ------------------------------------------------------------------------------------------------


def _refusal(node: ir.Node, output: ir.Value) -> str:
    nothing = "no linear layer or convolution with a constant weight"
    what = _NO_HEADS.get(node.op_type, nothing) if node.op_type != "Gather" or constant_operand(node, 0) else nothing
    if node.op_type in ("Conv", "MatMul", "Gemm"):
        what = "no layer whose one weight is a constant with the classes along one axis"
    name = f"{node.name!r} ({node.domain + '.' if node.domain else ''}{node.op_type})"
    return (
        f"replace_head: walking back from {output.name!r} the first layer is {name}, which is {what}; "
        "name the output of a head with output= (--new-head OUTPUT=K)"
    )
