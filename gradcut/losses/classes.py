"""Losses whose labels are class numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from gradcut.errors import LossError, SpecError
from gradcut.losses.base import Labels, Loss, Numbers, check_count, rank_of, size_at
from gradcut.ops import Builder

#: Stands for an axis that nobody said.
_UNSAID = -(2**31)


@dataclass(frozen=True, kw_only=True)
class _OnClasses(Loss):
    """Labels are INT64 of the output's shape without its class axis.

    Attributes:
        axis: the class axis; unsaid it is 1 at rank 2, and an error above.
        weight: one number a class, by which its labels count; the mean is over the sum of the weights of the labels.
        ignore_index: the label that does not count.
    """

    elementwise: ClassVar[bool] = False
    #: What the output holds, for messages.
    scores: ClassVar[str]

    axis: int = _UNSAID
    weight: Numbers = ()
    ignore_index: int = -100

    def label_input(self, output: ir.Value) -> Labels:
        axis, shape = self._axis(output), output.shape
        dims = None if shape is None else [dim for i, dim in enumerate(shape) if i != axis]
        return Labels(ir.DataType.INT64, None if dims is None else ir.Shape(dims))

    def facts(self, output: ir.Value) -> dict[str, Any]:
        axis = self._axis(output)
        weighted = {"weight": list(self.weight)} if self.weight else {}
        return {
            "classes": size_at(output, axis),
            "axis": axis,
            "ignore_index": self.ignore_index,
            **weighted,
            "reduction": self.reduction,
            "over": "labels",
        }

    def _call(
        self, b: Builder, op_type: str, output: ir.Value, labels: ir.Value, outputs: int = 1
    ) -> tuple[ir.Node, ir.Value]:
        """The ONNX operator on scores with the classes second; and the labels as it takes them."""
        scores = self._classes_second(b, output)
        if scores is not output and len(scores.shape or ()) == 2:
            labels = b.op("Reshape", labels, b.ints([-1]))
        node = b.node(
            op_type,
            *(scores, labels, *self._weights(b, output)),
            outputs=outputs,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            dtype=output.dtype,
            shape=ir.Shape([]),
        )
        return node, labels

    def _weights(self, b: Builder, output: ir.Value) -> tuple[ir.Value, ...]:
        if not self.weight:
            return ()
        check_count(self, "weight", output, self._axis(output))
        return (b.constant([*self.weight], output.dtype),)

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
        rank = rank_of(self, output)
        if rank < 2:
            raise LossError(f"{self.name}: {output.name!r} has rank {rank}; {self.scores} are [batch, classes, ...]")
        if self.axis == _UNSAID:
            if rank > 2:
                raise LossError(
                    f"{self.name}: {output.name!r} has rank {rank}, so the class axis must be said: "
                    "axis=1 as torch has it, axis=-1 for a language model"
                )
            return 1
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise LossError(f"{self.name}: axis={self.axis} is no class axis of {output.name!r} (rank {rank})")
        return self.axis % rank


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(_OnClasses):
    """torch.nn.CrossEntropyLoss on class numbers, averaged over the labels that are not ignored.

    Attributes:
        label_smoothing: from 0 to 1, the share of every label that goes to all classes alike (Szegedy et al. 2016).
    """

    name: ClassVar[str] = "cross_entropy"
    wants: ClassVar[str] = "logits"
    scores: ClassVar[str] = "scores"

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise SpecError(f"cross_entropy: label_smoothing is {self.label_smoothing}; it lies between 0 and 1")

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        smoothing = self.label_smoothing
        node, labels = self._call(b, "SoftmaxCrossEntropyLoss", output, labels, outputs=2 if smoothing else 1)
        likelihood, scores = node.outputs[0], node.inputs[0]
        if not smoothing:
            return likelihood
        log_prob = node.outputs[1]
        assert scores is not None
        log_prob.type, log_prob.shape = scores.type, scores.shape
        by_class = node.inputs[2] if self.weight else None
        smooth = b.Mul(self._smooth(b, log_prob, labels, by_class), smoothing)
        return b.Add(b.Mul(likelihood, 1.0 - smoothing), smooth)

    def _smooth(self, b: Builder, log_prob: ir.Value, labels: ir.Value, by_class: ir.Value | None) -> ir.Value:
        """The mean over classes of -w log p, added up over the labels that count, and averaged as they are."""
        counts = b.Not(b.Equal(labels, b.constant(self.ignore_index, ir.DataType.INT64)))
        if by_class is None:
            uniform = b.Neg(b.op("ReduceMean", log_prob, b.ints([1]), keepdims=0))
        else:
            behind = len(log_prob.shape or ()) - 2
            spread = b.op("Reshape", by_class, b.ints([-1, *[1] * behind]))
            spread.shape = ir.Shape([len(self.weight), *[1] * behind])
            uniform = b.Neg(b.op("ReduceMean", b.Mul(log_prob, spread), b.ints([1]), keepdims=0))
        total = b.ReduceSum(b.Where(counts, uniform, b.scalar_like(0.0, uniform)), keepdims=0)
        if self.reduction == "sum":
            return total
        number = b.Cast(counts, to=log_prob.dtype)
        if by_class is not None:
            safe = b.Where(counts, labels, b.constant(0, ir.DataType.INT64))
            number = b.Mul(number, b.op("Gather", by_class, safe, axis=0, shape=labels.shape))
        number = b.ReduceSum(number, keepdims=0)
        if by_class is None:
            number = b.op("Max", number, b.scalar_like(1.0, number), shape=number.shape)
        return b.Div(total, number)


@dataclass(frozen=True, kw_only=True)
class NLL(_OnClasses):
    """torch.nn.NLLLoss: minus the log-probability of the label, averaged over the labels that are not ignored.

    The output holds log-probabilities, such as LogSoftmax gives.
    """

    name: ClassVar[str] = "nll"
    wants: ClassVar[str] = "log-probabilities"
    scores: ClassVar[str] = "log-probabilities"

    def build(self, b: Builder, output: ir.Value, labels: ir.Value) -> ir.Value:
        return self._call(b, "NegativeLogLikelihoodLoss", output, labels)[0].outputs[0]
