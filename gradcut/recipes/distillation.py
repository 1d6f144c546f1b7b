"""A student that is its own teacher: DINO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.ops import Builder, Names
from gradcut.recipes.assembly import Assembly, on_batch_statistics
from gradcut.recipes.base import Composed, Recipe, averages, names_of, view_inputs
from gradcut.recipes.encoder import Encoder
from gradcut.recipes.heads import Directions, Gelu, Layer, Linear, Unit, head
from gradcut.state import State


@dataclass(frozen=True, kw_only=True)
class DINO(Recipe):
    """Caron et al., *Emerging Properties in Self-Supervised Vision Transformers*, ICCV 2021.

    L = the mean over pairs of different views of -sum P_t log P_s, P_s = softmax(s / student_temperature) and
    P_t = softmax((t - c) / teacher_temperature), cut off. The teacher is running averages of the student; the centre c
    moves to the mean of t with its own decay. The teacher sees the first two views alone, the student all of them.

    Attributes:
        hidden, bottleneck, dim: widths of the head: Linear, GELU, Linear, GELU, Linear, to length 1, and a last layer
            of `dim` directions.
        views: two, and more for multi-crop.
        decay: of the teacher. steps: until it is 1 along a cosine; 0: it stays. centre: the decay of the centre.
    """

    name: ClassVar[str] = "dino"
    category: ClassVar[str] = "self-distillation"
    has_momentum_encoder: ClassVar[bool] = True
    optimizer: ClassVar[str] = "adamw:lr=5e-4,weight_decay=0.04"

    hidden: int = 2048
    bottleneck: int = 256
    dim: int = 65536
    views: int = 2
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    decay: float = 0.996
    steps: int = 0
    centre: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("hidden", "bottleneck", "dim", "student_temperature", "teacher_temperature")
        self._require_share("decay", "centre")
        if self.views < 2 or self.steps < 0:
            raise SpecError(f"dino: views is {self.views} and steps {self.steps}; they are at least 2 and 0")

    def compose(self, encoder: Encoder, seed: int) -> Composed:
        a = Assembly([encoder.model])
        layers = head("projector", self._layers(), encoder.embedding, seed)
        student = [a.module(encoder.model), a.module(layers)]
        teacher = [a.module(one, "teacher.", trains=False) for one in (on_batch_statistics(encoder.model), layers)]
        centre = a.tensor("centre", np.zeros((1, self.dim), encoder.dtype))
        views = [view_inputs(a, student[0], f"view{number + 1}") for number in range(self.views)]
        s = [student[1](student[0](*view)) for view in views]
        t = [teacher[1](teacher[0](*view, prefix="teacher/"), prefix="teacher/") for view in views[:2]]
        with a.build("teacher/") as b:
            sharp = [self._target(b, one, centre) for one in t]
            seen = b.op("Concat", *t, axis=0, dtype=t[0].dtype, shape=ir.Shape([None, self.dim]))
            seen = b.op("ReduceMean", seen, b.ints([0]), keepdims=1, shape=ir.Shape([1, self.dim]))
        targets = [a.stop(one) for one in sharp]
        with a.build("loss/") as b:
            loss = self._loss(b, s, targets)
        outputs = {f"s{number + 1}": one for number, one in enumerate(s)}
        model = a.model({"loss": loss, **outputs, "t1": t[0], "t2": t[1], "seen": seen}, doc=self.spec())
        state = averages(teacher, student, self.decay, self.steps), State("centre", self._moved(centre, seen, a.opset))
        return Composed(model, tuple(names_of(view) for view in views), tuple(outputs)[:2], state)

    def _layers(self) -> list[Layer]:
        wide: list[Layer] = [Linear(self.hidden), Gelu(), Linear(self.hidden), Gelu()]
        return [*wide, Linear(self.bottleneck), Unit(), Directions(self.dim)]

    def _target(self, b: Builder, t: ir.Value, centre: ir.Value) -> ir.Value:
        return b.op("Softmax", (t - centre) * (1 / self.teacher_temperature), axis=1, dtype=t.dtype, shape=t.shape)

    def _loss(self, b: Builder, s: list[ir.Value], targets: list[ir.Value]) -> ir.Value:
        """Rows of a batch count alike, and so do pairs."""
        scores = [one * (1 / self.student_temperature) for one in s]
        logs = [b.op("LogSoftmax", one, axis=1, dtype=one.dtype, shape=one.shape) for one in scores]
        pairs = [(target, log) for i, target in enumerate(targets) for j, log in enumerate(logs) if i != j]
        terms = [b.op("ReduceSum", target * log, b.ints([1]), keepdims=0) for target, log in pairs]
        total = terms[0]
        for term in terms[1:]:
            total = b.Add(total, term)
        mean = b.op("ReduceMean", total, keepdims=0, shape=ir.Shape([]))
        return b.Mul(mean, -1 / len(pairs))

    def _moved(self, centre: ir.Value, seen: ir.Value, opset: int) -> ir.Model:
        """c' = m c + (1 - m) mean(t), equation 4."""
        b = Builder(Names([centre.name, seen.name]), prefix="centre_")
        old, new = (ir.Value(name=v.name, type=v.type, shape=v.shape) for v in (centre, seen))
        with b.arithmetic():
            moved = b.Add(old * self.centre, new * (1 - self.centre))
        moved.name, moved.shape = "centre_next", centre.shape
        graph = ir.Graph([old, new], [moved], nodes=b.nodes, opset_imports={"": opset}, name="centre")
        return ir.Model(graph, ir_version=10)
