"""Masks of gradients as they are given, made to fit the values that they mask."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from gradcut.errors import SpecError

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def as_mask(mask: object) -> Mask:
    """A constant mask: booleans, or numbers that are all 0 or 1."""
    try:
        array = np.asarray(mask)
        if array.dtype == bool:
            return array
        if array.dtype.kind in "iuf" and bool(np.isin(array, (0, 1)).all()):
            return array.astype(bool)
    except (TypeError, ValueError):
        pass
    raise SpecError(
        "mask is an array of booleans, or of 0 and 1, or the name of a BOOL value, not "
        f"{type(mask).__name__}{f' of {array.dtype}' if isinstance(mask, np.ndarray) else ''}"
    )


def fitted(mask: Mask, value: ir.Value, axis: int | None, given: bool) -> Mask:
    """The mask with as many axes as a value has, each as long or of one element.

    Args:
        value: with its shape as far as it is known. given: whether it is an initializer.

    Raises:
        SpecError: the mask does not fit, or along one of its axes only a run can tell.
    """
    dims = _dims(value)
    if axis is None and mask.ndim == 1 and len(dims) > 1:
        axis = 0 if given else 1
    if axis is not None:
        if mask.ndim != 1:
            _refuse(mask, value, f"along one axis ({axis}) a mask has one axis")
        mask = mask.reshape(laid_along(value, axis))
    if mask.ndim > len(dims):
        _refuse(mask, value, "it has more axes")
    mask = mask.reshape([1] * (len(dims) - mask.ndim) + list(mask.shape))
    for at, (size, dim) in enumerate(zip(mask.shape, dims, strict=True)):
        if size != 1 and not isinstance(dim, int):
            _refuse(mask, value, f"only a run tells how long axis {at} is; give the name of a BOOL input as the mask")
        if size not in (1, dim):
            _refuse(mask, value, f"axis {at} is {dim} long, and the mask's {size}")
    return mask


def laid_along(value: ir.Value, axis: int) -> list[int]:
    """The shape that lays a mask of one axis along an axis of a value."""
    place = _checked_axis(axis, value)
    return [-1 if at == place else 1 for at in range(len(_dims(value)))]


def _checked_axis(axis: int, value: ir.Value) -> int:
    rank = len(_dims(value))
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -rank <= axis < rank:
        raise SpecError(f"gradient_mask: axis is {axis!r}, and {value.name!r} has {rank} axes")
    return int(axis) % rank


def _dims(value: ir.Value) -> list[Any]:
    if value.shape is None:
        raise SpecError(f"gradient_mask: the rank of {value.name!r} is unknown; give the graph's inputs their shapes")
    return list(value.shape)


def _refuse(mask: Mask, value: ir.Value, why: str) -> NoReturn:
    shape = ", ".join(str(dim) for dim in _dims(value))
    raise SpecError(f"gradient_mask: a mask of shape {list(mask.shape)} does not fit {value.name!r} [{shape}]: {why}")
