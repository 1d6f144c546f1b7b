"""The table of optimizers, and optimizers from text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from gradcut.errors import SpecError
from gradcut.optimizers.adam import Adam, AdamW
from gradcut.optimizers.adaptive import Adagrad, RMSprop
from gradcut.optimizers.base import Optimizer, flatten, like_default, numbered
from gradcut.optimizers.layerwise import LAMB, LARS
from gradcut.optimizers.sgd import SGD
from gradcut.text import parse_spec, unknown

Kind = TypeVar("Kind", bound=Optimizer)

OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in (SGD, AdamW, Adam, RMSprop, Adagrad, LARS, LAMB)}


def parse_optimizer(text: str) -> Optimizer:
    """``"adamw:lr=1e-3,beta1=0.8"`` -> ``AdamW(lr=1e-3, betas=(0.8, 0.999))``.

    Raises SpecError for an unknown name or option (naming the nearest) and for a value out of its range.
    """
    name, options = parse_spec(text)
    if name not in OPTIMIZERS:
        raise SpecError(unknown("optimizer", name, OPTIMIZERS))
    return with_options(OPTIMIZERS[name](), options)


def with_options(optimizer: Kind, options: Mapping[str, object]) -> Kind:
    """The optimizer with some options changed, by the names of its fields or of text: ``betas``, or ``beta1``.

    Raises:
        SpecError: no such option (naming the nearest), or a value out of its range.
    """
    flat: dict[str, Any] = dict(flatten(optimizer))
    plural = {field.name: field.default for field in dataclasses.fields(optimizer) if isinstance(field.default, tuple)}
    for key, value in options.items():
        if key in plural and isinstance(value, (tuple, list)):
            flat |= numbered(key, like_default(f"{optimizer.name}: {key}", value, plural[key]))  # type: ignore[arg-type]
        elif key not in flat:
            raise SpecError(unknown(f"option of {optimizer.name}", key, flat))
        else:
            flat[key] = value
    return type(optimizer)(**{field.name: _unflatten(field, flat) for field in dataclasses.fields(optimizer)})


def _unflatten(field: dataclasses.Field[object], flat: Mapping[str, object]) -> Any:
    if isinstance(field.default, tuple):
        return tuple(flat[key] for key in numbered(field.name, field.default))
    return flat[field.name]
