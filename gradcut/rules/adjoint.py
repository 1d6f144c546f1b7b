"""What a rule is given: one node, the cotangents of its outputs, and which operands want one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import onnx_ir as ir

from gradcut.dims import static_dims
from gradcut.errors import NoGradientError
from gradcut.ops import Builder, Names
from gradcut.text import join_names

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
#: What a rule yields: the operand, by name or by index, and its cotangent.
Cotangents = Iterator[tuple[str | int, ir.Value]]
#: What a rule of an operator with graphs inside yields: a captured value too.
Captures = Iterator[tuple[str | int | ir.Value, ir.Value]]


class Inside(Protocol):
    """What the engine lends a rule that differentiates nodes: of graphs inside its own, or such as it made.

    Attributes:
        active: the values that carry a cotangent, inside bodies too; a rule adds its copies of such values.
        functions: those of the model.
    """

    active: set[ir.Value]
    functions: Mapping[tuple[str, str, str], ir.Function]

    def differentiate(
        self,
        b: Builder,
        nodes: Sequence[ir.Node],
        seeds: Iterable[tuple[ir.Value, ir.Value]],
        wanted: Iterable[ir.Value],
    ) -> list[ir.Value | None]:
        """Append the backward of `nodes` to `b`: from cotangents of some values to those of the wanted ones."""
        ...

    def differentiate_made(
        self,
        b: Builder,
        nodes: Sequence[ir.Node],
        seeds: Sequence[tuple[ir.Value, ir.Value]],
        wanted: Sequence[ir.Value],
        finite: bool,
    ) -> list[ir.Value | None]:
        """Likewise, of nodes that a rule made: what is active among them is what lies on the way.

        Args:
            finite: whether the seeds' cotangents are known to be, see `Adjoint`.
        """
        ...


class Adjoint:
    """The backward of one node.

    Three states of an operand never mix: one that has no derivative is not declared and is never asked for; one that
    is not wanted here answers False to `wants`; a wanted one must be yielded, or raise through `refuse`.

    Attributes:
        node: the forward node. b: builds the backward nodes; arithmetic on values works while a rule runs.
        opset: of the model, for messages and for rules that changed.
        finite: whether the cotangents are known to be finite where the forward's values are.
        captured: the active values from outside that graphs inside the node read; each is wanted.
        inside: differentiates the graphs inside the node, and nodes that the rule made.
    """

    def __init__(
        self,
        node: ir.Node,
        b: Builder,
        operands: Mapping[str, int],
        outputs: Mapping[str, int],
        cotangents: Mapping[int, ir.Value],
        wanted: frozenset[int],
        opset: int,
        finite: bool = False,
        captured: Sequence[ir.Value] = (),
        inside: Inside | None = None,
    ) -> None:
        self.node, self.b, self.opset, self.finite = node, b, opset, finite
        self._operands, self._outputs = operands, outputs
        self._cotangents, self.wanted = cotangents, wanted
        self.captured, self._inside = list(captured), inside

    def __getitem__(self, operand: str | int) -> ir.Value:
        """An operand that is there."""
        value = self.get(operand)
        if value is None:
            raise KeyError(f"{self.node.op_type} has no operand {operand} here")
        return value

    def get(self, operand: str | int) -> ir.Value | None:
        """An operand, or None where it is left out."""
        index = self.index(operand)
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def index(self, operand: str | int) -> int:
        """Where an operand stands; one without a name of its own goes by its number."""
        if isinstance(operand, int):
            return operand
        if operand not in self._operands and not operand.isdecimal():
            known = join_names(self._operands) or "known by number only"
            self.refuse(f"its rule asks for {operand!r}; the operands are {known}")
        return self._operands[operand] if operand in self._operands else int(operand)

    def wants(self, *operands: str | int) -> bool:
        """Whether one of these operands is there and wants a cotangent."""
        return any(self.index(operand) in self.wanted for operand in operands)

    def out(self, output: str | int = 0) -> ir.Value:
        """An output of the forward node; one that the file leaves out is added to the node."""
        index = output if isinstance(output, int) else self._outputs[output]
        if index >= len(self.node.outputs):
            self.node.resize_outputs(index + 1)
        value = self.node.outputs[index]
        if not value.name:
            value.name = self.b.names.fresh(f"{self.node.outputs[0].name}_{output}")
        return value

    def cotangent(self, output: str | int = 0) -> ir.Value | None:
        """The cotangent of an output; None is a zero that is never built."""
        return self._cotangents.get(output if isinstance(output, int) else self._outputs[output])

    @property
    def dY(self) -> ir.Value:
        """The cotangent of the first output, for an operator whose other outputs carry none."""
        others = [index for index in self._cotangents if index != 0]
        if others:
            self.refuse(f"its output {others[0]} is differentiated, and only output 0 is covered")
        return self._cotangents[0]

    @property
    def inside(self) -> Inside:
        assert self._inside is not None
        return self._inside

    def graph(self, name: str) -> ir.Graph:
        """A graph among the attributes."""
        return self.node.attributes[name].as_graph()

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value, lists as tuples."""
        if name not in self.node.attributes:
            return default
        value = self.node.attributes[name].value
        return tuple(value) if isinstance(value, list) else value

    def rank(self, operand: str | int) -> int:
        """The rank of an operand; refuses where it is unknown."""
        shape = self[operand].shape
        if shape is None:
            name = self[operand].name
            self.refuse(f"the rank of {operand} ({name}) is unknown; give the graph's inputs their shapes")
        return len(shape)

    def constant(self, operand: str | int) -> Any:
        """An operand's value as an array, or None where it is known only at run time, or may move: it is wanted."""
        value = self.get(operand)
        tensor = None if value is None or self.wants(operand) else ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    def static(self, operand: str | int) -> tuple[int, ...] | None:
        """An operand's shape in integers, or None."""
        return static_dims(self[operand].shape)

    def wide(self, value: ir.Value) -> ir.Value:
        """A half as float32, anything else as it is: sums of many terms are taken in it.

        ONNX Runtime's CPU kernels that scatter and add take no halves at all.
        """
        return self.b.Cast(value, to=ir.DataType.FLOAT) if value.dtype in _HALVES else value

    def refuse(self, reason: str) -> NoReturn:
        """This configuration is not covered."""
        raise NoGradientError(self.node.name or "", self.node.op_type, self.opset, reason)


__all__ = ["Adjoint", "Builder", "Cotangents", "Names"]
