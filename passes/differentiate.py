"""`differentiate`: reverse mode over the active values of one question, rule by rule.

The walk goes once over the nodes in reverse. A node with a cotangent on an active output is handed to its rule, which
yields the cotangents of the operands that want one; what several uses contribute is added up. The engine, not the
rule, undoes broadcasting, adds fan-out by use, checks, and names: the gradient of ``x`` is ``x_grad``.

Consumes the derived marks; the model's own marks stay, and the backward reads marked values through them, so that
differentiating the result again is right too.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gradcut.activity import active_values, inner_graphs
from gradcut.dialect import declare, is_mark
from gradcut.errors import NoGradientError, PipelineError, SpecError
from gradcut.ops import Builder, Names, broadcast_shapes, is_float
from gradcut.passes.base import GRADIENTS, QUESTION, Pass, read_json, register, write_json
from gradcut.passes.propagate import clear_derived, main_values
from gradcut.rules import REGISTRY, Adjoint, Rule, operand_label
from gradcut.rules.contract import yielded
from gradcut.rules.registry import is_variadic, output_name

#: Metadata of a backward node: which operand of which forward node it serves.
ADJOINT = "gradcut.adjoint"
SUFFIX = "_grad"


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
        values = main_values(model.graph)
        of, wrt = ([values[name] for name in question[key]] for key in ("of", "wrt"))
        _check_types([*of, *wrt])
        kept = [value for value in model.graph.outputs if value not in of] if self.keep else []
        engine = Reverse(model, of, wrt)
        unreached = [value.name for value in wrt if value not in engine.active]
        if self.unreached == "drop":
            engine.wrt = [value for value in wrt if value in engine.active]
        seeds = engine.seed(self.seed)
        engine.walk()
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
        name, owner = f"{value.name}{SUFFIX}", engine.owner.get(gradient)
        others = owner is not value and owner in wanted
        if others or gradient in outputs or gradient.producer() not in built:
            gradient = copy(gradient, name)
        elif owner is not value:
            gradient.name = engine.names.fresh(name)
        outputs[gradient] = None
    model.graph.outputs[:] = list(outputs)
    model.graph.extend(extra.nodes)


class Reverse:
    """One reverse walk: contributions by value, and the builder of the backward nodes.

    Attributes:
        owner: for each cotangent that was named after a value: that value.
        wild: the values whose cotangent may be infinite or NaN though the forward's values are not.
    """

    def __init__(self, model: ir.Model, of: Sequence[ir.Value], wrt: Sequence[ir.Value]) -> None:
        self.graph, self.of, self.wrt = model.graph, of, wrt
        self.opset = model.opset_imports[""]
        self.names = Names.of(model)
        self.b = Builder(self.names, prefix="grad_")
        self.active = active_values(model.graph, of, wrt, REGISTRY)
        self.contributions: dict[ir.Value, list[ir.Value]] = defaultdict(list)
        self.total: dict[ir.Value, ir.Value] = {}
        self.owner: dict[ir.Value, ir.Value] = {}
        self.wild: set[ir.Value] = set()

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
                self.wild.add(value)
            if value in self.active:
                self.contributions[value].append(cotangent)
        return seeds

    def walk(self) -> None:
        """Every node with a cotangent, from the last to the first."""
        for node in reversed(list(self.graph)):
            cotangents = {i: self._sum(v) for i, v in enumerate(node.outputs) if self.contributions.get(v)}
            if cotangents and not is_mark(node):
                self._visit(node, cotangents)

    def gradients(self) -> list[ir.Value]:
        """The cotangent of each wanted value; zeros of its run-time shape where no path reaches it."""
        return [self._sum(value) if self.contributions.get(value) else self.b.zeros_like(value) for value in self.wrt]

    # --- one node --------------------------------------------------------------------------------------------

    def _visit(self, node: ir.Node, cotangents: dict[int, ir.Value]) -> None:
        wanted = frozenset(i for i in range(len(node.inputs)) if self._wants(node, i, cotangents))
        if not wanted and not self._wants_inside(node):
            return
        rule = self._rule(node)
        wild = any(node.outputs[index] in self.wild for index in cotangents)
        adjoint = Adjoint(
            node,
            self.b,
            {name: index for index, name in enumerate(rule.operands)},
            {output_name(node, index): index for index in range(_output_count(node))},
            cotangents,
            wanted,
            self.opset,
            finite=not wild,
        )
        if wild or not REGISTRY.bounded(node, rule, wanted):
            self.wild.update(operand for index in wanted if (operand := node.inputs[index]) is not None)
        for index, cotangent in self._yields(rule, adjoint):
            operand = node.inputs[index]
            assert operand is not None
            self.contributions[operand].append(self._fit(rule, node, operand, cotangent))

    def _rule(self, node: ir.Node) -> Rule:
        rule = REGISTRY.find(node)
        if rule is None or rule.vjp is None:
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            opset = self.graph.opset_imports.get(node.domain, self.opset)
            raise NoGradientError(
                node.name or "",
                op,
                opset,
                "there is no derivative rule for this operator. Freeze what lies before it, stop there with "
                f"--stop-at {_first_named(node)} (stop_at), or give it a rule with gradcut.register_rule.",
            )
        return rule

    def _wants(self, node: ir.Node, index: int, cotangents: dict[int, ir.Value]) -> bool:
        operand = node.inputs[index]
        return (
            operand is not None
            and operand in self.active
            and is_float(operand)
            and any(REGISTRY.differentiable(node, index, output) for output in cotangents)
        )

    def _wants_inside(self, node: ir.Node) -> bool:
        """Whether a graph inside the node computes something active from what it captures."""
        return any(value in self.active for graph in inner_graphs(node) for value in graph.outputs)

    def _yields(self, rule: Rule, adjoint: Adjoint) -> Iterator[tuple[int, ir.Value]]:
        """Run a rule, and tag its nodes with the operand they serve."""
        start = len(self.b.nodes)
        with self.b.arithmetic():
            for index, cotangent in yielded(rule, adjoint):
                self._tag(start, adjoint.node, index)
                start = len(self.b.nodes)
                yield index, cotangent
                start = len(self.b.nodes)

    def _tag(self, start: int, node: ir.Node, index: int) -> None:
        for built in self.b.nodes[start:]:
            if built.op_type != "Constant":
                built.metadata_props[ADJOINT] = f"{node.name}:{operand_label(node, index)}"

    def _fit(self, rule: Rule, node: ir.Node, operand: ir.Value, cotangent: ir.Value) -> ir.Value:
        """Undo broadcasting, or set the shape that a rule's result has by contract."""
        if not rule.broadcasts:
            if cotangent.shape is None and cotangent.producer() is not None:
                cotangent.shape = operand.shape
            return cotangent
        if cotangent.shape is None:
            shapes = [value.shape for value in node.inputs if value is not None]
            cotangent.shape = node.outputs[0].shape or broadcast_shapes(shapes)
        start = len(self.b.nodes)
        fitted = self.b.sum_to(cotangent, operand)
        self._tag(start, node, list(node.inputs).index(operand))
        return fitted

    # --- adding up -------------------------------------------------------------------------------------------

    def _sum(self, value: ir.Value) -> ir.Value:
        """The cotangent of a value: its contributions added as a balanced tree, named after the value."""
        if value in self.total:
            return self.total[value]
        level = self.contributions[value]
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            odd = [level[-1]] if len(level) % 2 else []
            level = [self.b.op("Add", a, c, dtype=value.dtype, shape=value.shape) for a, c in pairs] + odd
        cotangent = level[0]
        producer = cotangent.producer()
        if producer is not None and producer.op_type != "Constant" and cotangent not in self.owner:
            cotangent.name = self.names.fresh(f"{value.name}{SUFFIX}")
            self.owner[cotangent] = value
        self.total[value] = cotangent
        return cotangent


def _first_named(node: ir.Node) -> str:
    """The first output of a node that the file does not leave out."""
    return shlex.quote(next((value.name for value in node.outputs if value.name), ""))


def _output_count(node: ir.Node) -> int:
    """How many outputs the operator can have: a rule may ask for one that the file leaves out."""
    return max(len(node.outputs), 5 if not is_variadic(node.domain, node.op_type) else 0)
