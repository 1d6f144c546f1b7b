"""The text of losses: ``cross_entropy:output=logits + 0.5*mse:output=value``.

A term is a loss with its options, a loss graph ``FILE.onnx:its_input=model_output``, or a scalar output of the model by
its name, with a factor before it. A graph reads ``stop(model_output)`` through a mark.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradcut.errors import LossError, SpecError
from gradcut.losses.base import Loss
from gradcut.losses.classes import NLL, CrossEntropy
from gradcut.losses.elements import L1, MSE, BCEWithLogits, Cosine, Huber, KLDiv, NegCosine, SmoothL1
from gradcut.source import Source
from gradcut.text import Scalar, format_scalar, nearest, parse_spec

LOSSES: dict[str, type[Loss]] = {
    cls.name: cls for cls in (CrossEntropy, NLL, BCEWithLogits, MSE, L1, Huber, SmoothL1, KLDiv, Cosine, NegCosine)
}
#: A loss as text, as an instance, as a loss graph; or several: a list of them, each alone or as (factor, loss).
Objective = Source | Loss | Sequence[str | Loss | tuple[float, str | Loss]] | None
_GRAPHS = (".onnx", ".onnxtxt")
_FACTOR = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+|inf|nan)(?:[eE][-+]?\d+)?)\s*\*\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Term:
    """One summand of the objective: `factor` times a loss by its text."""

    text: str
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor):
            raise SpecError(f"the factor of {self.text!r} is {self.factor}; it is a finite number")

    def __str__(self) -> str:
        return self.text if self.factor == 1.0 else f"{format_scalar(self.factor)}*{self.text}"


def parse_loss(spec: str) -> Loss:
    """A loss from its text.

    Raises:
        LossError: no such loss, or no such option.
    """
    name, options = parse_spec(spec)
    if name not in LOSSES:
        near = nearest(name, LOSSES, 1)
        hint = f" Nearest: {near[0]}." if near else ""
        if re.search(r"[-+*]", name):
            raise LossError(f"{name!r} is no loss; a sum is written with blanks around +: 'mse + -0.5*l1:output=b'")
        raise LossError(
            f"there is no loss {name!r}.{hint} There are {', '.join(sorted(LOSSES))}, a scalar output of the model by "
            "its name, or a graph of your own: FILE.onnx"
        )
    cls = LOSSES[name]
    known = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    for key in options:
        if key not in known:
            raise LossError(f"{name} has no option {key!r}; it has {', '.join(known)}")
    return cls(**{key: _option(known[key], value) for key, value in options.items()})


def _option(kind: str, value: Scalar) -> Any:
    """What the text of an option says; the loss itself checks it."""
    if kind == "str":
        return format_scalar(value)
    if kind != "Numbers" or not isinstance(value, str) or not re.fullmatch(r"\[.+\]", value):
        return value
    try:
        return tuple(float(one) for one in re.split(r"[\s,]+", value[1:-1].strip()))
    except ValueError:
        return value


# --- several -------------------------------------------------------------------------------------------------


def parse_terms(spec: str) -> list[Term]:
    """The terms of a text: one for a single loss.

    Raises:
        LossError: a term is empty.
    """
    if os.path.isfile(spec):
        return [Term(spec)]
    terms = []
    for part in re.split(r"\s\+\s", spec):
        found = _FACTOR.fullmatch(part)
        text = (found[2] if found else part).strip()
        if not text:
            raise LossError(f"a term of {spec!r} is empty; write NAME:output=... + 0.5*NAME:output=...")
        terms.append(Term(text, float(found[1]) if found else 1.0))
    return terms


def split_path(spec: str) -> tuple[str | None, dict[str, str]]:
    """The file and the renames of ``FILE.onnx:its_input=model_output``; None where the text names a loss."""
    for suffix in _GRAPHS:
        head, found, rest = spec.rpartition(suffix)
        if found and (not rest or rest.startswith(":")):
            pairs = [item.partition("=") for item in rest[1:].split(",") if item]
            return head + suffix, {name.strip(): output.strip() for name, _, output in pairs}
    if os.path.isfile(spec):
        return spec, {}
    return None, {}


def as_text(loss: Any) -> str | None:
    """The text of a loss given as text, as an instance, or as a list of either, each alone or as (factor, loss).

    None for what can only be a model, given as a path or in memory; and for no loss the empty text.

    Raises:
        LossError: a list that is empty or holds something else.
    """
    if loss is None or isinstance(loss, str):
        return loss or ""
    if isinstance(loss, Loss):
        return loss.spec()
    if not isinstance(loss, (list, tuple)):
        return None
    if not loss:
        raise LossError("the list of losses is empty; give at least one, or loss=None")
    items: Sequence[Any] = [loss] if _is_pair(loss) else loss
    return " + ".join(str(term) for item in items for term in _terms(item))


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and _is_number(item[0])


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bytes, bool)) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _terms(item: Any) -> list[Term]:
    factor, loss = item if isinstance(item, tuple) and len(item) == 2 else (1.0, item)
    text = loss.spec() if isinstance(loss, Loss) else os.fspath(loss) if isinstance(loss, os.PathLike) else loss
    if not isinstance(text, str) or not _is_number(factor):
        raise LossError(
            "a term of the loss is text, gradcut.losses.NAME(...), or (factor, one of these); a loss graph is given by "
            f"its path. This is none: {item!r:.80}"
        )
    return [dataclasses.replace(term, factor=float(factor) * term.factor) for term in parse_terms(text)]


def terms_of(wiring: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The wiring of each term, from the manifest's of the whole loss: one for a single loss, none without."""
    if wiring is None:
        return []
    terms: list[Mapping[str, Any]] = wiring.get("terms") or [wiring]
    return terms
