"""Several heads on one trunk: multi-task, and domain-adversarial training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from gradcut.errors import SpecError
from gradcut.losses.base import Numbers
from gradcut.recipes.assembly import Assembly
from gradcut.recipes.base import Composed, Recipe, names_of
from gradcut.recipes.encoder import Encoder
from gradcut.recipes.heads import Linear, head, mlp
from gradcut.relatives import gradient_reversal
from gradcut.text import format_scalar


@dataclass(frozen=True, kw_only=True)
class MultiTask(Recipe):
    """One linear head for each task on one encoder, some cut off: their losses do not move the encoder.

    A task of several classes is learned by cross entropy from class numbers, ``labels1``, ``labels2``, ...; one of one
    value by mean squared error. Task k gives ``task1``, ``task2``, ...

    Attributes:
        outputs: of each task: its classes, or 1.
        weights: of each loss; 1 by default.
        cut: the tasks, counted from 1, before whose heads there is a mark.
    """

    name: ClassVar[str] = "multi_task"
    category: ClassVar[str] = "supervised"
    optimizer: ClassVar[str] = "adamw:lr=1e-3"

    outputs: Numbers = (10, 2)
    weights: Numbers = ()
    cut: Numbers = (2,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.outputs or any(one < 1 or one != int(one) for one in self.outputs):
            raise SpecError(f"multi_task: outputs are whole numbers of at least 1, one a task, not {self.outputs}")
        if self.weights and len(self.weights) != len(self.outputs):
            raise SpecError(f"multi_task: {len(self.weights)} weights for {len(self.outputs)} tasks")
        if any(one not in range(1, len(self.outputs) + 1) for one in self.cut):
            raise SpecError(f"multi_task: cut names tasks from 1 to {len(self.outputs)}, not {self.cut}")

    def compose(self, encoder: Encoder, seed: int) -> Composed:
        a = Assembly([encoder.model])
        trunk = a.module(encoder.model)
        inputs = [a.input(name, value) for name, value in zip(encoder.inputs, trunk.inputs, strict=True)]
        h = trunk(*inputs)
        stopped = a.stop(h) if self.cut else h
        found, losses = {}, []
        for place, size in enumerate(self.outputs):
            layers = head(f"head{place + 1}", [Linear(int(size))], encoder.embedding, seed)
            output = a.module(layers)(stopped if place + 1 in self.cut else h)
            found[f"task{place + 1}"] = output
            losses.append(self._loss(place))
        return Composed(a.model(found, doc=self.spec()), (names_of(inputs),), loss=" + ".join(losses))

    def _loss(self, place: int) -> str:
        kind = "cross_entropy" if self.outputs[place] > 1 else "mse"
        factor = "" if not self.weights else f"{format_scalar(self.weights[place])}*"
        return f"{factor}{kind}:output=task{place + 1},labels=labels{place + 1}"


@dataclass(frozen=True, kw_only=True)
class DANN(Recipe):
    """Ganin & Lempitsky, *Unsupervised Domain Adaptation by Backpropagation*, ICML 2015.

    The encoder is to tell classes and not to tell domains: the domain classifier trains to tell them, and its gradient
    goes into the encoder turned round, times lambda. Rows of the target domain have the label -100, which does not
    count; ``domain`` numbers the domain of every row.

    Attributes:
        classes, domains: how many. hidden: width of the domain classifier's two hidden layers.
        scale: lambda. scheduled: lambda is an input, ``lambda``, of every step; see `lambda_at`.
    """

    name: ClassVar[str] = "dann"
    category: ClassVar[str] = "supervised"
    optimizer: ClassVar[str] = "sgd:lr=0.01,momentum=0.9"

    classes: int = 10
    domains: int = 2
    hidden: int = 1024
    scale: float = 1.0
    scheduled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("hidden")
        if min(self.classes, self.domains) < 2 or not self.scale >= 0:
            raise SpecError(
                f"dann: {self.classes} classes, {self.domains} domains and scale {self.scale:g}; there are two of each "
                "at least, and the scale is not negative"
            )

    @staticmethod
    def lambda_at(progress: float) -> float:
        """2 / (1 + exp(-10 p)) - 1 at the share p of a run, section 4.1."""
        return 2 / (1 + math.exp(-10 * progress)) - 1

    def compose(self, encoder: Encoder, seed: int) -> Composed:
        a = Assembly([encoder.model])
        trunk = a.module(encoder.model)
        inputs = [a.input(name, value) for name, value in zip(encoder.inputs, trunk.inputs, strict=True)]
        h = trunk(*inputs)
        logits = a.module(head("classifier", [Linear(self.classes)], encoder.embedding, seed))(h)
        layers = head("domain", mlp([self.hidden] * 2, self.domains, norm=False), encoder.embedding, seed)
        domain = a.module(layers)(h)
        uses = [f"{h.name}->{node.name}" for node, _ in h.uses() if (node.name or "").startswith("domain/")]
        model = a.model({"logits": logits, "domain_logits": domain}, doc=self.spec())
        model = gradient_reversal(model, uses, "lambda" if self.scheduled else self.scale)
        loss = "cross_entropy:output=logits + cross_entropy:output=domain_logits,labels=domain"
        return Composed(model, (names_of(inputs),), loss=loss)
