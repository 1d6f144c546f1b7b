"""State that is not a gradient's business, declared with the graph that moves it: averages, queues, centres, counters.

A `State` names tensors of the model: initializers, or inputs that it gives a start. They are constants to
differentiation, stay in the checkpoint, and never train. After each update of the parameters a graph of their own gives
the next of each.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.dims import is_float
from gradcut.errors import SpecError
from gradcut.ops import Builder, Names
from gradcut.source import Source, own
from gradcut.spec import match
from gradcut.text import hint, join_names

Array = np.ndarray[Any, Any]
NEXT = "_next"
#: The input of an update graph that is the number of updates done before this one, an INT64 scalar.
STEP = "step"


@dataclass(frozen=True, eq=False)
class State:
    """Tensors that move by a graph.

    Attributes:
        name: of one tensor, or of several that move together: initializers or inputs of the model.
        update: a graph (a path, a proto or a model). Its inputs are matched by name: to states, as they are before;
            to parameters, as they are after the optimizer; to any other value of the model, as the step computed it;
            and ``step``, an INT64 scalar: the updates before this one, of all steps and phases that move it. It gives
            ``<name>_next`` for each name, of the same type and shape; the output of a graph for one name may have any
            name.
        initial: what it starts as, for several names an array by each; None: what the model holds.
    """

    name: str | Sequence[str]
    update: Source
    initial: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,) if isinstance(self.name, str) else tuple(self.name)

    def resolved(self, known: Mapping[str, ir.Value], parameters: Mapping[str, ir.Value]) -> State:
        """With patterns replaced by names of the model; they stand for parameters, an exact name for any tensor."""
        return self

    def graph(self, known: Mapping[str, ir.Value], opset: int) -> ir.Model:
        """The update, a model of the caller's to change; `known` are the values of the imported model."""
        return own(self.update)

    def start(self, name: str) -> Array | None:
        """What was said that a tensor starts as."""
        given = self.initial
        if isinstance(given, Mapping):
            given = given.get(name)
        elif name not in self.names:
            return None
        return None if given is None else np.asarray(given)


@dataclass(frozen=True, eq=False)
class EMA(State):
    """Exponential moving averages of parameters: t' = d t + (1 - d) p, p after the optimizer's update.

    With `until` d rises to 1 along a cosine, as BYOL's (Grill et al. 2020, section 3.3): of K updates, at update k it
    is 1 - (1 - decay) (cos(pi k / K) + 1) / 2.

    Attributes:
        name: the averaged tensor by the tensor that averages it, ``{"target.w": "w"}``; either may have one ``*``,
            which stands for the same text in both: ``{"target.*": "encoder.*"}``.
        decay: d. until: K, or None for a constant d.
    """

    name: Mapping[str, str]  # type: ignore[assignment]
    update: Source = field(default=None, repr=False)  # type: ignore[assignment]
    initial: Any = None
    decay: float = 0.99
    until: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, Mapping) or not self.name:
            raise SpecError(f"EMA: what is averaged is said as {{'target.*': 'encoder.*'}}, not {self.name!r}")
        if isinstance(self.decay, bool) or not isinstance(self.decay, numbers.Real) or not 0 <= self.decay <= 1:
            raise SpecError(f"EMA: decay must be from 0 to 1, such as 0.99, and is {self.decay!r}")
        if self.until is not None and not (isinstance(self.until, int) and self.until > 0):
            raise SpecError(f"EMA: until is a number of updates of at least 1, not {self.until!r}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name)

    def resolved(self, known: Mapping[str, ir.Value], parameters: Mapping[str, ir.Value]) -> EMA:
        floats = {name: value for name, value in known.items() if is_float(value)}
        pairs: dict[str, str] = {}
        for pattern, of in self.name.items():
            pairs |= _pairs(pattern, of, parameters if "*" in str(pattern) else floats)
        _check_pairs(pairs, floats)
        return EMA(pairs, initial=self.initial, decay=self.decay, until=self.until)

    def graph(self, known: Mapping[str, ir.Value], opset: int) -> ir.Model:
        inputs = {n: ir.Value(name=n, type=known[n].type, shape=known[n].shape) for p in self.name.items() for n in p}
        step = ir.Value(name=STEP, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        b = Builder(Names([*inputs, STEP]), prefix="ema_")
        outputs = []
        with b.arithmetic():
            decay = self._decay(b, step)
            for target, of in self.name.items():
                t, p = inputs[target], inputs[of]
                mixed = t * b.Cast(decay, to=t.dtype) + b.Cast(p, to=t.dtype) * b.Cast(1.0 - decay, to=t.dtype)
                mixed.name, mixed.shape = f"{target}{NEXT}", t.shape
                outputs.append(mixed)
        graph = ir.Graph([*inputs.values(), step], outputs, nodes=b.nodes, opset_imports={"": opset}, name="ema")
        return ir.Model(graph, ir_version=10)

    def _decay(self, b: Builder, step: ir.Value) -> ir.Value:
        """d of this update, a DOUBLE scalar: single has 1 - 0.996 off by 1e-5."""
        if self.until is None:
            return b.constant(self.decay, ir.DataType.DOUBLE)
        done = b.Min(b.Cast(step, to=ir.DataType.DOUBLE), b.constant(float(self.until), ir.DataType.DOUBLE))
        # the runtime has a Cos of floats alone
        angle = b.Cast(done * (math.pi / self.until), to=ir.DataType.FLOAT)
        return b.Sub(1.0, b.Cast(b.Cos(angle) + 1.0, to=ir.DataType.DOUBLE) * ((1.0 - self.decay) / 2.0))


def _pairs(pattern: str, of: str, known: Mapping[str, ir.Value]) -> dict[str, str]:
    if not isinstance(pattern, str) or not isinstance(of, str) or pattern.count("*") != of.count("*"):
        raise SpecError(f"EMA: {pattern!r}: {of!r} have one * each, or none")
    if pattern.count("*") > 1:
        raise SpecError(f"EMA: {pattern!r} has more than one *")
    targets = match(pattern, known)
    if not targets:
        raise SpecError(f"EMA: {pattern!r} names no float tensor of the model{hint(pattern, known)}")
    before, _, after = pattern.partition("*")
    stems = [name[len(before) : len(name) - len(after)] if "*" in pattern else "" for name in targets]
    pairs = {target: of.replace("*", stem) for target, stem in zip(targets, stems, strict=True)}
    lost = [name for name in pairs.values() if name not in known]
    if lost:
        raise SpecError(f"EMA: the model has no float tensor {join_names(lost, 3)}{hint(lost[0], known)}")
    return pairs


def _check_pairs(pairs: Mapping[str, str], known: Mapping[str, ir.Value]) -> None:
    for target, of in pairs.items():
        t, p = known[target].shape, known[of].shape
        if target == of:
            raise SpecError(f"EMA: {target!r} cannot be the average of itself")
        if t is not None and p is not None and t != p:
            raise SpecError(f"EMA: {target!r} is {t}, and cannot be the average of {of!r}, which is {p}")


def as_states(given: Any) -> tuple[State, ...]:
    """One state or several.

    Raises:
        SpecError: something else, or a tensor that is declared twice.
    """
    several = (given,) if isinstance(given, State) else tuple(given or ())
    for one in several:
        if not isinstance(one, State):
            raise SpecError(f"state is gradcut.State(...) or gradcut.EMA(...), or a list of them, not {one!r}")
        named = isinstance(one.name, (str, Sequence, Mapping)) and one.names
        if not named or not all(isinstance(name, str) for name in one.names):
            raise SpecError(f"a state's name is that of a tensor of the model, or several in a list, not {one.name!r}")
    return several


def check_twice(states: Sequence[State]) -> None:
    """Raise where one tensor is declared twice."""
    names = [name for one in states for name in one.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(f"{join_names(twice)} {'is' if len(twice) == 1 else 'are'} declared as state twice")
