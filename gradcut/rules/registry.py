"""Where derivative rules are declared and found.

A rule is declared once: which operands can carry a gradient, which of them are weights, and a generator that yields
the cotangents that are wanted. Everything else reads it from here: the activity analysis, the parameter rules, the
engine, the checker, and the table in the README.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx.defs
import onnx_ir as ir

from gradcut.dialect.custom import PREFIX as CUSTOM
from gradcut.dialect.custom import gradients_of, is_custom
from gradcut.errors import SpecError
from gradcut.rules.adjoint import Adjoint, Captures

VJP = Callable[[Adjoint], Captures]
#: For a node: operand names, separated by blanks, by the name of the output that depends on them alone.
Outputs = Callable[[ir.Node], Mapping[str, str]]


@dataclass(frozen=True)
class Rule:
    """What is known of the derivative of one operator from opset `since` on.

    Attributes:
        operands: names of the operands in order; those of the ONNX operator page where there is one.
        differentiable: the operands that have a derivative; the others never carry a gradient.
        weights: the operands that make a constant a parameter.
        constant: operands that are settings: the output moves with them, and by meaning no gradient goes to them.
        outputs: for each output of a node that depends on fewer operands than all: which ones.
        broadcasts: the rule yields cotangents of the output's shape, and the engine sums them to the operand's.
        vjp: yields (operand, cotangent); None where only weights are declared, or the derivative is zero.
        zero: the derivative is zero almost everywhere.
        foreign: it is a user's; what it yields is held against the shapes that the file says.
    """

    op_type: str
    domain: str
    since: int
    operands: tuple[str, ...]
    differentiable: frozenset[str]
    weights: frozenset[str] = frozenset()
    constant: frozenset[str] = frozenset()
    outputs: Outputs = lambda node: {}
    broadcasts: bool = False
    vjp: VJP | None = None
    zero: bool = False
    foreign: bool = False

    @property
    def limits(self) -> str:
        """What the rule refuses: what its docstring says behind ``Not covered:``, on one line."""
        _, _, said = (inspect.getdoc(self.vjp) or "").partition("Not covered:")
        return " ".join(said.partition("\n\n")[0].split()).rstrip(".")


class Registry:
    """Rules by domain and operator; it declares to the floors below what they ask of an operator."""

    def __init__(self) -> None:
        self._rules: dict[tuple[str, str], list[Rule]] = {}
        self._bounded: dict[str, tuple[frozenset[str], Callable[[ir.Node], bool]]] = {}

    def add(self, rule: Rule) -> None:
        known = self._rules.setdefault((rule.domain, rule.op_type), [])
        known[:] = sorted((*(r for r in known if r.since != rule.since), rule), key=lambda r: -r.since)

    def find(self, node: ir.Node, opset: int | None = None) -> Rule | None:
        """The newest rule for a node that is not newer than its opset."""
        version = opset if opset is not None else _opset(node)
        op_type = CUSTOM if is_custom(node) else node.op_type
        for rule in self._rules.get((node.domain, op_type), ()):
            if rule.since <= version:
                return rule
        return None

    def knows(self, domain: str, op_type: str) -> bool:
        """Whether there is a derivative for an operator at some opset."""
        return any(rule.vjp or rule.zero for rule in self._rules.get((domain, op_type), ()))

    def __iter__(self) -> Iterator[Rule]:
        for key in sorted(self._rules):
            yield from self._rules[key]

    # --- Declarations, read by activity and parameters -------------------------------------------------------

    def differentiable(self, node: ir.Node, operand: int, output: int) -> bool:
        """Whether an output has a derivative by an operand; without a rule it must be assumed to."""
        rule = self.find(node)
        if is_custom(node):
            return operand in gradients_of(node)
        if rule is None or (rule.vjp is None and not rule.zero):
            return True
        name = operand_name(rule, node, operand)
        if rule.zero or name not in rule.differentiable:
            return False
        narrowed = rule.outputs(node).get(output_name(node, output))
        return narrowed is None or name in narrowed.split()

    def bounded(self, node: ir.Node, rule: Rule, wanted: Collection[int]) -> bool:
        """Whether finite cotangents of a node give its wanted operands finite ones, its values being finite."""
        if node.domain or rule.foreign or node.op_type not in self._bounded:
            return False
        unless, given = self._bounded[node.op_type]
        return not unless & {operand_name(rule, node, index) for index in wanted} and given(node)

    def declare_bounded(self, op_type: str, unless: frozenset[str], given: Callable[[ir.Node], bool]) -> None:
        """See `bounded`; `unless` one of these operands is wanted, and only where `given` says so of the node."""
        self._bounded[op_type] = unless, given

    def weight(self, node: ir.Node, operand: int) -> bool:
        """Whether a constant at this operand is a parameter."""
        rule = self.find(node)
        return rule is not None and operand_name(rule, node, operand) in rule.weights

    def constant(self, node: ir.Node, operand: int) -> bool:
        """Whether an operand is a setting, which a check of gradients holds still."""
        rule = self.find(node)
        return rule is not None and operand_name(rule, node, operand) in rule.constant


REGISTRY = Registry()


def rule(
    op_type: str,
    differentiable: str,
    *,
    weights: str = "",
    constant: str = "",
    outputs: Outputs = lambda node: {},
    broadcasts: bool = False,
    operands: str = "",
    domain: str = "",
    since: int = 1,
) -> Callable[[VJP], VJP]:
    """Declare the rule of an ONNX operator; operand names are separated by blanks.

    Args:
        constant: operands that are settings, see `Rule`.
        operands: the operands' names in order, of an operator that has no page among ONNX's.
    """

    def declare(vjp: VJP) -> VJP:
        for name in op_type.split():
            REGISTRY.add(
                Rule(
                    name,
                    domain,
                    since,
                    tuple(operands.split()) or schema_operands(domain, name),
                    frozenset(differentiable.split()),
                    frozenset(weights.split()),
                    frozenset(constant.split()),
                    outputs,
                    broadcasts,
                    vjp,
                )
            )
        return vjp

    return declare


def zero(op_types: str) -> None:
    """Declare operators whose derivative is zero almost everywhere, or not defined at all."""
    for op_type in op_types.split():
        REGISTRY.add(Rule(op_type, "", 1, schema_operands("", op_type), frozenset(), zero=True))


def bounded(op_types: str, unless: str = "", given: Callable[[ir.Node], bool] = lambda node: True) -> None:
    """Declare operators whose derivatives by all operands but `unless` are finite wherever those operands are.

    Args:
        given: asked of each node, where the operator alone does not decide.
    """
    for op_type in op_types.split():
        REGISTRY.declare_bounded(op_type, frozenset(unless.split()), given)


def register_rule(
    op_type: str,
    domain: str = "",
    since: int = 1,
    *,
    operands: str = "",
    differentiable: str | None = None,
    weights: str = "",
) -> Callable[[VJP], VJP]:
    """Give an operator of your own its derivative.

    The rule is a generator over a `gradcut.rules.Adjoint`; it yields ``(operand, cotangent)`` for the operands that
    are wanted::

        @gradcut.register_rule("Swoosh", domain="my.ops", operands="X")
        def swoosh(op):
            if op.wants("X"):
                yield "X", op.dY * op.b.Cos(op["X"])

    Args:
        operands: the operands' names in order, separated by blanks; without them, those of the ONNX operator page,
            and for an operator unknown there ``"0" "1" ...``.
        differentiable: those that have a derivative; all of them by default.
        weights: those that make a constant a parameter.
    """

    def declare(vjp: VJP) -> VJP:
        names = tuple(operands.split()) or schema_operands(domain, op_type)
        can = frozenset(names if differentiable is None else differentiable.split())
        unknown = (can | set(weights.split())) - set(names) if names else set()
        if unknown:
            raise SpecError(f"rule for {op_type}: {', '.join(sorted(unknown))} is no operand of it ({names})")
        REGISTRY.add(Rule(op_type, domain, since, names, can, frozenset(weights.split()), vjp=vjp, foreign=True))
        return vjp

    return declare


# --- names of operands ---------------------------------------------------------------------------------------


@functools.cache
def _schema(domain: str, op_type: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, 26, domain)
    except onnx.defs.SchemaError:
        return None


def schema_operands(domain: str, op_type: str) -> tuple[str, ...]:
    """Operand names of the ONNX operator page; empty for an operator unknown there."""
    schema = _schema(domain, op_type)
    return () if schema is None else tuple(operand.name for operand in schema.inputs)


def is_variadic(domain: str, op_type: str) -> bool:
    """Whether the last operand of the operator stands for any number of them."""
    schema = _schema(domain, op_type)
    return bool(
        schema and schema.inputs and schema.inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    )


def operand_name(rule: Rule, node: ir.Node, index: int) -> str:
    """The name of operand `index`; each operand of a variadic one has the same."""
    if index < len(rule.operands):
        return rule.operands[index]
    if rule.operands and is_variadic(node.domain, node.op_type):
        return rule.operands[-1]
    return str(index)


def operand_label(node: ir.Node, index: int) -> str:
    """How a person names operand `index` of a node: ``W``, or ``inputs[2]`` for one of many."""
    rule = REGISTRY.find(node)
    names = rule.operands if rule is not None and rule.operands else schema_operands(node.domain, node.op_type)
    last = len(names) - 1
    if names and index >= last and is_variadic(node.domain, node.op_type):
        return f"{names[-1]}[{index - last}]"
    return names[index] if index < len(names) else str(index)


def output_name(node: ir.Node, index: int) -> str:
    """The name of output `index` on the ONNX operator page."""
    schema = _schema(node.domain, node.op_type)
    if schema is None or index >= len(schema.outputs):
        return str(index)
    return str(schema.outputs[index].name)


def _opset(node: ir.Node) -> int:
    """The opset a node is at; a graph inside a node imports none of its own, and rules know 21 to 26 only."""
    return 21 if node.graph is None else node.graph.opset_imports.get(node.domain, 21)


def names_of(rules: Collection[Rule]) -> list[str]:
    """Operator names of some rules, sorted, with their domain where it is not ONNX's own."""
    return sorted({f"{r.domain}.{r.op_type}" if r.domain else r.op_type for r in rules})
