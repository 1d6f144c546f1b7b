"""Gradients against finite differences: ``<u, J v> = <J^T u, v>`` for random u and v.

The right side comes from the graph that `gradcut.vjp` emits, the left from central differences of the model itself
in float64. One pair of random directions looks at every element of a gradient at once. What is constant by meaning
is held still in the differences: marked values, and what random operators drew. What changes a
gradient on purpose is written out by marks, or taken out of both, see `gradcut.runtime.plain`.

A difference is no derivative at a kink, a jump or the edge of where a model is defined. There the point is moved a
little, and the gradient there, computed anew, is judged. Which of the gradients that are right on one side a rule gives
at the point itself, is a convention, which differences know nothing of.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from gradcut.api import vjp
from gradcut.dims import is_float
from gradcut.errors import FeedError, SpecError
from gradcut.parameters import parameters
from gradcut.passes import BodyDraws, Import, StopGradient
from gradcut.passes.importing.straight_through import allow, spell_out
from gradcut.passes.propagate import main_values
from gradcut.rules import REGISTRY
from gradcut.runtime.backward import Backward, line
from gradcut.runtime.budget import Budget, spread
from gradcut.runtime.differences import Differences
from gradcut.runtime.plain import plain, spell_out_relatives
from gradcut.runtime.point import Point, rough_note
from gradcut.runtime.random_feeds import random_feeds
from gradcut.runtime.shift import Shift, shifts
from gradcut.runtime.together import together
from gradcut.runtime.verdict import CheckReport, Direction, ValueCheck, require
from gradcut.runtime.widen import Array, reference, runtime
from gradcut.source import Source, own, take_in
from gradcut.spec import as_patterns


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
    seconds: float | None = None,
    quantized: str = "refuse",
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
        seconds: no further value is looked at by itself after this long; those looked at are spread over the model,
            the others are the report's `unseen`, and judged `together`. None: each by itself.
        quantized: as in `gradcut.vjp`; what is rounded is held still, and what went in moves it.

    Raises:
        SpecError, NoGradientError: as `gradcut.vjp`, and a seed below 0; FeedError: inputs that cannot be made up, or
        do not run. A wrong gradient, and one that cannot be judged, raises nothing: see `require`.
    """
    if seed < 0:
        raise SpecError(f"seed is {seed}; it is at least 0")
    budget = Budget(seconds)
    model, taken_out = plain(model, quantized)
    work = imported(model, stop_at, quantized)
    spell_out(work)
    spell_out_relatives(work)
    given = random_feeds(work, seed, sizes) if feeds is None else feeds
    arrays = {name: array if isinstance(array, list) else np.asarray(array) for name, array in given.items()}
    asked = list(of if of is not None else _float_outputs(work))
    wanted = list(wrt if wrt is not None else _every_value(work))
    emitted = Backward(vjp(model, wanted, asked, stop_at, quantized=quantized), len(asked), backward)
    base = differences.base if differences is not None else _forward(work, arrays, asked, made_up=feeds is None)
    check = _Check(work, asked, seed, directions, backward, taken_out)
    point = check.point(emitted, arrays, wanted, base, differences)
    return check.report(point, wanted, budget)


def imported(model: Source, stop_at: str | Sequence[str] = (), quantized: str = "refuse") -> ir.Model:
    """A copy of the model as `vjp` sees it before it asks anything."""
    work = own(model)
    allow(work, quantized)
    Import()(work)
    StopGradient(at=as_patterns(stop_at))(work)
    BodyDraws()(work)
    take_in(work)  # each evaluator gets a proto, which has no folder to look for weights in
    return work


class _Check:
    """The question, wherever it is asked."""

    def __init__(
        self, work: ir.Model, of: list[str], seed: int, directions: int, how: str, notes: tuple[str, ...] = ()
    ) -> None:
        self.work, self.of, self.seed, self.directions, self.how, self.notes = work, of, seed, directions, how, notes

    def report(self, point: Point, wanted: Sequence[str], budget: Budget) -> CheckReport:
        found = dict[str, ValueCheck | Direction]()
        for name in spread(wanted):
            if found and budget.spent:
                break
            found[name] = point.verdict(name)
        rough = {name: value for name, value in found.items() if isinstance(value, Direction)}
        found.update(self._elsewhere(point, rough, budget) if rough else {})
        judged = {name: value for name in wanted if isinstance(value := found.get(name), ValueCheck)}
        unseen = tuple(name for name in wanted if name not in judged)
        notes = (*self.notes, *(point.differences.notes if point.differences else ()), *point.emitted.notes)
        place = point.differences.place if point.differences else ""
        return CheckReport(
            tuple(judged.values()),
            tuple(self.of),
            self.seed,
            self.directions,
            place,
            point.emitted.place,
            notes,
            unseen,
            together(point, unseen) if unseen else None,
        )

    def point(
        self,
        emitted: Backward,
        feeds: Mapping[str, Array],
        wanted: Sequence[str],
        base: Mapping[str, Array],
        differences: Differences | None = None,
        work: ir.Model | None = None,
    ) -> Point:
        """Run the backward at a point, and get its differences ready.

        Args:
            base: the outputs there. work: the model there, where its weights are moved too.
        """
        cotangents = [_cotangent(self.seed, name, base[name], emitted.dtype(at)) for at, name in enumerate(self.of)]
        results = emitted(feeds, cotangents)
        if differences is None and results is not None:
            like, draws = results.outputs, results.draws
            differences = Differences(work or self.work, feeds, self.of, wanted, draws=draws, like=like, seed=self.seed)
        return Point(self.directions, emitted, feeds, wanted, cotangents, results, differences)

    # --- at a distance from kinks ------------------------------------------------------------------------------

    def _elsewhere(self, point: Point, rough: dict[str, Direction], budget: Budget) -> dict[str, ValueCheck]:
        """Verdicts on the values that have no slope at the point; none on those left when the budget is spent."""
        assert point.differences is not None
        found, left = dict[str, ValueCheck](), dict(rough)
        for shift in shifts(fine=point.differences.fine, kinds=[d.rough for d in rough.values()]):
            if budget.spent:
                return found
            moved = self._moved(point, shift, list(left)) if left else None
            if moved is None:
                continue
            for name, verdict in [(name, moved.verdict(name)) for name in left]:
                if isinstance(verdict, ValueCheck) and verdict.decided:
                    where = f"{rough_note(left.pop(name))} at the point; judged where it is {shift}, seed {self.seed}"
                    found[name] = replace(verdict, note="; ".join(filter(None, (where, verdict.note))))
        return {**found, **{name: point.as_it_is(name, direction) for name, direction in left.items()}}

    def _moved(self, point: Point, shift: Shift, names: list[str]) -> Point | None:
        """The question at a point that is moved in the values that are named; None where nothing runs there."""
        weights = self.work.graph.initializers
        inner = any(name not in point.feeds and name not in weights for name in names)
        inputs = [v.name or "" for v in self.work.graph.inputs if is_float(v) and (inner or v.name in names)]
        feeds = {**point.feeds, **shift({name: point.feeds[name] for name in inputs}, self.seed)}
        work, emitted = self.work, point.emitted
        if own_weights := [name for name in names if name in weights]:
            work = _with_weights(work, lambda arrays: shift(arrays, self.seed), own_weights)
            emitted = Backward(vjp(work, point.wanted, self.of), len(self.of), self.how)
        try:
            moved = self.point(emitted, feeds, point.wanted, _forward(work, feeds, self.of), work=work)
        except FeedError:
            return None
        return moved if moved.runs and moved.holes <= point.holes else None


def _with_weights(
    work: ir.Model, change: Callable[[dict[str, Array]], dict[str, Array]], names: Sequence[str]
) -> ir.Model:
    """A copy of a model with other numbers in some initializers."""
    copy = work.clone()
    values = [copy.graph.initializers[name] for name in names]
    arrays = {v.name or "": v.const_value.numpy() for v in values if v.const_value is not None}
    for name, array in change(arrays).items():
        copy.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    return copy


def _float_outputs(model: ir.Model) -> list[str]:
    found = dict.fromkeys(value.name or "" for value in model.graph.outputs if is_float(value))
    if not found:
        outputs = ", ".join(
            f"{v.name!r} ({v.dtype.name if v.dtype else 'of no known type'})" for v in model.graph.outputs
        )
        raise SpecError(f"the model has no float output to take gradients of: {outputs}")
    return list(found)


def _every_value(model: ir.Model) -> list[str]:
    inputs = [value.name or "" for value in model.graph.inputs if is_float(value)]
    found = [*parameters(model.graph, REGISTRY), *inputs]
    if not found:
        raise SpecError("the model has no parameter and no float input; name values to check with --wrt (wrt=)")
    return found


def _cotangent(seed: int, name: str, like: Array, dtype: np.dtype[np.generic]) -> Array:
    """A random cotangent of an output, its own whatever else is asked for; what is no number is not looked at."""
    rng = np.random.default_rng([seed, 1, zlib.crc32(name.encode())])
    drawn = np.asarray(rng.standard_normal(like.shape))
    return np.where(np.isfinite(like.astype(np.float64)), drawn, 0.0).astype(dtype)


def _forward(model: ir.Model, feeds: Mapping[str, Array], of: Sequence[str], made_up: bool = False) -> dict[str, Array]:
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
            raise FeedError(f"the model does not run on {what} inputs ({fed}): {line(error)}{advice}") from error
    return dict(zip(of, outputs, strict=True))


__all__ = ["CheckReport", "Differences", "ValueCheck", "check_gradients", "imported", "require"]
