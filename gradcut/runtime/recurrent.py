"""RNN, GRU and LSTM for onnx's reference evaluator, by their operator pages; its own run forward, with few attributes.

Where a page leaves a choice, ONNX Runtime's is taken: numbers in `activation_alpha` and `activation_beta` go to the
functions that have such a number alone, which are zeros for some where the lists end, `clip` does not bound the cell
before h, a coupled forget gate is one minus the input gate, and what is left of an empty sequence is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]
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
    """One layer: `_step` is its cell."""

    gates, states, defaults, unclipped = 1, 1, ("Tanh",), 0

    def _run(  # type: ignore[override]
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
        swap = lambda array: array if array is None or not batch_first else np.swapaxes(array, 0, 1)
        X = swap(X)
        lens = np.full(X.shape[1], X.shape[0]) if sequence_lens is None else sequence_lens
        direction = attributes.get("direction") or "forward"
        functions = list(_functions(attributes, self.defaults * len(W), self.unclipped))
        given = [swap(initial_h), swap(initial_c)][: self.states]
        found = []
        for d in range(len(W)):
            of_d = [None if operand is None else operand[d] for operand in (W, R, B, P)]
            cell = self._cell(*of_d, functions[d * len(self.defaults) :], attributes)  # type: ignore[arg-type]
            start = [np.zeros((X.shape[1], R.shape[-1]), X.dtype) if s is None else s[d] for s in given]
            found.append(_walk(cell, X, lens, tuple(start), reverse=direction == "reverse" or d == 1))
        Y, *last = (np.stack(parts, axis) for parts, axis in zip(zip(*found, strict=True), (1, 0, 0), strict=False))
        return (np.moveaxis(Y, 2, 0) if batch_first else Y, *map(swap, last))

    def _cell(
        self, W: Array, R: Array, B: Array | None, P: Array | None, functions: list[Function], attributes: Any
    ) -> Step:
        raise NotImplementedError

    def _biases(self, R: Array, B: Array | None) -> tuple[Array, Array]:
        """Wb and Rb, [gates hidden]."""
        return tuple(np.split(np.zeros(2 * len(R), R.dtype) if B is None else B, 2))  # type: ignore[return-value]


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


def _functions(attributes: dict[str, Any], defaults: Sequence[str], unclipped: int) -> Iterator[Function]:
    """The activations in order, clipped before, save every `unclipped`th; each takes its numbers from what is left."""
    given = {key: list(attributes.get(f"activation_{key}") or ()) for key in ("alpha", "beta")}
    bound = attributes.get("clip") or np.inf

    def take(key: str, default: float | None) -> float:
        return float(given[key].pop(0) if default is not None and given[key] else default or 0.0)

    for at, name in enumerate(attributes.get("activations") or defaults):
        function, alpha, beta = _FUNCTIONS[name.lower()]
        numbers = take("alpha", alpha), take("beta", beta)
        clip = np.inf if unclipped and (at + 1) % unclipped == 0 else bound
        yield lambda x, f=function, ab=numbers, c=clip: f(np.clip(x, -c, c), *ab)  # type: ignore[misc]


class RNN(_Recurrent):
    def _cell(self, W, R, B, P, functions, attributes):  # type: ignore[no-untyped-def]
        b, (f, *_) = sum(self._biases(R, B)), functions

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            return (f(x @ W.T + state[0] @ R.T + b),)

        return step


class GRU(_Recurrent):
    gates, defaults = 3, ("Sigmoid", "Tanh")

    def _cell(self, W, R, B, P, functions, attributes):  # type: ignore[no-untyped-def]
        (Wb, Rb), (f, g, *_) = self._biases(R, B), functions
        (Rz, Rr, Rh), (bz, br, bh) = np.split(R, 3), np.split(Rb, 3)
        linear_before_reset = attributes.get("linear_before_reset")

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            (h,), (xz, xr, xh) = state, np.split(x @ W.T + Wb, 3, axis=-1)
            z, r = f(xz + h @ Rz.T + bz), f(xr + h @ Rr.T + br)
            before = r * (h @ Rh.T + bh) if linear_before_reset else (r * h) @ Rh.T + bh
            return ((1 - z) * g(xh + before) + z * h,)

        return step


class LSTM(_Recurrent):
    gates, states, defaults, unclipped = 4, 2, ("Sigmoid", "Tanh", "Tanh"), 3

    def _cell(self, W, R, B, P, functions, attributes):  # type: ignore[no-untyped-def]
        b, (f, g, h, *_) = sum(self._biases(R, B)), functions
        Pi, Po, Pf = np.zeros((3, R.shape[-1]), R.dtype) if P is None else np.split(P, 3)
        input_forget = attributes.get("input_forget")

        def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            H, C = state
            ai, ao, af, ac = np.split(x @ W.T + H @ R.T + b, 4, axis=-1)
            i = f(ai + Pi * C)
            forget = 1 - i if input_forget else f(af + Pf * C)
            new = forget * C + i * g(ac)
            return f(ao + Po * new) * h(new), new

        return step
