"""Gradients against finite differences: ``<u, J v> = <J^T u, v>`` for random u and v.

The right side comes from the graph that `gradcut.vjp` emits, the left from central differences of the model itself
in float64. One pair of random directions looks at every element of a gradient at once. What is constant by meaning
is held still in the differences: marked values, and what random operators drew.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from gradcut.api import vjp
from gradcut.errors import FeedError, GradientCheckError, SpecError
from gradcut.ops import is_float
from gradcut.parameters import parameters
from gradcut.passes import Import, StopGradient
from gradcut.passes.propagate import main_values
from gradcut.rules import REGISTRY
from gradcut.runtime.differences import Differences, Slope
from gradcut.runtime.random_feeds import random_feeds
from gradcut.runtime.replay import expose_draws
from gradcut.runtime.widen import Array, Run, reference, runtime, widen
from gradcut.source import Source, own
from gradcut.spec import as_patterns

NAN, RUNTIME = float("nan"), "onnxruntime"
#: Relative error allowed, by the dtype that the backward computes in.
_RELATIVE = {"float64": 1e-6, "float32": 5e-4, "float16": 3e-2, "bfloat16": 2e-1}
#: Error allowed for u and v of length 1, where a gradient is nearly zero.
_ROUNDING = {"float64": 2e-14, "float32": 5e-7, "float16": 3e-4, "bfloat16": 2e-3}


@dataclass(frozen=True)
class ValueCheck:
    """One wanted value: the worst of its directions.

    Attributes:
        analytic: ``<J^T u, v>``. numeric: ``<u, J v>``.
        note: a kink at the point, or why no number could be had.
    """

    name: str
    analytic: float
    numeric: float
    tolerance: float
    ok: bool
    note: str = ""

    @property
    def error(self) -> float:
        return abs(self.analytic - self.numeric)

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "FAIL"
        numbers = f"analytic {self.analytic:+.6e}  numeric {self.numeric:+.6e}  error {self.error:.1e}"
        return f"{verdict} {self.name}: {numbers} (tolerance {self.tolerance:.1e}){self.note and ', ' + self.note}"


@dataclass(frozen=True)
class CheckReport:
    """What a check found; ``str`` of it is a table for a person."""

    values: tuple[ValueCheck, ...]
    of: tuple[str, ...]
    seed: int
    directions: int
    forward: str
    backward: str
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(value.ok for value in self.values)

    @property
    def failed(self) -> tuple[ValueCheck, ...]:
        return tuple(value for value in self.values if not value.ok)

    def __str__(self) -> str:
        head = f"gradients of {', '.join(self.of)}; seed {self.seed}, {self.directions} directions"
        places = f"differences: {self.forward or 'nowhere'}; backward: {self.backward}"
        return "\n".join([head, places, *(f"note: {note}" for note in self.notes), *map(str, self.values)])


def require(report: CheckReport) -> CheckReport:
    """The report itself where every gradient is right; else `GradientCheckError` with the wrong ones."""
    if not report.ok:
        raise GradientCheckError(f"{len(report.failed)} of {len(report.values)} gradients are wrong\n{report}")
    return report


def check_gradients(
    model: Source,
    feeds: Mapping[str, Array] | None = None,
    wrt: Sequence[str] | None = None,
    of: Sequence[str] | None = None,
    *,
    stop_at: str | Sequence[str] = (),
    directions: int = 3,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    backward: str = "runtime",
    differences: Differences | None = None,
) -> CheckReport:
    """Compare the gradients of a model with finite differences.

    Args:
        feeds: one array per graph input; made up where it is None.
        wrt: names of the wanted values; None: every parameter and every float input.
        of: names of the outputs to differentiate; None: every float output of the graph.
        directions: how many random pairs (u, v) are tried per wanted value.
        sizes: numbers for symbolic dimensions, where feeds are made up.
        backward: ``runtime`` runs the emitted graph in ONNX Runtime as users do (and in the reference evaluator where
            there is no kernel), ``reference`` in float64 in onnx's reference evaluator.
        differences: of an earlier check of this model, feeds and seed, whose evaluations are used again.

    Raises:
        SpecError, NoGradientError: as `gradcut.vjp`, and a seed below 0; FeedError: inputs that cannot be made up, or
        do not run. A
        wrong gradient raises nothing: see `require`.
    """
    if seed < 0:
        raise SpecError(f"seed is {seed}; it is at least 0")
    work = imported(model, stop_at)
    arrays = dict(feeds) if feeds is not None else random_feeds(work, seed, sizes)
    asked = list(of if of is not None else (v.name or "" for v in work.graph.outputs if is_float(v)))
    wanted = list(wrt if wrt is not None else _every_value(work))
    emitted = Backward(vjp(model, wanted, asked, stop_at), len(asked), backward)
    shapes = differences.base if differences is not None else _forward(work, arrays, asked, made_up=feeds is None)
    cotangents = [_cotangent(seed, name, shapes[name], emitted.dtype(at)) for at, name in enumerate(asked)]
    outputs, gradients, draws = emitted(arrays, cotangents)
    if not gradients:
        gone = tuple(ValueCheck(name, NAN, NAN, 0.0, False, "the backward could not be run") for name in wanted)
        return CheckReport(gone, tuple(asked), seed, directions, "", emitted.place, tuple(emitted.notes))
    if differences is None:
        differences = Differences(work, arrays, asked, wanted, draws=draws, like=outputs, seed=seed)
    check = _Check(differences, cotangents, directions, exact=emitted.place != RUNTIME)
    values = tuple(check.value(name, gradient) for name, gradient in zip(wanted, gradients, strict=True))
    notes = (*differences.notes, *emitted.notes)
    return CheckReport(values, tuple(asked), seed, directions, differences.place, emitted.place, notes)


def imported(model: Source, stop_at: str | Sequence[str] = ()) -> ir.Model:
    """A copy of the model as `vjp` sees it before it asks anything."""
    work = own(model)
    Import()(work)
    StopGradient(at=as_patterns(stop_at))(work)
    return work


class Backward:
    """The emitted graph, ready to run."""

    def __init__(self, proto: onnx.ModelProto, count: int, how: str) -> None:
        self.proto, self.count, self.notes = proto, count, list[str]()
        self.cotangents = [value.name for value in proto.graph.input[-count:]]
        self._kinds = {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
        self._total = len(proto.graph.output)
        self._draws = expose_draws(proto)
        self.place, self._run = RUNTIME, None if how == "reference" else self._in_runtime()
        if self._run is None:
            self.place = "float64 in onnx's reference evaluator"
            self._run = reference(ir.to_proto(widen(ir.from_proto(proto))))

    def dtype(self, position: int) -> np.dtype[np.generic]:
        """The dtype of the cotangent of an output."""
        return ir.DataType(self._kinds[self.cotangents[position]]).numpy()

    def __call__(
        self, feeds: Mapping[str, Array], cotangents: Sequence[Array]
    ) -> tuple[list[Array], list[Array], dict[str, Array]]:
        """Outputs, gradients and draws."""
        arrays = {**feeds, **dict(zip(self.cotangents, cotangents, strict=True))}
        if self.place != RUNTIME:
            arrays = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in arrays.items()}
        assert self._run is not None
        try:
            results = self._run(arrays)
        except Exception as error:  # whatever keeps it from running, the report says so
            self.notes.append(f"backward in {self.place}: {_line(error)}")
            return [], [], {}
        names = [output.name for output in self.proto.graph.output]
        by_name = dict(zip(names, results, strict=True))
        draws = {first: by_name[drawn] for first, drawn in self._draws.items()}
        return results[: self.count], results[self.count : self._total], draws

    def _in_runtime(self) -> Run | None:
        try:
            return runtime(self.proto)
        except Exception as error:  # no kernel for a dtype; the report says so
            self.notes.append(f"backward in onnxruntime: {_line(error)}")
            return None


class _Check:
    def __init__(self, differences: Differences, cotangents: Sequence[Array], directions: int, *, exact: bool) -> None:
        self.differences, self.cotangents, self.directions = differences, cotangents, directions
        self.exact = exact

    def value(self, name: str, gradient: Array) -> ValueCheck:
        """The worst direction of one wanted value."""
        if not self.differences.place:
            return ValueCheck(name, NAN, NAN, 0.0, False, "the model could not be evaluated")
        expected = self.differences.base[name].shape
        if gradient.shape != expected:
            return ValueCheck(name, NAN, NAN, 0.0, False, f"the gradient's shape is {gradient.shape}, not {expected}")
        checks = [self._direction(name, gradient, index) for index in range(self.directions)]
        return max(checks, key=lambda check: (not check.ok, check.error - check.tolerance))

    def _direction(self, name: str, gradient: Array, index: int) -> ValueCheck:
        slope = self.differences.slope(name, index, self.cotangents)
        products = gradient.astype(np.float64) * slope.direction
        analytic = float(np.sum(products))
        tolerance = self._tolerance(slope, gradient, products)
        if slope.kink:
            low, high = sorted((slope.left, slope.right))
            ok = low - tolerance <= analytic <= high + tolerance
            return ValueCheck(name, analytic, slope.central, tolerance, ok, f"a kink: slopes {low:.4g} and {high:.4g}")
        ok = abs(analytic - slope.central) <= tolerance
        note = "the model rounds coarsely here" if slope.coarse else ""
        return ValueCheck(name, analytic, slope.central, tolerance, bool(ok), note)

    def _tolerance(self, slope: Slope, gradient: Array, products: Array) -> float:
        """Relative to the slope and to the terms that make it up, and what rounding of this size of u and v leaves."""
        kind = "float64" if self.exact else str(gradient.dtype)
        exact = self.differences.place.startswith("float64") and not slope.coarse
        relative = _RELATIVE[kind] if exact else max(_RELATIVE[kind], 2e-2)
        terms = float(np.sqrt(np.sum(np.square(products))))
        size = sum(float(np.linalg.norm(u.astype(np.float64))) for u in self.cotangents)
        rounding = _ROUNDING[kind] * size * float(np.linalg.norm(slope.direction))
        return relative * max(abs(slope.central), terms) + rounding + slope.noise / 30


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _every_value(model: ir.Model) -> list[str]:
    inputs = [value.name or "" for value in model.graph.inputs if is_float(value)]
    return [*parameters(model.graph, REGISTRY), *inputs]


def _cotangent(seed: int, name: str, like: Array, dtype: np.dtype[np.generic]) -> Array:
    """A random cotangent of an output, its own whatever else is asked for."""
    rng = np.random.default_rng([seed, 1, zlib.crc32(name.encode())])
    return np.asarray(rng.standard_normal(like.shape), dtype)


def _forward(model: ir.Model, feeds: Mapping[str, Array], of: Sequence[str], made_up: bool) -> dict[str, Array]:
    """The outputs, for their shapes."""
    plain = model.clone()
    values = main_values(plain.graph)
    plain.graph.outputs[:] = [values[name] for name in of]
    proto = ir.to_proto(plain)
    try:
        outputs = runtime(proto)(feeds)
    except Exception:  # a kernel is missing; the reference evaluator has it, or says why not
        try:
            outputs = reference(proto)(feeds)
        except Exception as error:
            fed = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            what, advice = ("made-up", "; give real ones with --data") if made_up else ("these", "")
            raise FeedError(f"the model does not run on {what} inputs ({fed}): {_line(error)}{advice}") from error
    return dict(zip(of, outputs, strict=True))
