"""The numeric half of the gradient checker: directional derivatives of a model by central differences.

Each wanted value gets an Add of a step behind it, so that inputs, weights and inner values are moved in the same way.
The model runs in float64 where it can: in onnx's reference evaluator, else in ONNX Runtime; else in float32.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from gradcut.dialect import is_mark
from gradcut.errors import GradcutError
from gradcut.runtime.prepared import Prepared
from gradcut.runtime.widen import Array, Run, reference, runtime

#: Where the differences run, in the order tried: name, dtype, program, step.
_PLACES = (
    ("float64 in onnx's reference evaluator", ir.DataType.DOUBLE, reference, 1e-5),
    ("float64 in onnxruntime", ir.DataType.DOUBLE, runtime, 1e-5),
    ("float32 in onnxruntime", ir.DataType.FLOAT, runtime, 1e-2),
)
_WIDE_STEP = 5e-3
NAN = float("nan")
#: Numbers of this size are none that a model computes with.
_HUGE = 1e30
_EPS = {"float64": float(np.finfo(np.float64).eps), "float32": float(np.finfo(np.float32).eps)}
#: How far the forward there may be from the model's own outputs, relative to the largest, by their dtype.
_FORWARD = {"float64": 1e-6, "float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}


@dataclass(frozen=True)
class Slope:
    """The derivative along one direction, from both sides.

    Attributes:
        kind: ``smooth``, where the sides agree; ``kink``: they differ however small the step is; ``jump``: the smaller
            the step, the further; ``edge``: one is no number; ``coarse``: what runs rounds more coarsely than its dtype
            says, or only seems to at a jump.
        number: of the direction, among those of its value.
    """

    left: float
    right: float
    noise: float
    direction: Array
    number: int
    kind: str = "smooth"

    @property
    def central(self) -> float:
        return (self.left + self.right) / 2

    @property
    def jump(self) -> float:
        return abs(self.right - self.left)


class Differences:
    """Slopes of `of` by each of `wrt` at one point. Evaluations are kept, so slopes for other cotangents are free.

    Args:
        model: imported, with marks where they are to count; it is not changed.
        draws: what random operators drew, see `replay`.
        like: what the outputs should be; a place whose outputs differ is not believed.
        patience: seconds one evaluation may take before the next place is tried.

    Attributes:
        place: where it runs; empty where none could run the model.
        base: the values of `of` and of `wrt` at the point.
        notes: why a place was not taken.
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Mapping[str, Array],
        of: Sequence[str],
        wrt: Sequence[str],
        *,
        draws: Mapping[str, Array] | None = None,
        like: Sequence[Array] | None = None,
        seed: int = 0,
        patience: float = 2.0,
    ) -> None:
        self.of, self.wrt, self.seed = tuple(of), tuple(wrt), seed
        self.place, self.notes = "", list[str]()
        self.base: dict[str, Array] = {}
        self._model, self._feeds, self._draws = model, dict(feeds), dict(draws or {})
        self._moved: dict[tuple[str, int, float], tuple[list[Array], list[Array]]] = {}
        slow: list[_Place] = []
        for place in self._places():
            if like is not None and not _agree(place.base[: len(of)], like):
                self.notes.append(f"{place.name}: its outputs are not those of the model, so it is not believed")
            elif place.seconds > patience:
                self.notes.append(f"{place.name}: {place.seconds:.1f} s for one evaluation")
                slow.append(place)
            else:
                self._take(place)
                return
        if slow:
            self._take(slow[-1])

    def slope(self, name: str, index: int, cotangents: Sequence[Array]) -> Slope:
        """The derivative of ``<cotangents, of>`` by `name` along its direction number `index`.

        Where both sides differ, the step is made smaller, then another direction is taken. At a kink each side keeps
        its slope however small the step is; at a jump, and where the model rounds, they drift apart with it.
        """
        tried: list[Slope] = []
        for attempt in range(3):
            tried = []
            for step in (self._step, self._step / 10, self._step / 100):
                slope = self._slope(name, index + 1000 * attempt, step, cotangents)
                if slope.kind in ("smooth", "coarse"):
                    return slope
                if tried and _converges(tried[-1], slope):
                    return replace(slope, kind="smooth")
                tried.append(slope)
        return replace(tried[-1], kind="jump") if _grows(tried) else tried[-1]

    def wide_slope(self, name: str, number: int, cotangents: Sequence[Array]) -> Slope:
        """The slope over a step that is wide enough for a model that rounds coarsely."""
        return replace(self._slope(name, number, max(self._step, _WIDE_STEP), cotangents), kind="coarse")

    def together(self, lengths: Mapping[str, float], number: int, cotangents: Sequence[Array]) -> Slope:
        """The derivative along a direction that moves several values at once, each by its own length.

        Its direction is theirs behind each other, in the order given.
        """
        moves = {name: far * self._direction(name, number, self.base[name].shape) for name, far in lengths.items()}
        direction = np.concatenate([move.ravel() for move in moves.values()])
        slope = Slope(NAN, NAN, 0.0, direction, number, "edge")
        for step in (self._step, self._step / 10, self._step / 100):
            try:
                up, down = (self._run({**self._fixed, **self._end(moves, length)}) for length in (step, -step))
            except Exception:  # as in _slope
                return slope
            count = len(self.of)
            slope = self._between(up[:count], down[:count], step, cotangents, direction, number)
            if slope.kind in ("smooth", "coarse"):
                break
        return slope

    def _end(self, moves: Mapping[str, Array], length: float) -> dict[str, Array]:
        return {self._inputs[name]: np.asarray(length * move, self._dtype) for name, move in moves.items()}

    def finer(self, name: str, slope: Slope, cotangents: Sequence[Array]) -> Slope:
        """A slope by smaller steps, for one that looked smooth and is doubted: many kinks may lie within the step.

        One that grows with every step is that of a jump, which is as high on both sides.
        """
        if not self.fine or slope.kind != "smooth":
            return slope
        tried = [slope, *(self._slope(name, slope.number, self._step / less, cotangents) for less in (10, 100))]
        grows = all(abs(b.central) > 3 * abs(a.central) + a.noise + b.noise for a, b in pairwise(tried))
        return replace(tried[-1], kind="jump") if grows else tried[-1]

    @property
    def fine(self) -> bool:
        """Whether it runs in float64."""
        return self.place.startswith("float64")

    def _slope(self, name: str, number: int, step: float, cotangents: Sequence[Array]) -> Slope:
        direction = self._direction(name, number, self.base[name].shape)
        try:
            up, down = self._both_sides(name, number, step, direction)
        except Exception:  # of a size or a bound, say, that does not stand next to the one given
            return Slope(NAN, NAN, 0.0, direction, number, "edge")
        return self._between(up, down, step * typical(self.base[name]), cotangents, direction, number)

    def _between(
        self,
        up: list[Array],
        down: list[Array],
        step: float,
        cotangents: Sequence[Array],
        direction: Array,
        number: int,
    ) -> Slope:
        """The slope by the outputs a step up and a step down."""
        here = [self.base[output] for output in self.of]
        right, left = _inner(cotangents, up, here) / step, _inner(cotangents, here, down) / step
        size = sum(float(np.linalg.norm(u)) * _norm(y) for u, y in zip(cotangents, here, strict=True))
        noise = 30 * _EPS[str(self._dtype)] * size / step
        kind = "smooth"
        if not (np.isfinite(right) and np.isfinite(left)):
            kind = "edge"
        elif self._dtype == np.float64 and all(map(_looks_rounded, up, here)):
            kind = "coarse"
        elif abs(right - left) > 1e-3 * max(abs(right), abs(left)) + noise:
            kind = "kink"
        return Slope(left, right, noise, direction, number, kind)

    def _both_sides(self, name: str, number: int, step: float, direction: Array) -> tuple[list[Array], list[Array]]:
        """The outputs a step up and a step down the direction."""
        key = (name, number, step)
        if key not in self._moved:
            at, length = self._inputs[name], step * typical(self.base[name])
            moved = [np.asarray(sign * length * direction, self._dtype) for sign in (1, -1)]
            up, down = (self._run({**self._fixed, at: delta})[: len(self.of)] for delta in moved)
            self._moved[key] = up, down
        return self._moved[key]

    def _direction(self, name: str, number: int, shape: tuple[int, ...]) -> Array:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), number]).standard_normal(shape)

    # --- where it runs ---------------------------------------------------------------------------------------

    def _take(self, place: _Place) -> None:
        self.place, self._run, self._step, self._dtype = place.name, place.run, place.step, place.dtype
        self._fixed, self._inputs = place.fixed, place.inputs
        self.base = dict(zip((*self.of, *self.wrt), place.base, strict=True))

    def _places(self) -> Iterator[_Place]:
        for name, dtype, program, step in _PLACES:
            try:
                yield self._prepare(name, dtype, program, step)
            except Exception as error:  # an evaluator may fail in any way; the report says so
                self.notes.append(f"{name}: {' '.join(str(error).split())[:160]}")

    def _prepare(self, name: str, dtype: ir.DataType, program: object, step: float) -> _Place:
        assert callable(program)
        held: dict[str, Array] = {}
        ready = Prepared(self._model, self.of, self.wrt, self._draws, hold_marks=True)
        if ready.held:
            plain = Prepared(self._model, self.of, self.wrt, self._draws, hold_marks=False)
            outputs = program(plain.proto(dtype))(self._widened(plain, dtype))
            held = dict(zip(plain.marked, outputs[len(self.of) + len(self.wrt) :], strict=True))
        inside = any(is_mark(node) for node in self._model.graph.all_nodes() if node.graph is not self._model.graph)
        if inside and program is not reference:
            raise GradcutError("marks inside a body are held still in the reference evaluator only")
        run = reference(ready.proto(dtype), hold=True) if inside else program(ready.proto(dtype))
        fixed = {**self._widened(ready, dtype), **{ready.held[mark]: array for mark, array in held.items()}}
        start = time.process_time()  # of this process: how busy the machine is decides nothing
        base = run(fixed)
        seconds = time.process_time() - start
        return _Place(name, dtype.numpy(), step, run, fixed, ready.steps, base, seconds)

    def _widened(self, ready: Prepared, dtype: ir.DataType) -> dict[str, Array]:
        """The feeds in the dtypes that the widened inputs have, and steps of zero."""
        kinds = {value.name: value.dtype for value in ready.model.graph.inputs}
        feeds = {**self._feeds, **ready.drawn, **dict.fromkeys(ready.steps.values(), np.zeros(()))}
        return {
            name: np.asarray(array, (kinds[name] or dtype).numpy()) for name, array in feeds.items() if name in kinds
        }


@dataclass(frozen=True)
class _Place:
    name: str
    dtype: np.dtype[np.generic]
    step: float
    run: Run
    fixed: dict[str, Array]
    inputs: dict[str, str]
    base: list[Array]
    seconds: float


def typical(array: Array) -> float:
    """The size of an array's numbers, at least 1; those that stand for minus infinity in a mask do not count."""
    numbers = np.abs(array.astype(np.float64))
    numbers = numbers[numbers < _HUGE]
    return max(1.0, float(np.sqrt(np.mean(np.square(numbers))))) if numbers.size else 1.0


def _inner(cotangents: Sequence[Array], high: Sequence[Array], low: Sequence[Array]) -> float:
    """<u, high - low>; elements that are equal count as no difference, infinities too.

    Not a number where a step changes the shape of an output, or takes it out of or into what is a number.
    """
    total = 0.0
    for u, a, b in zip(cotangents, high, low, strict=True):
        if a.shape != b.shape:
            return float("nan")
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, a - b)
            total += float(np.sum(u.astype(np.float64) * difference))
    return total


def _converges(wide: Slope, fine: Slope) -> bool:
    """Whether the sides only differed by the curvature, which a smaller step takes away."""
    return fine.jump < 0.3 * wide.jump and abs(fine.central - wide.central) <= 0.05 * wide.jump + fine.noise


def _grows(tried: Sequence[Slope]) -> bool:
    return all(slope.kind == "kink" for slope in tried) and tried[-1].jump > 2 * tried[0].jump


def _looks_rounded(moved: Array, here: Array) -> bool:
    """Whether every element that moved is a float32 number, which a float64 one almost never is."""
    changed = moved[moved != here]
    return bool(changed.size) and bool(np.all(changed.astype(np.float32) == changed))


def _size(x: Array) -> float:
    """The root mean square of what is finite: a mask holds infinities."""
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if finite.size else 0.0


def _norm(y: Array) -> float:
    finite = y[np.isfinite(y)]
    return float(np.linalg.norm(finite.astype(np.float64)))


def _agree(mine: Sequence[Array], model: Sequence[Array]) -> bool:
    return all(_close(a, b) for a, b in zip(mine, model, strict=True))


def _close(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    b = b.astype(np.float64) if (wide := str(b.dtype)) != "float64" else b
    tolerance = _FORWARD.get(wide, 1e-3) * max(1.0, float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0)))
    return bool(np.allclose(a.astype(np.float64), b, rtol=0.0, atol=tolerance, equal_nan=True))
