"""What a recipe is: a category, a name, its numbers, and the model that it composes around an encoder."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.losses.base import option
from gradcut.recipes.assembly import Assembly, Module
from gradcut.recipes.encoder import Encoder
from gradcut.state import EMA, State
from gradcut.text import Scalar, format_spec, nearest

CATEGORIES = ("contrastive", "non-contrastive", "generative", "self-distillation", "supervised")


@dataclass(frozen=True)
class Composed:
    """A model to train.

    Attributes:
        views: for each view, the inputs that it is fed to, in the order of the encoder's. spread: the outputs
            [N, d] whose spread over the sphere is looked at. state: what moves without a gradient.
        loss: None: the model's scalar output.
    """

    model: ir.Model
    views: tuple[tuple[str, ...], ...]
    spread: tuple[str, ...] = ()
    state: tuple[State, ...] = ()
    loss: str | None = None


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """A way to train, with its numbers; its text is ``simsiam:projector=128,dim=128``.

    Class attributes:
        category: one of `CATEGORIES`. note: what a command should say of it.
    """

    name: ClassVar[str]
    category: ClassVar[str]
    note: ClassVar[str] = ""
    has_memory_bank: ClassVar[bool] = False
    has_momentum_encoder: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = option(f"{self.name}: {one.name}", str(one.type), getattr(self, one.name))
            object.__setattr__(self, one.name, value)

    @classmethod
    def of(cls, options: Mapping[str, Scalar]) -> Self:
        """The recipe with these options.

        Raises:
            SpecError: no such option, or a value that it does not take.
        """
        known = [one.name for one in dataclasses.fields(cls)]
        for key in options:
            if key not in known:
                near = ", ".join(nearest(key, known, 1) or known)
                raise SpecError(f"{cls.name} has no option {key!r}. Nearest: {near}.")
        numbers = {one.name for one in dataclasses.fields(cls) if one.type == "Numbers"}
        return cls(**{key: numbers_of(value) if key in numbers else value for key, value in options.items()})

    def options(self) -> dict[str, Any]:
        """What differs from the defaults."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        changed = {one.name: values[one.name] for one in dataclasses.fields(self) if values[one.name] != one.default}
        return {name: _as_text(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    def spec(self) -> str:
        """Text that `gradcut.recipes.parse` reads back."""
        return format_spec(self.name, self.options())

    @classmethod
    def summary(cls) -> str:
        """What it is, and its options with their defaults."""
        said = (inspect.getdoc(cls) or "").partition("\n")[0]
        given = {one.name: one.default for one in dataclasses.fields(cls)}
        defaults = {name: _as_text(one) if isinstance(one, tuple) else one for name, one in given.items()}
        return f"{said} {format_spec(cls.name, defaults)}"  # type: ignore[arg-type]

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise SpecError(f"{self.name}: {name} is {getattr(self, name)}; it is above 0")

    def _require_share(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"{self.name}: {name} is {getattr(self, name)}; it is from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Recipe(Numbered, ABC):
    """A way to train an encoder.

    Class attributes:
        optimizer: the published one, as text.
    """

    optimizer: ClassVar[str]

    @abstractmethod
    def compose(self, encoder: Encoder, seed: int) -> Composed:
        """The model to train; `seed`: what fresh weights are drawn from."""


def numbers_of(value: Any) -> Any:
    """The numbers of ``[10 2]``; the recipe checks anything else."""
    if not (isinstance(value, str) and value.startswith("[") and value.endswith("]")):
        return value
    try:
        return tuple(float(one) for one in value[1:-1].split())
    except ValueError:
        return value


def _as_text(numbers: tuple[float, ...]) -> str:
    return "[" + " ".join(f"{one:g}" for one in numbers) + "]"


def view_inputs(assembly: Assembly, encoder: Module, name: str) -> list[ir.Value]:
    """Inputs for one view: ``view1``, or ``view1_<input>`` of an encoder that takes several."""
    inputs = encoder.inputs
    return [assembly.input(name if len(inputs) == 1 else f"{name}_{value.name}", value) for value in inputs]


def averages(targets: Sequence[Module], of: Sequence[Module], decay: float, steps: int) -> EMA:
    """Each parameter of some modules as the running average of another's; `steps`: until the decay is 1, 0: never."""
    pairs = {
        target: parameter
        for mine, its in zip(targets, of, strict=True)
        for target, parameter in zip(mine.parameters, its.parameters, strict=True)
    }
    return EMA(pairs, decay=decay, until=steps or None)


def names_of(values: list[ir.Value]) -> tuple[str, ...]:
    return tuple(value.name or "" for value in values)
