"""Losses: each builds a scalar from one output of the model and a new label input.

A loss is named with its wiring, ``cross_entropy:output=logits,axis=1,label_smoothing=0.1``. Formulas are those of the
torch.nn page of the same name; all average over what counts.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from gradcut.errors import LossError, SpecError
from gradcut.ops import Builder
from gradcut.text import format_spec, parse_spec


@dataclass(frozen=True)
class Labels:
    """The new input that a loss reads."""

    dtype: ir.DataType
    shape: ir.Shape | None


@dataclass(frozen=True)
class Loss(ABC):
    """One loss with its options; `output` names the value it reads, by default the model's only float output."""

    name: ClassVar[str]
    wants_logits: ClassVar[bool] = False

    output: str = ""

    @abstractmethod
    def labels(self, output: ir.Value) -> Labels:
        """Dtype and shape of the label input."""

    @abstractmethod
    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        """The scalar, within ``b.arithmetic()``."""

    def facts(self, output: ir.Value) -> dict[str, Any]:
        """What a host must know to check the labels it feeds; goes into the manifest."""
        return {}

    def spec(self) -> str:
        """Text that `parse_loss` reads back."""
        options = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        }
        return format_spec(self.name, options)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """torch.nn.CrossEntropyLoss on class indices, averaged over the labels that are not ignored.

    Attributes:
        axis: the class axis; -2**31 stands for unsaid, which is 1 at rank 2 and an error above.
    """

    name: ClassVar[str] = "cross_entropy"
    wants_logits: ClassVar[bool] = True

    axis: int = -(2**31)
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise SpecError(f"cross_entropy: label_smoothing is {self.label_smoothing}; it lies between 0 and 1")

    def labels(self, output: ir.Value) -> Labels:
        axis, shape = self._axis(output), output.shape
        dims = None if shape is None else [dim for i, dim in enumerate(shape) if i != axis]
        return Labels(ir.DataType.INT64, None if dims is None else ir.Shape(dims))

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        scores = self._classes_second(b, output)
        if scores is not output and len(scores.shape or ()) == 2:
            labels = b.op("Reshape", labels, b.ints([-1]))
        node = b.node(
            "SoftmaxCrossEntropyLoss",
            *(scores, labels),
            outputs=2 if self.label_smoothing else 1,
            ignore_index=self.ignore_index,
            reduction="mean",
            dtype=output.dtype,
            shape=ir.Shape([]),
        )
        likelihood = node.outputs[0]
        if not self.label_smoothing:
            return likelihood
        log_prob = node.outputs[1]
        log_prob.type, log_prob.shape = scores.type, scores.shape
        smooth = b.Mul(self._smooth(b, log_prob, labels), self.label_smoothing)
        return b.Add(b.Mul(likelihood, 1.0 - self.label_smoothing), smooth)

    def facts(self, output: ir.Value) -> dict[str, Any]:
        axis = self._axis(output)
        classes = output.shape[axis] if output.shape is not None else None
        known = classes if classes is None or isinstance(classes, int) else classes.value
        return {"classes": known, "axis": axis, "ignore_index": self.ignore_index}

    def _smooth(self, b: Builder, log_prob: ir.Value, labels: ir.Value) -> ir.Value:
        """The mean over classes of -log p, averaged over the labels that count."""
        counts = b.Not(b.Equal(labels, b.constant(self.ignore_index, ir.DataType.INT64)))
        uniform = b.Neg(b.op("ReduceMean", log_prob, b.ints([1]), keepdims=0))
        kept = b.Where(counts, uniform, b.scalar_like(0.0, uniform))
        number = b.ReduceSum(b.Cast(counts, to=log_prob.dtype), keepdims=0)
        return b.Div(b.ReduceSum(kept, keepdims=0), b.op("Max", number, b.scalar_like(1.0, number), shape=number.shape))

    def _classes_second(self, b: Builder, output: ir.Value) -> ir.Value:
        """Scores as [N, C, ...]; a class axis that is last becomes [N, C], one row a label."""
        axis, shape = self._axis(output), output.shape
        rank = len(shape or ())
        if axis == 1:
            return output
        if axis == rank - 1:
            classes = b.dim(output, axis)
            known = ir.Shape([None, shape[axis] if shape is not None else None])
            return b.op("Reshape", output, b.dims(-1, classes), shape=known)
        return b.op("Transpose", output, perm=[0, axis, *(i for i in range(1, rank) if i != axis)])

    def _axis(self, output: ir.Value) -> int:
        rank = None if output.shape is None else len(output.shape)
        if rank is None:
            raise LossError(f"cross_entropy: the rank of {output.name!r} is unknown; its file gives it no shape")
        if rank < 2:
            raise LossError(f"cross_entropy: {output.name!r} has rank {rank}; scores are [batch, classes, ...]")
        if self.axis == CrossEntropy.axis:
            if rank > 2:
                raise LossError(
                    f"cross_entropy: {output.name!r} has rank {rank}, so the class axis must be said: "
                    "axis=1 as torch has it, axis=-1 for a language model"
                )
            return 1
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise LossError(f"cross_entropy: axis={self.axis} is no class axis of {output.name!r} (rank {rank})")
        return self.axis % rank


@dataclass(frozen=True)
class MSE(Loss):
    """torch.nn.MSELoss: the mean of (output - labels)^2 over every element."""

    name: ClassVar[str] = "mse"

    def labels(self, output: ir.Value) -> Labels:
        return Labels(output.dtype or ir.DataType.FLOAT, output.shape)

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        difference = output - labels
        return b.op("ReduceMean", difference * difference, keepdims=0, shape=ir.Shape([]))


#: The values that an option takes, by its annotation.
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
LOSSES: dict[str, type[Loss]] = {cls.name: cls for cls in (CrossEntropy, MSE)}


def parse_loss(spec: str) -> Loss:
    """A loss from its text.

    Raises:
        LossError: no such loss, or no such option.
    """
    name, options = parse_spec(spec)
    if name not in LOSSES:
        raise LossError(
            f"there is no loss {name!r}; there are {', '.join(sorted(LOSSES))}, or a graph of your own: FILE.onnx"
        )
    cls = LOSSES[name]
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in options.items():
        if key not in known:
            raise LossError(f"{name} has no option {key!r}; it has {', '.join(known)}")
        kind = _KINDS[str(known[key].type)]
        if not isinstance(value, kind) or isinstance(value, bool):
            if kind != (str,):
                raise LossError(f"{name}: {key} is {known[key].type}, not {value!r}")
            options[key] = str(value)
    return cls(**options)  # type: ignore[arg-type]
