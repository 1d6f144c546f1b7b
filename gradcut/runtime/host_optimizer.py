"""The optimizer outside the graph: numba kernels that update numpy arrays in place.

One call updates everything. The tensors stand in a table of addresses, cut into parts of equal element count,
so that neither sixty small tensors nor one large one cost more than their memory traffic. The kernels release
the GIL, and parts run on a thread pool of our own: OpenMP's workers, like ONNX Runtime's, spin after their work
is done and take the cores from whoever is next (a session beside this wants ``session.force_spinning_stop``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from gradcut.errors import FeedError, MissingExtraError, SpecError
from gradcut.optimizers import SGD, AdamW, Optimizer

try:
    import numba
    import numba.extending
except ImportError as error:  # missing, or not made for the numpy there is
    raise MissingExtraError("the host optimizer", "cpu") from error

Array = np.ndarray[Any, Any]
_F = TypeVar("_F", bound=Callable[..., Any])
Kernel = Callable[[int, int, Array, Array, Array], None]

_PARALLEL_FROM = 1 << 18  # elements: below, waking a thread (about 70 us) costs more than it saves
_PARTS_PER_THREAD = 4  # so that a core that is busy elsewhere does not hold up the others
_GRADIENT = 1  # column of the address table; 0 is the parameter, from 2 on come the slots

_numba: Any = numba  # annotated in some of its versions only
_jit: Callable[[_F], _F] = _numba.njit(error_model="numpy", nogil=True, cache=True)
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


# Each kernel works on the segments [first, last): rows of (tensor, first element, elements). `c` holds what
# `_scalars` returns, in the tensors' dtype: double precision scalars would make all arithmetic double.


@_jit
def _sgd_kernel(first: int, last: int, segments: Array, addresses: Array, c: Array) -> None:
    sign, decay, lr = c[0], c[1], c[2]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        for i in range(count):
            p[i] -= lr * (sign * g[i] + decay * p[i])


@_jit
def _momentum_kernel(first: int, last: int, segments: Array, addresses: Array, c: Array) -> None:
    sign, decay, lr, momentum, share, from_gradient, from_buffer = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        buffer = _slice(addresses[tensor, 2], start, count, c)
        for i in range(count):
            d = sign * g[i] + decay * p[i]
            buffer[i] = momentum * buffer[i] + share * d
            p[i] -= lr * (from_gradient * d + from_buffer * buffer[i])


@_jit
def _adamw_kernel(first: int, last: int, segments: Array, addresses: Array, c: Array) -> None:
    beta1, new1, beta2, new2, keep, scale, eps = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        m = _slice(addresses[tensor, 2], start, count, c)
        v = _slice(addresses[tensor, 3], start, count, c)
        for i in range(count):
            m[i] = beta1 * m[i] + new1 * g[i]
            v[i] = beta2 * v[i] + new2 * g[i] * g[i]
            p[i] = keep * p[i] - scale * m[i] / (math.sqrt(v[i]) + eps)


@_jit
def _amsgrad_kernel(first: int, last: int, segments: Array, addresses: Array, c: Array) -> None:
    beta1, new1, beta2, new2, keep, scale, eps = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    for k in range(first, last):
        tensor, start, count = segments[k, 0], segments[k, 1], segments[k, 2]
        p = _slice(addresses[tensor, 0], start, count, c)
        g = _slice(addresses[tensor, 1], start, count, c)
        m = _slice(addresses[tensor, 2], start, count, c)
        v = _slice(addresses[tensor, 3], start, count, c)
        top = _slice(addresses[tensor, 4], start, count, c)
        for i in range(count):
            m[i] = beta1 * m[i] + new1 * g[i]
            v[i] = beta2 * v[i] + new2 * g[i] * g[i]
            top[i] = max(top[i], v[i])
            p[i] = keep * p[i] - scale * m[i] / (math.sqrt(top[i]) + eps)


def _kernel(optimizer: Optimizer) -> Kernel:
    if isinstance(optimizer, AdamW):
        return _amsgrad_kernel if optimizer.amsgrad else _adamw_kernel
    if isinstance(optimizer, SGD):
        return _momentum_kernel if optimizer.momentum else _sgd_kernel
    raise SpecError(f"{optimizer.name} has no host kernel; take optimizer_backend='graph'")


def _scalars(optimizer: Optimizer, lr: float, step: int) -> list[float]:
    """The factors that `Optimizer.prepare` and `update` build into a graph, in the kernels' order."""
    if isinstance(optimizer, AdamW):
        return _adamw_scalars(optimizer, lr, step + 1)
    assert isinstance(optimizer, SGD)
    return _sgd_scalars(optimizer, lr, first=step == 0)


def _adamw_scalars(optimizer: AdamW, lr: float, t: int) -> list[float]:
    beta1, beta2 = optimizer.betas
    sign = -1.0 if optimizer.maximize else 1.0
    root = math.sqrt(1.0 - beta2**t)
    averages = [beta1, sign * (1.0 - beta1), beta2, 1.0 - beta2]
    return [*averages, 1.0 - lr * optimizer.weight_decay, lr * root / (1.0 - beta1**t), optimizer.eps * root]


def _sgd_scalars(optimizer: SGD, lr: float, first: bool) -> list[float]:
    sign = -1.0 if optimizer.maximize else 1.0
    share = 1.0 if first else 1.0 - optimizer.dampening
    direction = [1.0, optimizer.momentum] if optimizer.nesterov else [0.0, 1.0]
    return [sign, optimizer.weight_decay, lr, optimizer.momentum, share, *direction]


class _Table:
    """The tensors of one dtype, where they are and how the work on them is cut."""

    def __init__(self, names: Sequence[str], columns: Sequence[Sequence[Array]], threads: int) -> None:
        self.names = names
        self.arrays = columns  # per tensor: parameter, slots; kept, as their addresses are
        self.dtype = columns[0][0].dtype
        rows = [[own[0].ctypes.data, 0, *(slot.ctypes.data for slot in own[1:])] for own in columns]
        self.addresses = np.array(rows, dtype=np.int64)
        sizes = [own[0].size for own in columns]
        parts = threads * _PARTS_PER_THREAD if threads > 1 and sum(sizes) >= _PARALLEL_FROM else 1
        self.segments, self.parts = cut(sizes, parts)

    def aim(self, gradients: Mapping[str, Array]) -> list[Array]:
        """Point the table at this step's gradients; the arrays to keep alive for as long."""
        held = [_gradient(gradients, name, own[0]) for name, own in zip(self.names, self.arrays, strict=True)]
        self.addresses[:, _GRADIENT] = [gradient.ctypes.data for gradient in held]
        return held


def cut(sizes: Sequence[int], parts: int) -> tuple[Array, list[tuple[int, int]]]:
    """Cut tensors laid end to end into `parts` of equal length.

    Returns segments, INT64 [n, 3], each (tensor, first element, elements) within one tensor, and for each part
    its segments as a range (first, last). Tensors without elements are in no segment.
    """
    total = sum(sizes)
    bounds = [total * part // parts for part in range(1, parts + 1)]
    segments: list[tuple[int, int, int]] = []
    ranges: list[tuple[int, int]] = []
    first = position = 0
    for tensor, size in enumerate(sizes):
        start = 0
        while start < size:
            count = min(size - start, bounds[len(ranges)] - position)
            if count:
                segments.append((tensor, start, count))
            start, position = start + count, position + count
            if position == bounds[len(ranges)]:
                ranges.append((first, len(segments)))
                first = len(segments)
    return np.array(segments, dtype=np.int64).reshape(-1, 3), ranges


class HostOptimizer:
    """Updates `parameters` and `slots` in place; their memory stays where it is.

    Args:
        optimizer: which update; its `lr` is not used, `step` is given one.
        parameters: float32 or float64 arrays, contiguous and writable, by name.
        slots: for each parameter, by its name, an array like it for each of the optimizer's slots.
        threads: how many threads take part; None: the cores this process may use.

    Raises SpecError for an array of another dtype, not in place updatable, or not there.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, Array],
        slots: Mapping[str, Mapping[str, Array]],
        threads: int | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._kernel = _kernel(optimizer)
        self._threads = threads if threads is not None else _cores()
        rows = {name: _row(optimizer, name, array, slots) for name, array in parameters.items()}
        groups: dict[np.dtype[Any], list[str]] = {}
        for name, array in parameters.items():
            groups.setdefault(array.dtype, []).append(name)
        self._tables = [_Table(names, [rows[name] for name in names], self._threads) for names in groups.values()]
        self._pool: ThreadPoolExecutor | None = None

    def step(self, gradients: Mapping[str, Array], lr: float, step: int) -> None:
        """One update.

        Args:
            gradients: by parameter name, of the parameters' shapes and dtypes; other names are passed over.
            lr: the learning rate of this step.
            step: updates done before this one.

        Raises FeedError, before anything is changed, for a gradient that is missing or does not fit.
        """
        held = [table.aim(gradients) for table in self._tables]
        scalars = _scalars(self._optimizer, lr, step)
        for table in self._tables:
            self._run(table, np.array(scalars, dtype=table.dtype))
        del held

    def _run(self, table: _Table, scalars: Array) -> None:
        parts = iter(table.parts)

        def drain() -> None:
            for first, last in parts:
                self._kernel(first, last, table.segments, table.addresses, scalars)

        helpers = [self._workers().submit(drain) for _ in range(min(self._threads, len(table.parts)) - 1)]
        try:
            drain()
        finally:
            wait(helpers)  # no thread may still write when an interrupt is on its way up
        for helper in helpers:
            helper.result()

    def _workers(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="gradcut-optimizer")
        return self._pool


def _row(optimizer: Optimizer, name: str, parameter: Array, slots: Mapping[str, Mapping[str, Array]]) -> list[Array]:
    """The parameter and its slots, checked."""
    if parameter.dtype not in (np.float32, np.float64):
        raise SpecError(
            f"{name!r} is {parameter.dtype}: the host optimizer updates float32 and float64 only; "
            "take optimizer_backend='graph'"
        )
    own = [parameter, *_slots(optimizer, name, slots)]
    for array in own:
        if array.dtype != parameter.dtype or array.shape != parameter.shape:
            raise SpecError(
                f"{optimizer.name}'s state for {name!r} is {array.dtype}{list(array.shape)}; "
                f"wanted is {parameter.dtype}{list(parameter.shape)}"
            )
        if not array.flags.carray:
            raise SpecError(f"{name!r}: an array that is updated in place must be contiguous and writable")
    return own


def _slots(optimizer: Optimizer, name: str, slots: Mapping[str, Mapping[str, Array]]) -> Iterator[Array]:
    for slot in optimizer.slots:
        if slot not in slots.get(name, {}):
            raise SpecError(f"{optimizer.name} wants state {slot!r} for {name!r}")
        yield slots[name][slot]


def _gradient(gradients: Mapping[str, Array], name: str, parameter: Array) -> Array:
    if name not in gradients:
        raise FeedError(f"there is no gradient for {name!r}")
    gradient = gradients[name]
    if gradient.dtype != parameter.dtype or gradient.shape != parameter.shape:
        raise FeedError(
            f"the gradient of {name!r} is {gradient.dtype}{list(gradient.shape)}; "
            f"wanted is {parameter.dtype}{list(parameter.shape)}"
        )
    if gradient.flags.c_contiguous and gradient.flags.aligned:
        return gradient
    return np.require(gradient, requirements=["C", "A"])


def _cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
