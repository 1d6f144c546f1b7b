"""RNN, GRU and LSTM for onnx's reference evaluator, by their operator pages; its own run forward, with few attributes.

Where a page leaves a choice, ONNX Runtime's is taken: numbers in `activation_alpha` and `activation_beta` go to the
functions that have such a number alone, which are zeros for some where the lists end, `clip` does not bound the cell
before h, a coupled forget gate is one minus the input gate, and what is left of an empty sequence is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]
Attributes = dict[str, Any]
Function = Callable[[Array], Array]
Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]

#: Each activation with its alpha and beta, and their defaults; None for a number that it does not have.
_FUNCTIONS: dict[str, tuple[Callable[[Array, float, float], Array], float | None, float | None]] = {
    "relu": (lambda x, a, b: np.maximum(x, 0), None, None),
    "tanh": (lambda x, a, b: np.tanh(x), None, None),
    "sigmoid": (lambda x, a, b: 1 / (1 + np.exp(-x)), None, None),
    "affine": (lambda x, a, b: a * x + b, 0.0, 0.0),
    "leakyrelu": (lambda x, a, b: np.where(x >= 0, x, a * x), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: np.where(x > a, x, 0), 0.0, None),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 0.0, 0.0),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))), 1.0, None),
    "softsign": (lambda x, a, b: x / (1 + np.abs(x)), None, None),
    "softplus": (lambda x, a, b: np.logaddexp(x, 0), None, None),
}


class _Recurrent(OpRun):
    """One layer; `cell` is what a step does."""

    states = 1
    defaults: ClassVar[tuple[str, ...]] = ("Tanh",)

    def cell(self, W: Array, R: Array, B: Array, P: Array, functions: list[Function], attributes: Attributes) -> Step:
        """Of one direction: inputs [N, I] and states [N, H] to new states."""
        raise NotImplementedError

    def _run(
        self,
        X: Array,
        W: Array,
        R: Array,
        B: Array | None = None,
        sequence_lens: Array | None = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
        P: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array, ...]:
        batch_first = bool(attributes.get("layout"))
        X = X.swapaxes(0, 1) if batch_first else X
        given = [_swapped(state, batch_first) for state in (initial_h, initial_c)]
        (T, N, _), (D, rows, H) = X.shape, R.shape
        lens = np.full(N, T) if sequence_lens is None else sequence_lens
        B = np.zeros((D, 2 * rows), X.dtype) if B is None else B
        P = np.zeros((D, 3 * H), X.dtype) if P is None else P
        start = [np.zeros((D, N, H), X.dtype) if state is None else state for state in given[: self.states]]
        functions, count = list(_functions(attributes, self.defaults * D)), len(self.defaults)
        found = []
        for d in range(D):
            cell = self.cell(W[d], R[d], B[d], P[d], functions[d * count :], attributes)
            reverse = d == 1 or attributes.get("direction") == "reverse"
            found.append(_walk(cell, X, lens, tuple(state[d] for state in start), reverse=reverse))
        Y, *last = (np.stack(parts, axis) for parts, axis in zip(zip(*found, strict=True), (1, 0, 0), strict=False))
        if batch_first:
            return (np.moveaxis(Y, 2, 0), *(state.swapaxes(0, 1) for state in last))
        return (Y, *last)


def _swapped(state: Array | None, batch_first: bool) -> Array | None:
    return state if state is None or not batch_first else state.swapaxes(0, 1)


def _walk(cell: Step, X: Array, lens: Array, start: tuple[Array, ...], *, reverse: bool) -> tuple[Array, ...]:
    """Y of one direction, and what its states are at the end of each sequence, zero for one of no length."""
    state, Y = start, np.zeros((*X.shape[:2], start[0].shape[-1]), X.dtype)
    every = np.arange(X.shape[1])
    for t in range(len(X)):
        at = np.maximum(lens - 1 - t, 0) if reverse else t
        live = (t < lens)[:, None]
        x = np.where(live, X[at, every], 0)
        state = tuple(np.where(live, new, old) for new, old in zip(cell(x, state), state, strict=True))
        Y[at, every] = np.where(live, state[0], Y[at, every])
    return (Y, *(np.where(lens[:, None] > 0, value, 0) for value in state))


def _functions(attributes: Attributes, defaults: Sequence[str]) -> Iterator[Function]:
    """The activations in order; each takes its numbers from what those before it left."""
    given = {key: list(attributes.get(f"activation_{key}") or ()) for key in ("alpha", "beta")}

    def take(key: str, default: float | None) -> float:
        return float(given[key].pop(0) if default is not None and given[key] else default or 0.0)

    for name in attributes.get("activations") or defaults:
        function, alpha, beta = _FUNCTIONS[name.lower()]
        yield partial(_call, function, take("alpha", alpha), take("beta", beta))


def _call(function: Callable[[Array, float, float], Array], alpha: float, beta: float, x: Array) -> Array:
    return function(x, alpha, beta)


def _clipped(function: Function, attributes: Attributes) -> Function:
    """The function of an argument that is bounded first, where the node has a clip."""
    bound = attributes.get("clip") or np.inf
    return lambda x: function(np.clip(x, -bound, bound))


class RNN(_Recurrent):
    def cell(self, W: Array, R: Array, B: Array, P: Array, functions: list[Function], attributes: Attributes) -> Step:
        Wb, Rb = np.split(B, 2)
        f = _clipped(functions[0], attributes)

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            return (f(x @ W.T + state[0] @ R.T + Wb + Rb),)

        return step


class GRU(_Recurrent):
    defaults = ("Sigmoid", "Tanh")

    def cell(self, W: Array, R: Array, B: Array, P: Array, functions: list[Function], attributes: Attributes) -> Step:
        Wb, Rb = np.split(B, 2)
        f, g = (_clipped(function, attributes) for function in functions[:2])
        (Rz, Rr, Rh), (bz, br, bh) = np.split(R, 3), np.split(Rb, 3)
        linear_before_reset = attributes.get("linear_before_reset")

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            (h,), (xz, xr, xh) = state, np.split(x @ W.T + Wb, 3, axis=-1)
            z, r = f(xz + h @ Rz.T + bz), f(xr + h @ Rr.T + br)
            before = r * (h @ Rh.T + bh) if linear_before_reset else (r * h) @ Rh.T + bh
            return ((1 - z) * g(xh + before) + z * h,)

        return step


class LSTM(_Recurrent):
    states, defaults = 2, ("Sigmoid", "Tanh", "Tanh")

    def cell(self, W: Array, R: Array, B: Array, P: Array, functions: list[Function], attributes: Attributes) -> Step:
        Wb, Rb = np.split(B, 2)
        Pi, Po, Pf = np.split(P, 3)
        f, g = (_clipped(function, attributes) for function in functions[:2])
        h, input_forget = functions[2], attributes.get("input_forget")

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            H, C = state
            ai, ao, af, ac = np.split(x @ W.T + H @ R.T + Wb + Rb, 4, axis=-1)
            i = f(ai + Pi * C)
            forget = 1 - i if input_forget else f(af + Pf * C)
            new = forget * C + i * g(ac)
            return f(ao + Po * new) * h(new), new

        return step


RECURRENT: list[type[OpRun]] = [GRU, LSTM, RNN]
