"""The reverse walk: nodes from the last to the first, each handed to its rule, which yields its operands' cotangents.

A `Sweep` is one walk over the nodes of one graph. The nodes of a body (If, Loop, Scan) are walked by a sweep of their
own, whose builder makes the nodes of the backward's body: the rule of the node asks for it, see
`gradcut.rules.control_flow`. So are the nodes that an operator is made of, see `gradcut.rules.compose`. All sweeps of a
question share what is active.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from gradcut.activity import active_values
from gradcut.dialect import is_mark
from gradcut.dims import broadcast_shapes, is_float
from gradcut.errors import NoGradientError
from gradcut.ops import Builder
from gradcut.passes.guards import ALWAYS, Guard, Guards, has_conditions, is_open, runs
from gradcut.rules import REGISTRY, Adjoint, Rule, operand_label
from gradcut.rules.contract import yielded
from gradcut.rules.registry import is_variadic, output_name
from gradcut.subgraphs import captured, inner_graphs, keep_needed

#: Metadata of a backward node: which operand of which forward node it serves.
ADJOINT = "gradcut.adjoint"
SUFFIX = "_grad"


@dataclass
class Question:
    """What all sweeps of one question share.

    Attributes:
        active: the values that carry a cotangent, those of bodies included.
        functions: those of the model.
        wild: the values whose cotangent may be infinite or NaN though the forward's values are not.
        owner: for each cotangent that was named after a value: that value.
    """

    opsets: dict[str, int]
    active: set[ir.Value]
    functions: Mapping[tuple[str, str, str], ir.Function] = field(default_factory=dict)
    wild: set[ir.Value] = field(default_factory=set)
    owner: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def differentiate(
        self,
        b: Builder,
        nodes: Sequence[ir.Node],
        seeds: Iterable[tuple[ir.Value, ir.Value]],
        wanted: Iterable[ir.Value],
        finite: bool = False,
    ) -> list[ir.Value | None]:
        """Differentiate the nodes of a body, in `b`.

        Args:
            seeds: values of the body with a cotangent each.
            finite: whether those are known to be finite where the forward's values are.

        Returns:
            The cotangent of each wanted value; None is zero.
        """
        sweep, asked = Sweep(self, b), list(wanted)
        for value, cotangent in seeds:
            sweep.add(value, cotangent)
            self.wild.update(() if finite else (value,))
        sweep.walk(nodes, asked)
        return [sweep.total(value, named=False) for value in asked]  # outside, a value has a cotangent of that name

    def differentiate_made(
        self,
        b: Builder,
        nodes: Sequence[ir.Node],
        seeds: Sequence[tuple[ir.Value, ir.Value]],
        wanted: Sequence[ir.Value],
        finite: bool,
    ) -> list[ir.Value | None]:
        """Differentiate nodes that a rule made, in `b`, see `differentiate`; the active among them are found here."""
        self.active |= active_values(nodes, [value for value, _ in seeds], wanted, REGISTRY)
        return self.differentiate(b, nodes, seeds, wanted, finite)


class Sweep:
    """One reverse walk: contributions by value, and the builder of the backward nodes.

    Args:
        named: cotangents are named after their values; in a branch of the backward they are not, for outside there is
            a cotangent of each such name.
    """

    def __init__(self, question: Question, b: Builder, named: bool = True) -> None:
        self.question, self.b, self._named = question, b, named
        self._contributions: dict[ir.Value, list[ir.Value]] = defaultdict(list)
        self._total: dict[ir.Value, ir.Value] = {}

    def add(self, value: ir.Value, cotangent: ir.Value) -> None:
        """One more contribution to the cotangent of a value, where that is active."""
        if value in self.question.active:
            self._contributions[value].append(cotangent)

    def walk(self, nodes: Sequence[ir.Node], asked: Iterable[ir.Value]) -> None:
        """Every node with a cotangent, from the last to the first; what only lies behind closed stops, in an If.

        Args:
            asked: the values whose cotangent is asked for afterwards.
        """
        if not has_conditions(nodes):
            self._walk(reversed(nodes))
            return
        guards = Guards(nodes, list(self._contributions), self.question.active, self._carries)
        for guard, run in runs(nodes, guards.nodes):
            if guard == ALWAYS:
                self._walk(run)
            else:
                self._walk_guarded(guard, run, set(asked))

    def _walk_guarded(self, guard: Guard, run: Sequence[ir.Node], asked: Collection[ir.Value]) -> None:
        """Nodes whose backward is needed only where a guard is open: an If, whose other branch gives zeros."""
        made = dict.fromkeys(value for node in run for value in node.outputs)
        totals = ((value, self.total(value, named=value not in asked)) for value in made)
        seeds = [(value, total) for value, total in totals if total is not None]
        read = dict.fromkeys(value for node in run for value in _read(node) if value not in made)
        wanted = [*read, *(value for value in made if value in asked)]
        given: list[ir.Value] = []

        def backward(b: Builder) -> list[ir.Value]:
            sweep = Sweep(self.question, b, named=False)
            for value, seed in seeds:
                sweep.add(value, seed)
            sweep._walk(run)
            given[:] = [value for value in wanted if sweep.total(value, named=False) is not None]
            found = [total for value in given if (total := sweep.total(value)) is not None]
            keep_needed(b, found)
            return found

        then = self.b.body((), backward, "open")
        if not given:
            return
        other = self.b.body((), lambda b: [b.zeros_like(value) for value in given], "closed")
        choice = is_open(self.b, guard)
        outputs = self.b.node("If", choice, outputs=len(given), then_branch=then, else_branch=other).outputs
        for value, output in zip(given, outputs, strict=True):
            output.type, output.shape = value.type, value.shape
            if value in made:
                self._total[value] = output
            else:
                self.add(value, output)

    def _walk(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            totals = {index: self.total(value, self._named) for index, value in enumerate(node.outputs)}
            cotangents = {index: total for index, total in totals.items() if total is not None}
            if cotangents and not is_mark(node):
                self._visit(node, cotangents)

    # --- one node --------------------------------------------------------------------------------------------

    def _visit(self, node: ir.Node, cotangents: dict[int, ir.Value]) -> None:
        wanted = frozenset(i for i in range(len(node.inputs)) if self._wants(node, i, cotangents))
        outside = [value for value in captured(inner_graphs(node)) if value in self.question.active]
        if not any(inner_graphs(node)):
            wanted -= _without_elements(node, cotangents, wanted)
        if not wanted and not outside:
            return
        rule = self._rule(node)
        wild = any(node.outputs[index] in self.question.wild for index in cotangents)
        adjoint = Adjoint(
            node,
            self.b,
            {name: index for index, name in enumerate(rule.operands)},
            {output_name(node, index): index for index in range(_output_count(node))},
            cotangents,
            wanted,
            self.question.opsets[""],
            finite=not wild,
            captured=outside,
            inside=self.question,
        )
        if wild or not REGISTRY.bounded(node, rule, wanted):
            operands = (node.inputs[index] for index in wanted)
            self.question.wild.update(value for value in (*operands, *outside) if value is not None)
        for operand, cotangent in self._yields(rule, adjoint):
            self.add(operand, self._fit(rule, node, operand, cotangent))

    def _rule(self, node: ir.Node) -> Rule:
        rule = REGISTRY.find(node)
        if rule is None or rule.vjp is None:
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            opset = self.question.opsets.get(node.domain, self.question.opsets[""])
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
            and operand in self.question.active
            and is_float(operand)
            and any(REGISTRY.differentiable(node, index, output) for output in cotangents)
        )

    def _carries(self, node: ir.Node, index: int) -> bool:
        operand, outputs = node.inputs[index], range(len(node.outputs))
        return (
            operand is not None
            and is_float(operand)
            and any(REGISTRY.differentiable(node, index, output) for output in outputs)
        )

    def _yields(self, rule: Rule, adjoint: Adjoint) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Run a rule, and tag its nodes with the operand they serve."""
        start = len(self.b.nodes)
        with self.b.arithmetic():
            for operand, cotangent in yielded(rule, adjoint):
                self._tag(start, adjoint.node, operand)
                start = len(self.b.nodes)
                value = adjoint.node.inputs[operand] if isinstance(operand, int) else operand
                assert value is not None
                yield value, cotangent
                start = len(self.b.nodes)

    def _tag(self, start: int, node: ir.Node, operand: int | ir.Value) -> None:
        label = operand_label(node, operand) if isinstance(operand, int) else operand.name
        for built in self.b.nodes[start:]:
            if built.op_type != "Constant":
                built.metadata_props[ADJOINT] = f"{node.name}:{label}"

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

    def _sum(self, a: ir.Value, c: ir.Value, like: ir.Value) -> ir.Value:
        if isinstance(like.type, ir.SequenceType):
            return self.b.plus(a, c)
        return self.b.op("Add", a, c, dtype=like.dtype, shape=like.shape)

    def total(self, value: ir.Value, named: bool = True) -> ir.Value | None:
        """The cotangent of a value: its contributions added as a balanced tree, named after it; None is zero."""
        if value in self._total:
            return self._total[value]
        level = self._contributions.get(value, [])
        if not level:
            return None
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            odd = [level[-1]] if len(level) % 2 else []
            level = [self._sum(a, c, value) for a, c in pairs] + odd
        cotangent = level[0]
        producer = cotangent.producer()
        if named and producer is not None and producer.op_type != "Constant" and cotangent not in self.question.owner:
            cotangent.name = self.b.names.fresh(f"{value.name}{SUFFIX}")
            self.question.owner[cotangent] = value
        self._total[value] = cotangent
        return cotangent


def _read(node: ir.Node) -> list[ir.Value]:
    """The operands of a node, and what graphs inside it read."""
    return [*(value for value in node.inputs if value is not None), *captured(inner_graphs(node))]


def _without_elements(node: ir.Node, outputs: Iterable[int], wanted: frozenset[int]) -> frozenset[int]:
    """Operands whose cotangent is zero because they, or all outputs with one, are known to have no elements.

    Rules need not see to sizes that are 0 then, for which kernels fail, or, as Conv's, never end.
    """
    if not any(value is not None and _is_empty(value) for value in node.inputs):
        return frozenset()
    if all(_is_empty(node.outputs[index]) for index in outputs):
        return wanted
    return frozenset(index for index in wanted if (value := node.inputs[index]) is not None and _is_empty(value))


def _is_empty(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.shape is not None and any(dim == 0 for dim in value.shape)


def _first_named(node: ir.Node) -> str:
    """The first output of a node that the file does not leave out."""
    return shlex.quote(next((value.name for value in node.outputs if value.name), ""))


def _output_count(node: ir.Node) -> int:
    """How many outputs the operator can have: a rule may ask for one that the file leaves out."""
    return max(len(node.outputs), 5 if not is_variadic(node.domain, node.op_type) else 0)
