"""Training on adversarial examples: FGSM and PGD.

Two graphs over one set of weights: the training graph, and that of the gradient by the input, which is fed the weights
that the session holds. The example that the second makes is data to the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradcut.api import vjp
from gradcut.errors import FeedError, LossError, SpecError
from gradcut.losses import parse_loss
from gradcut.passes import AttachLoss
from gradcut.passes.base import LOSS, read_json
from gradcut.recipes.assembly import Assembly
from gradcut.recipes.base import Composed, Recipe, names_of
from gradcut.recipes.encoder import Encoder, View
from gradcut.recipes.program import Program, RecipeSession, StepResult
from gradcut.runtime.backend import Runner, to_device
from gradcut.source import load

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Adversarial(Recipe):
    """Goodfellow et al., *Explaining and Harnessing Adversarial Examples*, ICLR 2015; Madry et al., ICLR 2018.

    A classifier trains on x' in place of x. By one step x' = x + eps sign(dL/dx), FGSM; by several, PGD, each of `size`
    and brought back to within eps of x. The gradient by the input is taken in inference mode.

    Attributes:
        eps: the most that an element changes. attacks: steps of the attack. size: of each; 0: eps for one step, and
            2.5 eps / attacks for several, as Madry et al. have it.
        start: from a random point within eps.
        low, high: the bounds of the data; an example is clipped to them.
        loss: the objective, any of `gradcut.losses`.
    """

    name: ClassVar[str] = "adversarial"
    category: ClassVar[str] = "supervised"
    note: ClassVar[str] = (
        "examples are made by the session that gradcut.recipes.adversarial(...) gives in Python: gradcut train would "
        "train on the batch as it is"
    )
    optimizer: ClassVar[str] = "sgd:lr=0.01,momentum=0.9,weight_decay=5e-4"

    eps: float = 0.1
    attacks: int = 1
    size: float = 0.0
    start: bool = False
    low: float = 0.0
    high: float = 1.0
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("eps", "attacks")
        if self.size < 0 or not self.low < self.high:
            raise SpecError(f"adversarial: size {self.size:g} is at least 0, and {self.low:g} below {self.high:g}")
        if parse_loss(self.loss).output:
            raise LossError(f"adversarial: what the loss reads is the model's output; leave it out of {self.loss!r}")

    @property
    def stride(self) -> float:
        """The size of one step of the attack."""
        return self.size or (self.eps if self.attacks == 1 else 2.5 * self.eps / self.attacks)

    def compose(self, encoder: Encoder, seed: int) -> Composed:
        a = Assembly([encoder.model])
        classifier = a.module(encoder.model)
        inputs = [a.input(name, value) for name, value in zip(encoder.inputs, classifier.inputs, strict=True)]
        if len(inputs) != 1 or inputs[0].dtype is None or not inputs[0].dtype.is_floating_point():
            raise SpecError(
                f"adversarial: the model takes {', '.join(encoder.inputs)}; an attack is on one float input"
            )
        output = classifier(*inputs)
        model = a.model({encoder.embedding.name or "logits": output}, doc=self.spec())
        return Composed(model, (names_of(inputs),), loss=self.loss)


@dataclass(frozen=True)
class AdversarialProgram(Program):
    """A program whose session makes its own examples."""

    def session(self, device: str = "cpu", threads: int | None = None) -> AdversarialSession:
        return AdversarialSession(self, device, threads)


class AdversarialSession(RecipeSession):
    """Trains on examples that are made of each batch as it comes."""

    def __init__(self, program: Program, device: str = "cpu", threads: int | None = None) -> None:
        super().__init__(program, device, threads)
        assert isinstance(program.recipe, Adversarial)
        self.recipe = program.recipe
        self._moving = tuple(self.tensors())
        self._attack, self._labels, self._seed_name, self._slope = self._compiled(program.encoder)
        self._rng = np.random.default_rng(self.training.manifest["seed"] % 2**64)

    def _compiled(self, encoder: Encoder) -> tuple[Runner, str, str, str]:
        """The graph of dL/dx, and the names of its labels, its cotangent and its result."""
        model = encoder.inference(self._moving)
        AttachLoss(spec=self.recipe.loss)(model)
        wiring = read_json(model, LOSS)
        graph = vjp(model, wrt=[encoder.inputs[0]], of=[wiring["loss"]])
        runner = Runner(load(graph), "cpu", self._threads)
        cotangent = next(
            name for name in runner.inputs if name not in (*self._moving, *encoder.inputs, wiring["labels"])
        )
        return runner, wiring["labels"], cotangent, runner.outputs[1]

    def slope(self, x: Array, labels: Array) -> Array:
        """dL/dx with the weights of now, in inference mode."""
        feeds = {**self.tensors(), self.program.encoder.inputs[0]: x, self._labels: labels}
        feeds[self._seed_name] = np.ones((), x.dtype)
        given = {name: to_device(np.ascontiguousarray(feeds[name]), "cpu") for name in self._attack.inputs}
        return np.array(self._attack.run(given, {})[self._slope].numpy())

    def attack(self, x: Array, labels: Array) -> Array:
        """Examples near `x`, of its shape and dtype, that the model of now is worse at.

        Raises:
            FeedError: `x` reaches beyond the bounds of the data, and would be clipped to them.
        """
        recipe = self.recipe
        if x.size and (x.min() < recipe.low or x.max() > recipe.high):
            raise FeedError(
                f"the batch reaches from {x.min():g} to {x.max():g}, and adversarial has its data from "
                f"{recipe.low:g} to {recipe.high:g}: say low= and high="
            )
        found = x + self._rng.uniform(-recipe.eps, recipe.eps, x.shape) if recipe.start else x
        for _ in range(recipe.attacks):
            found = found.astype(x.dtype) + recipe.stride * np.sign(self.slope(found.astype(x.dtype), labels))
            found = np.clip(np.clip(found, x - recipe.eps, x + recipe.eps), recipe.low, recipe.high)
        return found.astype(x.dtype)

    def step(self, *views: View, lr: float | None = None, **more: Array) -> StepResult:
        """One update on what `attack` makes of the batch; the result's outputs hold it as ``example``.

        Raises:
            FeedError: the batch does not fit.
        """
        feeds = self.program.feeds(*views, **more)
        self.program.check(feeds)
        example = self.attack(feeds[self.program.encoder.inputs[0]], feeds[self._labels])
        result = super().step(example, lr=lr, **more)
        return StepResult(result.loss, result.diagnostics, {**result.outputs, "example": example}, result.step)
