"""The optimizers, each a frozen dataclass with torch.optim's argument names and defaults.

An optimizer says which state it keeps per parameter (`slots`), prints itself as text (`spec`) and builds its
update out of plain ONNX operators. State and formulas are those of the torch.optim documentation, so that a
checkpoint means the same here, in `gradcut.runtime.host_optimizer` and in torch.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.ops import Builder
from gradcut.text import Scalar, format_spec, join_names, nearest, parse_spec

_LARGEST = 3.4e38  # of single precision
Updated: TypeAlias = tuple[ir.Value, dict[str, ir.Value]]


class Scalars:
    """What `Optimizer.prepare` computes once per graph; cast once per dtype it is used in.

    In double precision: single has 1 - 0.999 off by 5e-5.
    """

    def __init__(self, b: Builder, values: Mapping[str, ir.Value]) -> None:
        self._b, self._values = b, values
        self._cast: dict[tuple[str, ir.DataType], ir.Value] = {}

    def like(self, name: str, value: ir.Value) -> ir.Value:
        """The scalar `name` in the dtype of `value`."""
        assert value.dtype is not None
        key = (name, value.dtype)
        if key not in self._cast:
            self._cast[key] = self._b.Cast(self._values[name], to=value.dtype)
        return self._cast[key]


@dataclass(frozen=True)
class Optimizer(ABC):
    """What an optimizer is to the compiler."""

    name: ClassVar[str]

    lr: float = 1e-3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _like_default(f"{self.name}: {field.name}", getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """The names of the state tensors per parameter, each of the parameter's shape, zeros at first."""

    @abstractmethod
    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        """The scalars every parameter's update shares, built once per graph.

        Args:
            lr: the learning rate of this step, a FLOAT scalar.
            step: updates done before this one, an INT64 scalar: 0 at first.
        """

    def update(
        self,
        b: Builder,
        prepared: Scalars,
        parameter: ir.Value,
        gradient: ir.Value,
        slots: Mapping[str, ir.Value],
    ) -> Updated:
        """Build the update of one parameter: its next value and its next slots, of the dtypes they had.

        Computed in the parameter's dtype; in FLOAT where that is a half precision type, whose range eps and
        the squares of gradients leave.
        """
        work = ir.DataType.DOUBLE if parameter.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        state = {slot: b.Cast(slots[slot], to=work) for slot in self.slots}
        operands = b.Cast(parameter, to=work), b.Cast(gradient, to=work)
        with b.arithmetic():
            value, state = self._update(b, prepared, *operands, state)
        return b.Cast(value, to=parameter.dtype), {
            slot: b.Cast(state[slot], to=slots[slot].dtype) for slot in self.slots
        }

    @abstractmethod
    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """`update` within one dtype and within ``b.arithmetic()``."""

    def spec(self) -> str:
        """Text that `parse_optimizer` reads back; only what differs from the defaults."""
        defaults = _flatten(type(self)())
        return format_spec(self.name, {k: v for k, v in _flatten(self).items() if v != defaults[k]})


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Sutskever et al. 2013), as torch.optim.SGD."""

    name: ClassVar[str] = "sgd"

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self.lr, f"{self.name}: lr")
        for option in ("momentum", "weight_decay"):
            _require(getattr(self, option) >= 0, self, option, "at least 0")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise SpecError("sgd: nesterov=true needs momentum above 0 and dampening=0")

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        """The new gradient's share in the buffer is 1 in the first step, then 1 - dampening, as torch's."""
        values = {"lr": b.Cast(lr, to=ir.DataType.DOUBLE)}
        if self.momentum and self.dampening:
            one, rest = (b.constant(value, ir.DataType.DOUBLE) for value in (1.0, 1.0 - self.dampening))
            values["share"] = b.Where(b.Equal(step, 0), one, rest)
        return Scalars(b, values)

    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """d = g + wd p;  buf' = momentum buf + share d;  p' = p - lr (buf', Nesterov: d + momentum buf')."""
        lr = prepared.like("lr", p)
        d = -g if self.maximize else g
        if self.weight_decay:
            d = d + p * self.weight_decay
        if not self.momentum:
            return p - d * lr, {}
        buffer = slots["momentum_buffer"] * self.momentum + (d * prepared.like("share", p) if self.dampening else d)
        direction = d + buffer * self.momentum if self.nesterov else buffer
        return p - direction * lr, {"momentum_buffer": buffer}


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam (Kingma, Ba 2015), decoupled weight decay (Loshchilov, Hutter 2019), as torch.optim.AdamW."""

    name: ClassVar[str] = "adamw"

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    amsgrad: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self.lr, f"{self.name}: lr")
        for option in ("eps", "weight_decay"):
            _require(getattr(self, option) >= 0, self, option, "at least 0")
        _require(all(0 <= beta < 1 for beta in self.betas), self, "betas", "from 0 to below 1")

    @property
    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.amsgrad else ()))

    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        """root = sqrt(1 - b2^t);  scale = lr root / (1 - b1^t);  eps = eps root;  decay = 1 - lr wd."""
        rate, done = (b.Cast(value, to=ir.DataType.DOUBLE) for value in (lr, step))
        with b.arithmetic():
            t = done + 1.0
            first, second = (1.0 - b.Pow(b.constant(beta, ir.DataType.DOUBLE), t) for beta in self.betas)
            root = b.Sqrt(second)
            values = {"scale": rate * root / first, "eps": root * self.eps}
            if self.weight_decay:
                values["decay"] = 1.0 - rate * self.weight_decay
        return Scalars(b, values)

    def _update(
        self, b: Builder, prepared: Scalars, p: ir.Value, g: ir.Value, slots: Mapping[str, ir.Value]
    ) -> Updated:
        """m' = b1 m + (1 - b1) g;  v' = b2 v + (1 - b2) g g;  p' = decay p - scale m' / (sqrt(v') + eps).

        13 full-size operators (12 without decay). Torch writes lr / (1 - b1^t) m' / (sqrt(v') / root + eps);
        numerator and denominator times root are one operator less. To divide them by scale instead would save
        no further one, and break at lr = 0.
        """
        beta1, beta2 = self.betas
        sign = -1.0 if self.maximize else 1.0
        m = slots["exp_avg"] * beta1 + g * (sign * (1.0 - beta1))
        v = slots["exp_avg_sq"] * beta2 + g * g * (1.0 - beta2)
        state = {"exp_avg": m, "exp_avg_sq": v}
        if self.amsgrad:
            v = state["max_exp_avg_sq"] = b.Max(slots["max_exp_avg_sq"], v)
        moved = m * prepared.like("scale", p) / (b.Sqrt(v) + prepared.like("eps", p))
        kept = p * prepared.like("decay", p) if self.weight_decay else p
        return kept - moved, state


OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in (SGD, AdamW)}


def parse_optimizer(text: str) -> Optimizer:
    """``"adamw:lr=1e-3,beta1=0.8"`` -> ``AdamW(lr=1e-3, betas=(0.8, 0.999))``.

    Raises SpecError for an unknown name or option (naming the nearest) and for a value out of its range.
    """
    name, options = parse_spec(text)
    if name not in OPTIMIZERS:
        raise SpecError(_unknown("optimizer", name, OPTIMIZERS))
    kind = OPTIMIZERS[name]
    flat = _flatten(kind())
    for key, value in options.items():
        if key not in flat:
            raise SpecError(_unknown(f"option of {name}", key, flat))
        flat[key] = value
    fields: dict[str, Any] = {field.name: _unflatten(field, flat) for field in dataclasses.fields(kind)}
    return kind(**fields)


def _unknown(what: str, name: str, known: Mapping[str, object]) -> str:
    close = nearest(name, known, 1)
    hint = f" Nearest: {close[0]}." if close else ""
    return f"{name!r} is no {what}.{hint} There are {join_names(known)}."


def _flatten(optimizer: Optimizer) -> dict[str, Scalar]:
    """The options as scalars: betas=(a, b) as beta1=a, beta2=b."""
    flat: dict[str, Scalar] = {}
    for field in dataclasses.fields(optimizer):
        value = getattr(optimizer, field.name)
        flat |= _numbered(field.name, value) if isinstance(value, tuple) else {field.name: value}
    return flat


def _numbered(plural: str, values: tuple[float, ...]) -> dict[str, Scalar]:
    return {f"{plural.removesuffix('s')}{i}": value for i, value in enumerate(values, start=1)}


def _unflatten(field: dataclasses.Field[object], flat: Mapping[str, Scalar]) -> object:
    if isinstance(field.default, tuple):
        return tuple(flat[key] for key in _numbered(field.name, field.default))
    return flat[field.name]


def _like_default(what: str, value: object, default: object) -> object:
    """`value` as the kind of its default: a flag, finite floats (integers are taken), or a tuple of them."""
    if isinstance(default, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(default):
            raise SpecError(f"{what} is {len(default)} numbers, not {value!r}")
        return tuple(_like_default(what, each, 0.0) for each in value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise SpecError(f"{what} is true or false, not {value!r}")
        return value
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SpecError(f"{what} is a finite number, not {value!r}")
    return number


def check_rate(lr: object, what: str = "lr") -> float:
    """A learning rate as a float.

    Raises:
        SpecError: it is negative, or not finite in single precision, in which graphs take it.
    """
    rate = _like_default(what, lr, 0.0)
    assert isinstance(rate, float)
    if not 0 <= rate <= _LARGEST:
        wanted = "at least 0" if rate < 0 else f"at most {_LARGEST:.1e}"
        raise SpecError(f"{what} must be {wanted}, and is {rate!r}")
    return rate


def _require(condition: bool, optimizer: Optimizer, option: str, range_: str) -> None:
    if not condition:
        value = getattr(optimizer, option)
        raise SpecError(f"{optimizer.name}: {option} must be {range_}, and is {value!r}")
