"""What every tensor of a checkpoint starts as."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gradcut.errors import LossError, SpecError
from gradcut.parameters import constant_tensor
from gradcut.passes.propagate import main_values
from gradcut.state import State


class Starts:
    """What declared state starts as: what was said, else what the model holds."""

    def __init__(self, given: ir.Model, states: Sequence[State]) -> None:
        self._held = main_values(given.graph)
        self._states = states

    def of(self, value: ir.Value) -> np.ndarray:
        """The array of a state, in its dtype.

        Raises:
            SpecError: nothing was said and the model holds none, or what was said does not fit.
        """
        name, dtype = value.name or "", value.dtype or ir.DataType.FLOAT
        said = next((start for one in self._states if (start := one.start(name)) is not None), None)
        if said is None:
            held = self._held.get(name)
            if held is None or constant_tensor(held) is None:
                raise SpecError(
                    f"state {name!r} is an input of the model: say what it starts as, State(..., initial=...)"
                )
            return array(held)
        if not _fits(value.shape, said.shape) or not np.can_cast(said.dtype, dtype.numpy(), "same_kind"):
            raise SpecError(
                f"state {name!r} is {dtype.name}{'' if value.shape is None else value.shape}, and starts as "
                f"{said.dtype}{list(said.shape)}"
            )
        return np.array(said, dtype.numpy())


def _fits(shape: ir.Shape | None, given: Sequence[int]) -> bool:
    """A dimension that is open takes any size."""
    return shape is None or (
        len(shape) == len(given)
        and all(dim == size for dim, size in zip(shape, given, strict=True) if isinstance(dim, int))
    )


def array(value: ir.Value) -> np.ndarray:
    tensor = value.const_value
    if tensor is None:
        tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise LossError(f"{value.name!r} has no value to start training from")
    return np.array(tensor.numpy(), copy=True)
