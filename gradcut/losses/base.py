"""What a loss is to the compiler: options, the input it brings, the scalar it builds, what a host must know."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from gradcut.errors import LossError, SpecError
from gradcut.ops import Builder
from gradcut.text import Scalar, format_scalar, format_spec

#: Numbers along an axis, such as one a class; a sequence or an array is taken, a tuple is kept.
Numbers = tuple[float, ...]
_KINDS: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


@dataclass(frozen=True)
class Labels:
    """The new input that a loss reads."""

    dtype: ir.DataType
    shape: ir.Shape | None


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """One loss with its options.

    Attributes:
        output: the value that it reads; by default the model's only float output.
        labels: the name of the input that it brings; by default ``labels``, or the next free name. Losses that give the
            same name share one input.
        target: a value of the model to read in place of a new input, through a mark: no gradient goes to it.
        stop_target: False leaves that mark out.
        reduction: ``mean``, or ``sum`` of what the mean is of. There is no ``none``: an objective is a scalar.
    """

    name: ClassVar[str]
    #: What it takes, where that is not any float: ``logits``, or ``log-probabilities``.
    wants: ClassVar[str] = ""
    reductions: ClassVar[tuple[str, ...]] = ("mean", "sum")
    #: Whether its labels have the output's own shape.
    elementwise: ClassVar[bool] = True

    output: str = ""
    labels: str = ""
    target: str = ""
    stop_target: bool = True
    reduction: str = "mean"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = option(f"{self.name}: {field.name}", str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.reduction not in self.reductions:
            raise SpecError(
                f"{self.name}: reduction={self.reduction} gives no objective, which is a scalar; it is "
                f"{' or '.join(self.reductions)} (gradcut.vjp takes a cotangent for every element instead)"
                if self.reduction == "none"
                else f"{self.name}: reduction is {' or '.join(self.reductions)}, not {self.reduction!r}"
            )
        if self.target and self.labels:
            raise SpecError(
                f"{self.name}: labels={self.labels} is a new input and target={self.target} a value of the "
                "model; a loss reads one of them"
            )

    def label_input(self, output: ir.Value) -> Labels:
        """Dtype and shape of the label input: those of the output, where a loss says nothing else."""
        return Labels(output.dtype or ir.DataType.FLOAT, output.shape)

    @abstractmethod
    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        """The scalar, within ``b.arithmetic()``."""

    def facts(self, output: ir.Value) -> dict[str, Any]:
        """What a host must know to check the labels it feeds and to average; goes into the manifest.

        ``over`` is what the mean is taken over: ``labels`` that are not ignored, ``elements``, ``rows`` of the batch,
        or ``vectors`` along an axis.
        """
        return {"reduction": self.reduction, "over": "elements"}

    def spec(self) -> str:
        """Text that `parse_loss` reads back; only what differs from the defaults."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return format_spec(
            self.name,
            {f.name: _as_option(values[f.name]) for f in dataclasses.fields(self) if values[f.name] != f.default},
        )

    def reduced(self, b: Builder, losses: ir.Value) -> ir.Value:
        """The mean or the sum of every element."""
        op_type = "ReduceMean" if self.reduction == "mean" else "ReduceSum"
        return b.op(op_type, losses, keepdims=0, shape=ir.Shape([]))

    def _at_least(self, option: str, least: float, strict: bool = False) -> None:
        value = getattr(self, option)
        if not (math.isfinite(value) and (value > least if strict else value >= least)):
            raise SpecError(f"{self.name}: {option} is {value!r}; it is {'above' if strict else 'at least'} {least:g}")


def option(where: str, kind: str, value: Any) -> Any:
    """An option's value as its annotation has it, in Python's own types.

    Raises:
        SpecError: of another kind, or weights that are negative or not finite.
    """
    if kind == "Numbers":
        return _numbers(where, value)
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, _KINDS[kind]) or (isinstance(plain, bool) and kind != "bool"):
        raise SpecError(f"{where} is {kind}, not {value!r}")
    return plain


def _numbers(where: str, given: Any) -> Numbers:
    try:
        listed = tuple(float(one) for one in ([given] if np.ndim(given) == 0 else given))
    except (TypeError, ValueError):
        raise SpecError(f"{where} is a list of numbers such as [1 2 0.5], not {given!r}") from None
    bad = next((one for one in listed if not (math.isfinite(one) and one >= 0)), None)
    if bad is not None:
        raise SpecError(f"{where} holds {bad:g}; weights are finite and at least 0")
    return listed


def axis_of(loss: Loss, output: ir.Value, axis: int) -> int:
    """`axis` of the output, counted from the front.

    Raises:
        LossError: the output's rank is unknown, or it has no such axis.
    """
    rank = rank_of(loss, output)
    if not -rank <= axis < rank:
        raise LossError(f"{loss.name}: axis={axis} is no axis of {output.name!r} (rank {rank})")
    return axis % rank


def rank_of(loss: Loss, output: ir.Value) -> int:
    if output.shape is None:
        raise LossError(f"{loss.name}: the rank of {output.name!r} is unknown; its file gives it no shape")
    return len(output.shape)


def size_at(output: ir.Value, axis: int) -> int | str | None:
    """The size of an axis: a number, a symbol, or None where nothing is known."""
    size = output.shape[axis] if output.shape is not None else None
    return size if size is None or isinstance(size, int) else size.value


def along(loss: Loss, b: Builder, option: str, output: ir.Value, axis: int) -> ir.Value:
    """The numbers of an option as a constant that broadcasts along one axis of the output.

    Raises:
        LossError: their count is not the size of that axis.
    """
    numbers: Numbers = getattr(loss, option)
    check_count(loss, option, output, axis)
    behind = rank_of(loss, output) - axis - 1
    assert output.dtype is not None
    constant = b.constant([*numbers], output.dtype)
    return b.op("Reshape", constant, b.ints([-1, *[1] * behind]), shape=ir.Shape([len(numbers), *[1] * behind]))


def check_count(loss: Loss, option: str, output: ir.Value, axis: int) -> None:
    """Raise where an option does not have one number for each class, or place, along an axis of the output."""
    count, size = len(getattr(loss, option)), size_at(output, axis)
    if isinstance(size, int) and size != count:
        raise LossError(
            f"{loss.name}: {option} has {count} numbers, and {output.name!r} is {size} along axis {axis}; give one each"
        )


def _as_option(value: Any) -> Scalar:
    if isinstance(value, tuple):
        return "[" + " ".join(format_scalar(one) for one in value) + "]"
    return value  # type: ignore[no-any-return]
