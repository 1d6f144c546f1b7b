"""The mark: `StopGradient`, forward the identity, backward a stop."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.dialect.core import DOMAIN, dialect_op
from gradcut.ops import Builder, Names

MARK = "StopGradient"
#: See `gradcut.activity.REASONS`.
_REASONS = frozenset({"stop-at", "dtype", "zero-derivative", "frozen", "not-trained", "data"})
#: Key of `ir.Value.meta`, which no file holds.
_STANDS_FOR = "gradcut.stands_for"


@dialect_op("X", carried="reason derived")
def stop_gradient(b: Builder, X: ir.Value) -> ir.Value:
    """Y = X, and Y is a constant for differentiation at every order (SEMANTICS: as `jax.lax.stop_gradient`)."""
    return b.Identity(X)


def is_mark(node: ir.Node | None) -> bool:
    """Whether a node is a mark, the model's own or a derived one."""
    return node is not None and node.domain == DOMAIN and node.op_type == MARK


def is_derived(node: ir.Node | None) -> bool:
    """Whether a node is a mark that `propagate` put on a cut edge."""
    return node is not None and is_mark(node) and "derived" in node.attributes


def mark_reason(node: ir.Node) -> str:
    """``mark`` for one in the file, ``stop-at`` for one asked for, the cut's reason for a derived one.

    Whatever else another tool wrote as a reason is its own: the mark is one in the file.
    """
    given = node.attributes.get("reason")
    reason = given.as_string() if given is not None and given.type == ir.AttributeType.STRING else "mark"
    return reason if reason in _REASONS else "mark"


def stand_for(marked: ir.Value, value: ir.Value) -> None:
    """Have an analysis call the output of a mark, put there for one question, by the name of what it marks."""
    marked.meta[_STANDS_FOR] = value.meta[_STANDS_FOR] = reported_name(value)


def reported_name(value: ir.Value) -> str:
    """The name a person knows a value by."""
    return value.meta.get(_STANDS_FOR, value.name) or ""


def new_mark(value: ir.Value, names: Names, reason: str | None = None, derived: bool = False) -> ir.Node:
    """A mark that reads `value`, not yet in a graph."""
    attributes = [] if reason is None else [ir.AttrString("reason", reason)]
    if derived:
        attributes.append(ir.AttrInt64("derived", 1))
    output = ir.Value(name=names.fresh(f"{value.name}_stopped"), type=value.type, shape=value.shape)
    return ir.Node(
        DOMAIN,
        MARK,
        [value],
        attributes=attributes,
        outputs=[output],
        name=names.fresh(f"{value.name}_mark"),
    )
