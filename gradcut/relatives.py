"""The relatives of `gradcut.stop_gradient`: forward the identity too, backward something else than a stop.

Each takes a model as every function here does (an `onnx_ir.Model` is changed in place and returned, a path or a proto
is loaded), and patterns as `stop_gradient` does: a value, a module scope, a single use ``value->node``, one or a list.
What the patterns match that carries no gradient (integers, booleans, strings) is left alone. An error changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from gradcut.api import stop_gradient
from gradcut.dialect import declare
from gradcut.dialect.relatives import (
    CLIP_NORM,
    CLIP_VALUE,
    CONDITIONAL,
    MASK,
    REVERSAL,
    SCALE,
    STRAIGHT_THROUGH,
    new_relative,
)
from gradcut.dims import is_float
from gradcut.errors import SpecError
from gradcut.ops import Builder, Names
from gradcut.passes.custom import replace_gradient
from gradcut.passes.importer import check_opset
from gradcut.passes.masks import as_mask, fitted, laid_along
from gradcut.passes.settings import Setting, named_mask, named_setting
from gradcut.passes.stop_gradient import insert
from gradcut.passes.straight import straight_sources
from gradcut.passes.typed import typed_values
from gradcut.places import Uses, match_values
from gradcut.source import Source, load, own
from gradcut.spec import as_patterns

Patterns = str | Sequence[str]


def gradient_scale(model: Source, at: Patterns, scale: float | str) -> ir.Model:
    """Multiply the gradient by a number: dX = scale dY.

    Args:
        at: what `gradcut.stop_gradient` takes.
        scale: a number: 0 is a stop, the mark itself, and 1 is nothing; or the name of a scalar, for a schedule at
            run time: a float value of the main graph, or a new FLOAT graph input where it has none of that name. Where
            a run gives 0, what is handed on is 0 whatever came, but the backward behind it is computed all the same.

    Raises:
        PatternError: a pattern matches nothing. SpecError: `scale` is no finite number and names no float scalar.
    """
    return _scaled(model, at, scale, SCALE, 1.0)


def gradient_reversal(model: Source, at: Patterns, scale: float | str = 1.0) -> ir.Model:
    """Turn the gradient round: dX = -scale dY, the layer of domain-adversarial training.

    Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015; their lambda, which
    grows while training goes on, is a `scale` given by name. The arguments are those of `gradient_scale`.
    """
    return _scaled(model, at, scale, REVERSAL, -1.0)


def gradient_clip(model: Source, at: Patterns, value: float | None = None, norm: float | None = None) -> ir.Model:
    """Bound the gradient that goes back through a value, before anything behind it sees it.

    The cotangent is the whole of one value's, or of one use's; in a body, that of one turn. A zero one stays zero. NaN
    stays NaN, by `norm` in every element, as with torch's `clip_grad_norm_`; an infinity is brought to the bound by
    `value`, and by `norm` makes NaN of itself and 0 of all others.

    Args:
        at: what `gradcut.stop_gradient` takes.
        value: each element is brought into [-value, value].
        norm: dX = dY min(1, norm / ||dY||), the Euclidean norm of the whole cotangent; after `value`, of both.

    Raises:
        PatternError: a pattern matches nothing. SpecError: neither bound is said, or one is no number above 0.
    """
    bounds = [(CLIP_NORM, "norm", norm), (CLIP_VALUE, "value", value)]  # the last one sees the cotangent first
    said = [(op_type, _bound(name, number)) for op_type, name, number in bounds if number is not None]
    if not said:
        raise SpecError("gradient_clip: say a bound, value= of each element or norm= of the whole gradient")

    def make(value: ir.Value, names: Names) -> list[ir.Node]:
        nodes: list[ir.Node] = []
        for op_type, bound in said:
            last = nodes[-1].outputs[0] if nodes else value
            nodes += _by_constant(op_type, last, bound, names)
        return nodes

    loaded, places = _places(model, at)
    insert(loaded, places, make)
    declare(loaded)
    return loaded


def straight_through(model: Source, output: Patterns, input: str | None = None) -> ir.Model:
    """Hand the gradient of a value to what it was made of as it is: forward y = q(x) bit for bit, backward dX = dY.

    Nothing goes through q. The same, written into a graph by hand, is ``x + stop(q(x) - x)``, which rounds twice.

    Args:
        output: y, or several where `input` is left out; what `gradcut.stop_gradient` takes.
        input: x, the name of a value that y is computed from, of its dtype and shape; without it, the only float
            operand, constants aside, of the node that gives y.

    Raises:
        PatternError: `output` matches nothing. SpecError: there is no such x, or its dtype or shape is another.

    Source: Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
    """
    loaded, places = _places(model, output)
    sources = straight_sources(loaded, places, input)

    def make(value: ir.Value, names: Names) -> list[ir.Node]:
        return [new_relative(STRAIGHT_THROUGH, value, sources[value], names)]

    insert(loaded, places, make)
    declare(loaded)
    return loaded


def conditional_stop(model: Source, at: Patterns, condition: str) -> ir.Model:
    """Stop the gradient where a run says so.

    Where the condition is true the gradient stops, as at a mark; where it is false, nothing is changed. It is selected,
    never multiplied, and what lies only behind closed stops stands in an If branch that is not taken: it costs nothing,
    and NaN or infinity in a derivative there never arrives. A stop in the body of a Loop or Scan selects in each turn;
    what only gives the first state of the loop, or what a Scan slices, is computed all the same.

    A training graph has the condition among the user's inputs, to be fed at each step; the evaluation graph does not.
    A parameter behind a closed stop has a gradient of zeros: weight decay and momentum go on moving it. For one that is
    to stay as it is, freeze it in a step or phase of its own.

    Args:
        at: what `gradcut.stop_gradient` takes.
        condition: the name of a BOOL scalar: a value of the main graph, or a new graph input where it has none of that
            name. Several stops may share one.

    Raises:
        PatternError: a pattern matches nothing. SpecError: `condition` names something else than such a scalar.
    """
    if not isinstance(condition, str):
        raise SpecError(
            f"condition is the name of a BOOL scalar, not {condition!r}; gradcut.stop_gradient always stops"
        )
    return _by_name(model, at, condition, CONDITIONAL, "condition", ir.DataType.BOOL)


def gradient_mask(model: Source, at: Patterns, mask: Any, axis: int | None = None) -> ir.Model:
    """Let the gradient of some elements pass, and no other: dX = dY where the mask is true, else 0.

    What a constant mask leaves out is not computed: the products that make the gradient run on the rows, columns and
    channels that are kept, and the result is put into zeros. A mask that is no product of sets of indices along the
    axes is selected from the smallest that holds it. All false is the mark, all true is nothing. Elements of a
    parameter that are left out have a gradient of zero: weight decay and momentum go on moving them.

    Args:
        at: what `gradcut.stop_gradient` takes.
        mask: an array of booleans, or of 0 and 1: true lets the gradient pass. Of one axis, it is per channel: along
            `axis`. Otherwise it broadcasts to the value as numpy has it, one of the value's shape being per element.
            Or the name of a BOOL value of the main graph, or of a new graph input of the value's shape, or as long as
            the value is along `axis`: what it leaves out is selected away in each run.
        axis: of a mask of one axis; without it 0 for an initializer, whose first axis is often that of the channels
            given, and 1 for any other value of more than one axis.

    Raises:
        PatternError: a pattern matches nothing. SpecError: the mask is none, or does not fit a value.
    """
    loaded, places = _places(model, at)
    known = typed_values(loaded, list(dict.fromkeys(place.value for place in places)))
    if isinstance(mask, str):
        return _masked_by_name(loaded, places, known, mask, axis)
    array = as_mask(mask)
    fitting = {value: fitted(array, known[value], axis, value.is_initializer()) for value in known}
    if not array.any():
        return stop_gradient(loaded, at)

    def make(value: ir.Value, names: Names) -> list[ir.Node]:
        b = Builder(names, prefix=f"{value.name}_")
        constant = b.constant(fitting[value], ir.DataType.BOOL)
        return [*b.nodes, new_relative(MASK, value, constant, names)]

    insert(loaded, places if not array.all() else [], make)
    declare(loaded)
    return loaded


def _masked_by_name(
    model: ir.Model, places: Sequence[Uses], known: Mapping[ir.Value, ir.Value], name: str, axis: int | None
) -> ir.Model:
    shapes = {value: None if axis is None else laid_along(known[value], axis) for value in known}
    setting = named_mask(model, name, list(known.values()), axis, places)

    def make(value: ir.Value, names: Names) -> list[ir.Node]:
        b, mask, shape = Builder(names, prefix=f"{value.name}_"), setting.value, shapes[value]
        if shape is not None:
            mask = b.op("Reshape", mask, b.ints(shape), dtype=ir.DataType.BOOL)
        return [*b.nodes, new_relative(MASK, value, mask, names)]

    insert_with(model, places, setting, make)
    return model


def custom_gradient(model: Source, inputs: Patterns, outputs: Patterns, gradient: Source) -> ir.Model:
    """Put a graph of the user's in the place of the derivative of a region: of what computes `outputs` from `inputs`.

    Nothing inside the region is differentiated: operators there need no derivative, and a parameter that only it reads
    gets no gradient, unless it is one of `inputs`. A second derivative differentiates the user's graph.

    Args:
        inputs, outputs: exact names of float values of the main graph, which separate the region from the rest: nothing
            else that a run gives reaches the outputs, and nothing inside is read outside.
        gradient: a path, a proto or an IR model. Its inputs are matched by name: ``<output>_grad`` is the cotangent of
            an output, of which it reads at least one, and the name of an input or output of the region is its value.
            Its outputs are ``<input>_grad``; an input without one is constant to the region.

    Returns:
        The model; one at an older opset than 21 or than the gradient's is brought to the newer.

    Raises:
        SpecError: a name is unknown, the region is not separate, or the gradient does not fit in names, dtypes or
        shapes. ImportModelError: the gradient, or an old model, cannot be taken in.
    """
    loaded = load(model)
    check_opset(loaded)
    work = loaded.clone()
    replace_gradient(work, as_patterns(inputs), as_patterns(outputs), own(gradient))
    loaded.graph, loaded.ir_version = work.graph, work.ir_version  # the opsets of a model are those of its graph
    loaded.functions.clear()
    loaded.functions.update(work.functions)
    return loaded


def _scaled(model: Source, at: Patterns, scale: float | str, op_type: str, neutral: float) -> ir.Model:
    if isinstance(scale, str):
        return _by_name(model, at, scale, op_type, "scale", ir.DataType.FLOAT)
    number = _number("scale", scale)
    if number == 0:
        return stop_gradient(model, at)
    loaded, places = _places(model, at)
    if number != neutral:
        insert(loaded, places, lambda value, names: _by_constant(op_type, value, number, names))
        declare(loaded)
    return loaded


def _by_name(model: Source, at: Patterns, name: str, op_type: str, what: str, dtype: ir.DataType) -> ir.Model:
    """A relative whose setting is a scalar of the main graph."""
    loaded, places = _places(model, at)
    setting = named_setting(loaded, name, what, dtype, places)
    insert_with(loaded, places, setting, lambda value, names: [new_relative(op_type, value, setting.value, names)])
    return loaded


def insert_with(
    model: ir.Model, places: Sequence[Uses], setting: Setting, make: Callable[[ir.Value, Names], list[ir.Node]]
) -> None:
    """Insert what reads a setting, behind what computes that."""
    setting.put_in(model.graph)
    insert(model, places, make)
    if setting.value.producer() is not None:
        TopologicalSortPass()(model)
    declare(model)


def _places(model: Source, at: Patterns) -> tuple[ir.Model, list[Uses]]:
    """The model, and where patterns point to what can carry a gradient."""
    loaded = load(model)
    check_opset(loaded)
    patterns = as_patterns(at)
    if not patterns:
        raise SpecError("name at least one value, scope or use")
    return loaded, [place for place in match_values(patterns, loaded.graph) if is_float(place.value)]


def _by_constant(op_type: str, value: ir.Value, number: float, names: Names) -> list[ir.Node]:
    """A relative with a number; where the value's dtype is not known, in float64."""
    b = Builder(names, prefix=f"{value.name}_")
    b.constant(number, value.dtype or ir.DataType.DOUBLE)
    return [*b.nodes, new_relative(op_type, value, b.nodes[0].outputs[0], names)]


def _number(name: str, number: object) -> float:
    """A finite number; booleans are none."""
    known = isinstance(number, (int, float, np.integer, np.floating)) and not isinstance(number, bool)
    if not known or not math.isfinite(float(number)):  # type: ignore[arg-type]
        raise SpecError(f"{name} is a finite number, not {number!r}")
    return float(number)  # type: ignore[arg-type]


def _bound(name: str, number: object) -> float:
    bound = _number(name, number)
    if bound <= 0:
        raise SpecError(f"{name} is {bound:g}; a bound is above 0, and gradcut.stop_gradient stops the gradient")
    return bound
