"""What is asked of the optimizer: groups of parameters by pattern, which parameters decay, clipping, averages.

A parameter takes the options of every group that has it; where two say the same option, the later group wins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.errors import PatternError, SpecError
from gradcut.optimizers.base import Optimizer
from gradcut.optimizers.parse import with_options
from gradcut.optimizers.plan import UpdatePlan
from gradcut.spec import match_parameters
from gradcut.text import parse_spec

Options = Mapping[str, object]
#: A mapping from patterns to options, or texts such as ``head.*:lr=1e-2``.
Groups = Mapping[str, Options] | Sequence[str] | str


@dataclass(frozen=True)
class Group:
    """One group: the parameters that `pattern` matches, and the options that they have of their own."""

    pattern: str
    options: Options


def as_groups(groups: Groups | None) -> tuple[Group, ...]:
    """Groups from a mapping, one text or several.

    Raises:
        SpecError: a text or an entry that is no group.
    """
    if groups is None:
        return ()
    if isinstance(groups, str):
        return (_parsed(groups),)
    if isinstance(groups, Mapping):
        return tuple(_entry(pattern, options) for pattern, options in groups.items())
    if not isinstance(groups, Sequence):
        raise SpecError(f"groups are options by pattern, such as {{'head.*': {{'lr': 1e-2}}}}, not {groups!r}")
    return tuple(_parsed(text) for text in groups)


def _parsed(text: str) -> Group:
    pattern, colon, options = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not pattern or not options:
        raise SpecError(f"{text!r} is not a group; write PATTERN:option=value,..., such as 'head.*:lr=1e-2'")
    return Group(pattern, parse_spec(f":{options}")[1])


def _entry(pattern: object, options: object) -> Group:
    if not isinstance(pattern, str) or not pattern or not isinstance(options, Mapping) or not options:
        raise SpecError(
            f"a group is a pattern and its options, such as 'head.*': {{'lr': 1e-2}}, not {pattern!r}: {options!r}"
        )
    return Group(
        pattern, {key: value.item() if isinstance(value, np.generic) else value for key, value in options.items()}
    )


@dataclass(frozen=True)
class UpdateRequest:
    """What was asked for, before it is known which parameters train; the fields are those of `gradcut.compile`.

    Attributes:
        phased: it is for one of several phases: a group may match nothing that trains in this one.

    Raises:
        SpecError: an option that the optimizer has not, or a value out of its range.
    """

    optimizer: Optimizer
    groups: tuple[Group, ...] = ()
    no_decay: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    ema: float | None = None
    phased: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.no_decay, bool):
            raise SpecError(f"no_decay is True or False, not {self.no_decay!r}")
        self._plan({group.pattern: self._with(self.optimizer, group) for group in self.groups})

    def resolve(
        self, graph: ir.Graph, trained: Collection[str], is_bias_or_norm: Callable[[str], bool]
    ) -> tuple[UpdatePlan, dict[str, list[int]], list[str]]:
        """The plan; the numbers of the groups of each parameter; the parameters that `no_decay` spares.

        Args:
            trained: what is updated.
            is_bias_or_norm: by name; asked where `no_decay` is.

        Raises:
            PatternError: a group matches nothing that trains.
        """
        spared = dict.fromkeys(name for name in trained if self.no_decay and is_bias_or_norm(name))
        own = {name: self._without_decay() if name in spared else self.optimizer for name in trained}
        member: dict[str, list[int]] = {name: [] for name in trained}
        for number, group in enumerate(self.groups):
            for name in self._matched(group.pattern, graph, trained):
                own[name] = self._with(own[name], group)
                member[name].append(number)
        return self._plan(own), member, list(spared)

    def said(self) -> dict[str, Any]:
        """What is asked beside an optimizer alone, by the names of the options."""
        beside = {"clip_norm": self.clip_norm, "clip_value": self.clip_value, "ema": self.ema}
        named = {name: value for name, value in beside.items() if value is not None}
        groups = ", ".join(repr(group.pattern) for group in self.groups)
        return ({"groups": groups} if groups else {}) | ({"no_decay": True} if self.no_decay else {}) | named

    def _plan(self, own: Mapping[str, Optimizer]) -> UpdatePlan:
        return UpdatePlan(self.optimizer, own, self.clip_norm, self.clip_value, self.ema)

    def _with(self, optimizer: Optimizer, group: Group) -> Optimizer:
        try:
            return with_options(optimizer, group.options)
        except SpecError as error:
            raise SpecError(f"group {group.pattern!r}: {error}") from error

    def _without_decay(self) -> Optimizer:
        return replace(self.optimizer, weight_decay=0.0)  # type: ignore[call-arg]

    def _matched(self, pattern: str, graph: ir.Graph, trained: Collection[str]) -> list[str]:
        try:
            return match_parameters([pattern], graph, trained)
        except PatternError as error:
            if self.phased:
                return []
            raise PatternError(
                pattern, "parameter that trains and no module scope of one (--group)", error.nearest
            ) from error
