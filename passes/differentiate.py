"""`differentiate`: reverse mode over the active values of one question, rule by rule.

The walk (`gradcut.passes.reverse`) goes once over the nodes in reverse. A node with a cotangent on an active output is
handed to its rule, which yields the cotangents of the operands that want one; what several uses contribute is added
up. The engine, not the rule, undoes broadcasting, adds fan-out by use, checks, and names: the gradient of ``x`` is
``x_grad``.

Consumes the derived marks; the model's own marks stay, and the backward reads marked values through them, so that
differentiating the result again is right too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.activity import active_values
from gradcut.dialect import declare
from gradcut.errors import PipelineError, SpecError
from gradcut.ops import Builder, Names
from gradcut.passes.base import GRADIENTS, QUESTION, Pass, read_json, register, write_json
from gradcut.passes.propagate import clear_derived, main_values
from gradcut.passes.reverse import ADJOINT, SUFFIX, Question, Sweep
from gradcut.rules import REGISTRY

__all__ = ["ADJOINT", "Differentiate", "Reverse"]


@register
@dataclass(frozen=True)
class Differentiate(Pass):
    """Append the backward of the question that `propagate` wrote down.

    The graph's outputs become those asked for, then the gradients in the order asked.

    Attributes:
        seed: ``input``: the cotangent of each output is a new graph input ``<y>_grad``; ``one``: it is 1 (a loss).
        keep: the graph's other outputs stay outputs, after the differentiated ones.
        unreached: a wanted value that no path reaches gets ``zeros`` of its run-time shape, or is left out: ``drop``.
    """

    name: ClassVar[str] = "differentiate"
    seed: str = "input"
    keep: bool = False
    unreached: str = "zeros"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        question = read_json(model, QUESTION)
        if question is None:
            raise PipelineError("differentiate needs the question that propagate{of=... wrt=...} writes down")
        clear_derived(model)
        _untag(model)
        values = main_values(model.graph)
        of, wrt = ([values[name] for name in question[key]] for key in ("of", "wrt"))
        _check_types([*of, *wrt])
        kept = [value for value in model.graph.outputs if value not in of] if self.keep else []
        engine = Reverse(model, of, wrt)
        unreached = [value.name for value in wrt if value not in engine.active]
        if self.unreached == "drop":
            engine.wrt = [value for value in wrt if value in engine.active]
        seeds = engine.seed(self.seed)
        gradients = engine.gradients()
        model.graph.extend(engine.b.nodes)
        forward = [value.name for value in (*of, *kept)]
        _outputs(model, engine, [*of, *kept], gradients)
        del model.metadata_props[QUESTION]
        names = [output.name for output in model.graph.outputs]
        written = {
            "of": dict(zip(forward, names, strict=False)),
            "seeds": {value.name: seed.name for value, seed in zip(of, seeds, strict=False)},
            "wrt": dict(zip([value.name for value in engine.wrt], names[len(forward) :], strict=True)),
            "unreached": unreached,
        }
        write_json(model, GRADIENTS, written)
        declare(model)
        return ir.passes.PassResult(model, modified=True)


def _untag(model: ir.Model) -> None:
    """What an earlier differentiation built is forward to this one."""
    for graph in model.graphs():
        for node in graph:
            node.metadata_props.pop(ADJOINT, None)


def _check_types(values: Sequence[ir.Value]) -> None:
    untyped = next((value.name for value in values if value.dtype is None), None)
    if untyped is not None:
        raise SpecError(f"the type of {untyped!r} is unknown; give the model a value_info that says it")


def _outputs(model: ir.Model, engine: Reverse, forward: Sequence[ir.Value], gradients: Sequence[ir.Value]) -> None:
    """Outputs are distinct values that nodes produce, each under its own name; any other gets an Identity."""
    built, wanted = set(engine.b.nodes), set(engine.wrt)
    extra = Builder(engine.names)

    def copy(value: ir.Value, name: str | None) -> ir.Value:
        return extra.op("Identity", value, name=name, dtype=value.dtype, shape=value.shape)

    produced = (copy(value, value.name) if value.producer() is None else value for value in forward)
    outputs: dict[ir.Value, None] = dict.fromkeys(produced)
    for value, gradient in zip(engine.wrt, gradients, strict=True):
        name, owner = f"{value.name}{SUFFIX}", engine.question.owner.get(gradient)
        others = owner is not value and owner in wanted
        if others or gradient in outputs or gradient.producer() not in built:
            gradient = copy(gradient, name)
        elif owner is not value:
            gradient.name = engine.names.fresh(name)
        outputs[gradient] = None
    model.graph.outputs[:] = list(outputs)
    model.graph.extend(extra.nodes)


class Reverse:
    """The reverse walk over the main graph, from the outputs asked for to the wanted values."""

    def __init__(self, model: ir.Model, of: Sequence[ir.Value], wrt: Sequence[ir.Value]) -> None:
        self.graph, self.of, self.wrt = model.graph, of, wrt
        self.names = Names.of(model)
        self.b = Builder(self.names, prefix="grad_")
        self.active = active_values(model.graph, of, wrt, REGISTRY)
        self.question = Question(dict(model.graph.opset_imports), self.active, dict(model.functions))
        self.sweep = Sweep(self.question, self.b)

    def seed(self, kind: str) -> list[ir.Value]:
        """Give each output its cotangent: a graph input, or the number one."""
        seeds = []
        for value in self.of:
            if kind == "one":
                cotangent = self.b.constant(1.0, value.dtype)
                cotangent.shape = value.shape
            else:
                cotangent = ir.Value(name=self.names.fresh(f"{value.name}{SUFFIX}"), type=value.type, shape=value.shape)
                self.graph.inputs.append(cotangent)
                seeds.append(cotangent)
                self.question.wild.add(value)
            self.sweep.add(value, cotangent)
        return seeds

    def gradients(self) -> list[ir.Value]:
        """The cotangent of each wanted value; zeros of its run-time shape where no path reaches it."""
        self.sweep.walk(list(self.graph), self.wrt)
        return [self.sweep.total(value) or self.b.zeros_like(value) for value in self.wrt]
