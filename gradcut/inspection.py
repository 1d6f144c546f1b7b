"""What is in a model: parameters and why, state, scopes, outputs, what the exporter destroyed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from gradcut.dialect import is_mark, is_relative, mark_reason
from gradcut.exporters import destroyed
from gradcut.parameters import Decision, decide
from gradcut.passes import Import
from gradcut.passes.stop_gradient import frozen_names
from gradcut.rules import REGISTRY
from gradcut.source import Source, own
from gradcut.spec import aliases, scopes
from gradcut.text import human, join_names

Table = list[tuple[str, ...]]


@dataclass(frozen=True)
class Inspection:
    """A model as `compile` sees it after import; opset, exporter and what was destroyed are the file's."""

    model: ir.Model
    opset: int
    ir_version: int
    exporter: str
    decisions: tuple[Decision, ...]
    frozen: frozenset[str]
    destroyed: tuple[str, ...]
    aliases: Mapping[str, list[str]]

    def head(self) -> Iterator[tuple[str, str]]:
        graph = self.model.graph
        yield "exporter", self.exporter or "not said"
        yield "opset", f"{self.opset} (IR version {self.ir_version})"
        yield "nodes", str(len(graph))
        for heading, values in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            yield heading, join_names((_typed(value) for value in values), 12)
        counted = {kind: [d for d in self.decisions if d.kind == kind] for kind in ("parameter", "state", "constant")}
        for kind, found in counted.items():
            yield f"{kind}s" if kind != "state" else kind, f"{len(found)}, {human(sum(d.size for d in found))} numbers"
        marks = [node for node in graph.all_nodes() if is_mark(node)]
        if marks:
            yield "marks", join_names(f"{_read(node)} ({mark_reason(node)})" for node in marks)
        relatives = [node for node in graph.all_nodes() if is_relative(node)]
        if relatives:
            yield "gradients", "changed at " + join_names(f"{_read(node)} ({node.op_type})" for node in relatives)

    def tables(self) -> Iterator[tuple[str, Table]]:
        for kind in ("parameter", "state", "constant"):
            table = [self._row(decision) for decision in self.decisions if decision.kind == kind]
            if table:
                yield f"{kind}s" if kind != "state" else kind, table
        found = [(scope, f"{len(nodes)} nodes") for scope, nodes in sorted(scopes(self.model.graph).items())]
        if found:
            yield "scopes", [*found]

    def _row(self, decision: Decision) -> tuple[str, ...]:
        shape = "x".join(map(str, decision.shape)) or "scalar"
        note = "frozen; " if decision.name in self.frozen else ""
        also = f"; also {', '.join(self.aliases[decision.name])}" if decision.name in self.aliases else ""
        return decision.name, shape, f"{decision.size}", note + decision.reason + also


def inspect(model: Source) -> Inspection:
    """Look at a model; it is not changed.

    Raises:
        ImportModelError: it cannot be taken in.
    """
    work = own(model)
    lost = tuple(destroyed(work.graph))
    exporter = f"{work.producer_name or ''} {work.producer_version or ''}".strip()
    opset, version = work.opset_imports.get("", 0), work.ir_version or 0
    Import()(work)
    decisions = decide(work.graph, REGISTRY)
    also = aliases(work.graph, {name for name, decision in decisions.items() if decision.kind == "parameter"})
    frozen = frozenset(frozen_names(work))
    return Inspection(work, opset, version, exporter, tuple(decisions.values()), frozen, lost, also)


def _typed(value: ir.Value) -> str:
    dtype = value.dtype.name if value.dtype is not None else "?"
    dims = None if value.shape is None else [str(d if isinstance(d, int) else d.value or "?") for d in value.shape]
    return f"{value.name} {dtype}[{'?' if dims is None else ', '.join(dims)}]"


def _read(node: ir.Node) -> str:
    value = node.inputs[0]
    return (value.name if value is not None else None) or "?"
