"""Numba kernels that update tensors in place, wherever they lie.

Each works on the segments [first, last): rows of (tensor, first element, elements). `addresses` has a row for each
tensor: parameter, gradient, slots. `c` holds scalars in the tensors' dtype (double precision scalars would make all
arithmetic double), of which the first two are the gradient's: its factor and the bound of its elements. `rates` has a
number for each tensor, in that dtype too; `sums` a row of float64 for each segment, which kernels that measure fill.
All have one signature, so that each is compiled once per dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from gradcut.errors import MissingExtraError

try:
    import numba
    import numba.extending
except ImportError as error:  # missing, or not made for the numpy there is
    raise MissingExtraError("the host optimizer", "cpu") from error

Array = np.ndarray[Any, Any]
_F = TypeVar("_F", bound=Callable[..., Any])
Kernel = Callable[[int, int, Array, Array, Array, Array, Array], None]

_numba: Any = numba  # annotated in some of its versions only
_jit: Callable[[_F], _F] = _numba.njit(error_model="numpy", nogil=True, cache=True)
#: Sums of float64 may be taken in any order, so that they are taken several at a time; NaN stays NaN.
_jit_sum: Callable[[_F], _F] = _numba.njit(error_model="numpy", nogil=True, cache=True, fastmath={"reassoc"})
_intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = _numba.extending.intrinsic


@_intrinsic
def _pointer(_typing: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to elements of `like`'s dtype."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return _numba.types.CPointer(like.dtype)(address, like), generate


@_jit
def _slice(address: int, start: int, count: int, like: Array) -> Any:
    return _numba.carray(_pointer(address + start * like.itemsize, like), count)


@_jit
def _bounded(g: float, limit: float) -> float:
    """NaN stays NaN."""
    return limit if g > limit else (-limit if g < -limit else g)


# --- gradient descent, LARS --------------------------------------------------------------------------------------


@_jit
def sgd(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    factor, limit, decay, lr = c[0], c[1], c[2], c[3]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        rate = lr * rates[tensor]
        for i in range(count):
            p[i] -= rate * (factor * _bounded(g[i], limit) + decay * p[i])


@_jit
def momentum(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    factor, limit, decay, lr, kept, new, from_gradient, from_buffer = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        buffer = _slice(addresses[tensor, 2], start, count, c)
        share = new * rates[tensor]
        for i in range(count):
            d = factor * _bounded(g[i], limit) + decay * p[i]
            buffer[i] = kept * buffer[i] + share * d
            p[i] -= lr * (from_gradient * d + from_buffer * buffer[i])


# --- Adam, LAMB --------------------------------------------------------------------------------------------------


@_jit
def adam(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    factor, limit, decay, beta1, new1, beta2, new2 = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    keep, scale, eps = c[7], c[8], c[9]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        m = _slice(addresses[tensor, 2], start, count, c)
        v = _slice(addresses[tensor, 3], start, count, c)
        for i in range(count):
            d = factor * _bounded(g[i], limit) + decay * p[i]
            m[i] = beta1 * m[i] + new1 * d
            v[i] = beta2 * v[i] + new2 * d * d
            p[i] = keep * p[i] - scale * m[i] / (math.sqrt(v[i]) + eps)


@_jit
def amsgrad(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    factor, limit, decay, beta1, new1, beta2, new2 = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    keep, scale, eps = c[7], c[8], c[9]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        m = _slice(addresses[tensor, 2], start, count, c)
        v = _slice(addresses[tensor, 3], start, count, c)
        top = _slice(addresses[tensor, 4], start, count, c)
        for i in range(count):
            d = factor * _bounded(g[i], limit) + decay * p[i]
            m[i] = beta1 * m[i] + new1 * d
            v[i] = beta2 * v[i] + new2 * d * d
            top[i] = max(top[i], v[i])
            p[i] = keep * p[i] - scale * m[i] / (math.sqrt(top[i]) + eps)


@_jit_sum
def lamb_moments(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    """Moves the moments, and measures the parameter and the update that `lamb` makes of them."""
    factor, limit, decay, beta1, new1, beta2, new2 = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    scale, eps = c[7], c[8]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        m = _slice(addresses[tensor, 2], start, count, c)
        v = _slice(addresses[tensor, 3], start, count, c)
        weights = updates = np.float64(0.0)
        for i in range(count):
            d = factor * _bounded(g[i], limit)
            m[i] = beta1 * m[i] + new1 * d
            v[i] = beta2 * v[i] + new2 * d * d
            weight = np.float64(p[i])
            update = np.float64(scale * m[i] / (math.sqrt(v[i]) + eps) + decay * p[i])
            weights += weight * weight
            updates += update * update
        sums[k, 0], sums[k, 1] = weights, updates


@_jit
def lamb(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    decay, scale, eps, lr = c[2], c[7], c[8], c[9]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        m = _slice(addresses[tensor, 2], start, count, c)
        v = _slice(addresses[tensor, 3], start, count, c)
        rate = lr * rates[tensor]
        for i in range(count):
            p[i] -= rate * (scale * m[i] / (math.sqrt(v[i]) + eps) + decay * p[i])


# --- RMSprop, Adagrad --------------------------------------------------------------------------------------------


@_jit
def rmsprop(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    factor, limit, decay, lr, alpha, new, eps = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        square = _slice(addresses[tensor, 2], start, count, c)
        for i in range(count):
            d = factor * _bounded(g[i], limit) + decay * p[i]
            square[i] = alpha * square[i] + new * d * d
            p[i] -= lr * d / (math.sqrt(square[i]) + eps)


@_jit
def rmsprop_momentum(
    first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array
) -> None:
    factor, limit, decay, lr, alpha, new, eps, kept = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        square = _slice(addresses[tensor, 2], start, count, c)
        buffer = _slice(addresses[tensor, 3], start, count, c)
        for i in range(count):
            d = factor * _bounded(g[i], limit) + decay * p[i]
            square[i] = alpha * square[i] + new * d * d
            buffer[i] = kept * buffer[i] + d / (math.sqrt(square[i]) + eps)
            p[i] -= lr * buffer[i]


@_jit
def rmsprop_centered(
    first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array
) -> None:
    factor, limit, decay, lr, alpha, new, eps = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        square = _slice(addresses[tensor, 2], start, count, c)
        mean = _slice(addresses[tensor, 3], start, count, c)
        for i in range(count):
            d = factor * _bounded(g[i], limit) + decay * p[i]
            square[i] = alpha * square[i] + new * d * d
            mean[i] = alpha * mean[i] + new * d
            p[i] -= lr * d / (math.sqrt(square[i] - mean[i] * mean[i]) + eps)


@_jit
def rmsprop_centered_momentum(
    first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array
) -> None:
    factor, limit, decay, lr, alpha, new, eps, kept = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        square = _slice(addresses[tensor, 2], start, count, c)
        mean = _slice(addresses[tensor, 3], start, count, c)
        buffer = _slice(addresses[tensor, 4], start, count, c)
        for i in range(count):
            d = factor * _bounded(g[i], limit) + decay * p[i]
            square[i] = alpha * square[i] + new * d * d
            mean[i] = alpha * mean[i] + new * d
            buffer[i] = kept * buffer[i] + d / (math.sqrt(square[i] - mean[i] * mean[i]) + eps)
            p[i] -= lr * buffer[i]


@_jit
def adagrad(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    factor, limit, decay, lr, eps = c[0], c[1], c[2], c[3], c[4]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        total = _slice(addresses[tensor, 2], start, count, c)
        for i in range(count):
            d = factor * _bounded(g[i], limit) + decay * p[i]
            total[i] += d * d
            p[i] -= lr * d / (math.sqrt(total[i]) + eps)


# --- averages and norms ------------------------------------------------------------------------------------------


@_jit
def average(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    """The slot follows the parameter."""
    keep, new = c[0], c[1]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        mean = _slice(addresses[tensor, 2], start, count, c)
        for i in range(count):
            mean[i] = keep * mean[i] + new * p[i]


@_jit_sum
def squares(first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array) -> None:
    """Sums of squares of the parameter and of the bounded gradient, its factor left out."""
    limit = c[1]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        weights = gradients = np.float64(0.0)
        for i in range(count):
            weight, gradient = np.float64(p[i]), np.float64(_bounded(g[i], limit))
            weights += weight * weight
            gradients += gradient * gradient
        sums[k, 0], sums[k, 1] = weights, gradients


@_jit_sum
def gradient_squares(
    first: int, last: int, segments: Array, addresses: Array, c: Array, rates: Array, sums: Array
) -> None:
    """As `squares`, without the parameter."""
    limit = c[1]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        g = _slice(addresses[tensor, 1], start, count, c)
        gradients = np.float64(0.0)
        for i in range(count):
            gradient = np.float64(_bounded(g[i], limit))
            gradients += gradient * gradient
        sums[k, 1] = gradients
