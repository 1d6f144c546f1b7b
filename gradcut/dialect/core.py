"""The dialect's registry, and its ops as model-local functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from gradcut.ops import AttrRef, Builder, Names

DOMAIN = "gradcut"
Body = Callable[..., ir.Value]


@dataclass(frozen=True)
class DialectOp:
    """One op: its operands, its attributes, and its body in standard ONNX.

    Attributes:
        carried: attributes of the call that the body does not read (a mark's reason).
    """

    name: str
    operands: tuple[str, ...]
    attributes: Mapping[str, ir.AttributeType]
    body: Body
    carried: frozenset[str] = frozenset()

    def function(self, opset: int) -> ir.Function:
        """The op as a function of a model at `opset`."""
        names = Names(self.operands)
        b = Builder(names)
        inputs = [ir.Value(name=name) for name in self.operands]
        refs = {name: AttrRef(name, kind) for name, kind in self.attributes.items()}
        with b.arithmetic():
            output = self.body(b, *inputs, **refs)
        for node in b.nodes:
            _forget_types(node)
        graph = ir.Graph(inputs, [output], nodes=b.nodes, opset_imports={"": opset}, name=self.name)
        declared = [ir.Attr(name, kind, None) for name, kind in self.attributes.items()]
        return ir.Function(DOMAIN, self.name, graph=graph, attributes=declared)


DIALECT: dict[str, DialectOp] = {}


def dialect_op(operands: str, carried: str = "", **attributes: ir.AttributeType) -> Callable[[Body], Body]:
    """Register a body; the op's name is the function's name in CamelCase."""

    def register(body: Body) -> Body:
        name = "".join(part[:1].upper() + part[1:] for part in body.__name__.split("_"))
        DIALECT[name] = DialectOp(name, tuple(operands.split()), attributes, body, frozenset(carried.split()))
        return body

    return register


def expand(b: Builder, node: ir.Node) -> ir.Value:
    """The reference lowering of a call: its body, with this call's attributes and known shapes."""
    op = DIALECT[node.op_type]
    attributes: dict[str, Any] = {name: node.attributes[name].value for name in op.attributes}
    with b.arithmetic():
        return op.body(b, *node.inputs, **attributes)


def calls(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the dialect: in the main graph, in the graphs inside it, in the bodies of functions."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in body.all_nodes():
            if node.domain == DOMAIN:
                yield node


def declare(model: ir.Model) -> None:
    """Give the model the functions of exactly the dialect ops it calls, at its own opset."""
    used = {name for node in calls(model) for name in (node.op_type, _named(node))}
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        if key[1] not in used or key[1] in DIALECT:
            del model.functions[key]
    for name in sorted(used & DIALECT.keys()):
        function = DIALECT[name].function(model.opset_imports[""])
        model.functions[function.identifier()] = function
    if used:
        model.opset_imports[DOMAIN] = 1
    else:
        model.opset_imports.pop(DOMAIN, None)


def _named(node: ir.Node) -> str:
    """The function that a call names as its backward, which nothing calls before it is differentiated."""
    return node.attributes["backward"].as_string() if "backward" in node.attributes else node.op_type


def _forget_types(node: ir.Node) -> None:
    for value in node.outputs:
        value.type = None
        value.shape = None
