"""What an optimizer is: a frozen dataclass that names its state and builds its update out of plain ONNX operators."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import onnx_ir as ir

from gradcut.errors import SpecError
from gradcut.ops import Builder
from gradcut.text import Scalar, format_spec

_LARGEST = 3.4e38  # of single precision
Updated: TypeAlias = tuple[ir.Value, dict[str, ir.Value]]


class Scalars:
    """What is computed once per graph, such as by `Optimizer.prepare`; cast once per dtype it is used in.

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
            value = like_default(f"{self.name}: {field.name}", getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)
        check_rate(self.lr, f"{self.name}: lr")

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """The names of the state tensors per parameter, each of the parameter's shape."""

    def initial(self, slot: str) -> float:
        """What every element of a slot is before the first step."""
        return 0.0

    @abstractmethod
    def prepare(self, b: Builder, lr: ir.Value, step: ir.Value) -> Scalars:
        """The scalars every parameter's update shares, built once per graph.

        Args:
            lr: the learning rate of this step, a FLOAT or DOUBLE scalar.
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
        work = work_dtype(parameter)
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
        defaults = flatten(type(self)())
        return format_spec(self.name, {k: v for k, v in flatten(self).items() if v != defaults[k]})


def work_dtype(parameter: ir.Value) -> ir.DataType:
    """What the update of a parameter is computed in."""
    return ir.DataType.DOUBLE if parameter.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT


def descent(g: ir.Value, p: ir.Value, weight_decay: float, maximize: bool = False) -> ir.Value:
    """What is to be descended: g, or -g, with L2 decay wd p in it."""
    decayed = p * weight_decay if weight_decay else None
    d: ir.Value = (-g if maximize else g) if decayed is None else (decayed - g if maximize else decayed + g)
    return d


def norm(b: Builder, x: ir.Value) -> ir.Value:
    """The Euclidean norm of all elements, a scalar of x's dtype."""
    return b.Sqrt(b.op("ReduceSumSquare", x, keepdims=0, shape=ir.Shape([])))


# --- options -------------------------------------------------------------------------------------------------


def flatten(optimizer: Optimizer) -> dict[str, Scalar]:
    """The options as scalars: betas=(a, b) as beta1=a, beta2=b."""
    flat: dict[str, Scalar] = {}
    for field in dataclasses.fields(optimizer):
        value = getattr(optimizer, field.name)
        flat |= numbered(field.name, value) if isinstance(value, tuple) else {field.name: value}
    return flat


def numbered(plural: str, values: tuple[float, ...]) -> dict[str, Scalar]:
    """``("betas", (a, b))`` -> ``{"beta1": a, "beta2": b}``."""
    return {f"{plural.removesuffix('s')}{i}": value for i, value in enumerate(values, start=1)}


def like_default(what: str, value: object, default: object) -> object:
    """`value` as the kind of its default: a flag, finite floats (integers are taken), or a tuple of them.

    Raises:
        SpecError: it is of another kind.
    """
    if isinstance(default, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(default):
            raise SpecError(f"{what} is {len(default)} numbers, not {value!r}")
        return tuple(like_default(what, each, 0.0) for each in value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise SpecError(f"{what} is true or false, not {value!r}")
        return value
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise SpecError(f"{what} is a finite number, not {value!r}")
    return number


def check_rate(lr: object, what: str = "lr") -> float:
    """A learning rate as a float.

    Raises:
        SpecError: it is negative, or not finite in single precision, in which graphs take it.
    """
    rate = like_default(what, lr, 0.0)
    assert isinstance(rate, float)
    if not 0 <= rate <= _LARGEST:
        wanted = "at least 0" if rate < 0 else f"at most {_LARGEST:.1e}"
        raise SpecError(f"{what} must be {wanted}, and is {rate!r}")
    return rate


def require(condition: bool, optimizer: Optimizer, option: str, range_: str) -> None:
    """Raise where an option is out of its range."""
    if not condition:
        value = getattr(optimizer, option)
        raise SpecError(f"{optimizer.name}: {option} must be {range_}, and is {value!r}")


def require_positive(optimizer: Optimizer, *options: str) -> None:
    """Raise where one of the options is below 0."""
    for option in options:
        require(getattr(optimizer, option) >= 0, optimizer, option, "at least 0")
