"""One description of a cut graph: forward, emitted backward, the cut and its reasons, and what was pruned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from gradcut.activity import Flow
from gradcut.artifacts import TrainingArtifacts
from gradcut.cost import ADJOINT, estimate
from gradcut.dialect import is_mark, mark_reason
from gradcut.losses import terms_of
from gradcut.rules import operand_label
from gradcut.source import Source
from gradcut.spec import node_scope
from gradcut.view.question import Question, of_artifacts, of_model

LOSS = "loss"
EMITTED, PLANNED, PRUNED, CUT = "emitted", "planned", "pruned", "cut"
_SHAPES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class ParameterUse:
    """A parameter at an operand. `status` is ``trained``, ``frozen``, ``not-trained``, ``unreached`` or ``state``."""

    operand: str
    name: str
    status: str


@dataclass(frozen=True)
class Adjoint:
    """The cotangent of one operand of a forward node.

    Attributes:
        status: ``emitted``: it is in the training graph, computed by the nodes `ops` (none: it is the output's own,
            handed on); ``planned``: it would be, of a model that is not compiled; ``cut``: the cut is here, for
            `reason`; ``pruned``: only full training would have it.
    """

    operand: str
    value: str
    status: str
    reason: str = ""
    ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """A forward node. `kind` is ``op``, ``mark``, ``loss``, ``input``, ``output`` or ``group`` (several nodes).

    Attributes:
        cuts: of a group, how many values are cut between its own nodes, by reason.
    """

    id: str
    kind: str
    op: str
    scope: str = ""
    reason: str = ""
    parameters: tuple[ParameterUse, ...] = ()
    adjoints: tuple[Adjoint, ...] = ()
    size: int = 1
    cuts: tuple[tuple[str, int], ...] = ()

    @property
    def has_backward(self) -> bool:
        return any(one.status in (EMITTED, PLANNED) for one in self.adjoints)

    @property
    def has_pruned(self) -> bool:
        """Whether full training would compute more here."""
        return any(one.status == PRUNED or one.reason in ("frozen", "not-trained") for one in self.adjoints)


@dataclass(frozen=True)
class Edge:
    """A value from node `source` to operand `operand` of node `target`, and what goes back along it.

    Attributes:
        backward: ``emitted``, ``planned``, ``cut`` (for `reason`), ``pruned``, or empty: nothing ever does.
    """

    source: str
    target: str
    value: str
    operand: str
    backward: str = ""
    reason: str = ""

    @property
    def is_cut(self) -> bool:
        """Whether a gradient ends here that a parameter could have had: not at data."""
        return self.backward == CUT and self.reason != "data"


@dataclass(frozen=True)
class CutGraph:
    """Nodes and edges in the order of the file.

    Attributes:
        compiled: whether there is an emitted graph. hidden: forward nodes that only compute shapes and constants.
        backward_nodes: nodes of the emitted graph that exist for gradients.
    """

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    compiled: bool
    hidden: int
    backward_nodes: int
    status: Mapping[str, str]


def describe(artifacts: TrainingArtifacts, title: str = "") -> CutGraph:
    """The cut graph of compiled artifacts."""
    question = of_artifacts(artifacts)
    tags = _tags(artifacts.training_model.graph, question.model.graph)
    describer = _Describer(question, tags, EMITTED)
    nodes, edges = describer.nodes(), describer.edges()
    manifest = artifacts.manifest
    loss = manifest["loss"]
    if loss is not None and loss["kind"] != "output":
        kinds = dict.fromkeys("loss graph" if one["kind"] == "graph" else one["kind"] for one in terms_of(loss))
        kind = " + ".join(kinds)
        blocked = {one["value"]: one["reason"] for one in manifest["cut"] if one["node"] not in describer.names}
        nodes, edges = describer.with_loss(nodes, edges, kind, loss["inputs"], blocked)
    count = estimate(artifacts.training_model.graph).backward_nodes
    return CutGraph(title, tuple(nodes), tuple(edges), True, describer.hidden, count, question.status)


def describe_model(model: Source, title: str = "") -> CutGraph:
    """The cut graph of a model that is not compiled: what would carry a gradient if all parameters trained."""
    question = of_model(model)
    describer = _Describer(question, {}, PLANNED)
    nodes, edges = describer.nodes(), describer.edges()
    return CutGraph(title, tuple(nodes), tuple(edges), False, describer.hidden, 0, question.status)


def _tags(emitted: ir.Graph, forward: ir.Graph) -> dict[tuple[str, str], tuple[str, ...]]:
    """Operators of the emitted backward by the (forward node, operand) that they serve.

    `specialize` names what it makes of a node after it; such parts count for the node. What serves no node of the
    model serves the loss.
    """
    known = {node.name for node in forward}
    found: dict[tuple[str, str], tuple[str, ...]] = defaultdict(tuple)
    for node in emitted:
        name, colon, operand = node.metadata_props.get(ADJOINT, "").rpartition(":")
        if not colon or node.op_type == "Constant":
            continue
        while name and name not in known:
            name = name.rpartition("_")[0]
        found[(name, operand) if name else (LOSS, "")] += (node.op_type,)
    return dict(found)


def _on_data_path(question: Question) -> set[ir.Node]:
    """The nodes that compute on inputs or parameters, and not on shapes and constants alone."""
    graph = question.model.graph
    sources = [value for name, value in graph.initializers.items() if name in question.status]
    reached = question.flows.forward([*graph.inputs, *sources], _hands_on_data)
    return {node for node in graph if any(value in reached for value in node.outputs)}


def _hands_on_data(flow: Flow) -> bool:
    return flow.node.op_type not in _SHAPES and not (flow.node.op_type == "CastLike" and flow.index == 1)


class _Describer:
    def __init__(self, question: Question, tags: Mapping[tuple[str, str], tuple[str, ...]], live: str) -> None:
        self.question, self.tags, self.live = question, tags, live
        self.graph = question.model.graph
        self.reasons = {(e.node, e.index): e.reason for e in question.activity.cut}
        self.carried = {(f.node, f.index) for f in question.flows.flows if question.carried(f)}
        self.in_full = {(f.node, f.index) for f in question.flows.flows if question.carried_in_full(f)}
        drawn = _on_data_path(question)
        self.drawn = [node for node in self.graph if node in drawn]
        self.names = {node.name for node in self.graph}
        self.hidden = sum(node.op_type != "Constant" for node in self.graph) - len(self.drawn)

    def nodes(self) -> list[Node]:
        inputs = [Node(f"input:{v.name}", "input", v.name or "") for v in self.graph.inputs]
        outputs = [Node(f"output:{v.name}", "output", v.name or "") for v in self.graph.outputs]
        return [*inputs, *(self._node(node) for node in self.drawn), *outputs]

    def edges(self) -> list[Edge]:
        """Every use between what is drawn."""
        drawn = set(self.drawn)
        edges = [edge for node in self.drawn for edge in self._incoming(node, drawn)]
        for value in self.graph.outputs:
            source = self._source(value, drawn)
            if source is not None:
                edges.append(Edge(source, f"output:{value.name}", value.name or "", "", *self._seeded(value)))
        return edges

    def with_loss(
        self, nodes: list[Node], edges: list[Edge], kind: str, inputs: list[str], blocked: Mapping[str, str]
    ) -> tuple[list[Node], list[Edge]]:
        """The loss as one more node behind what it reads; what serves no node of the model's serves it.

        `blocked` says of values why the loss hands them no cotangent.
        """
        loss = Node(LOSS, "loss", kind, adjoints=tuple(self._adjoints_of_loss(blocked)))
        reads = {value.name for value in self.question.of}
        kept = [edge for edge in edges if not (edge.target.startswith("output:") and edge.value in reads)]
        drawn = set(self.drawn)
        sources = {value: self._source(value, drawn) for value in self.question.of}
        moved = [
            Edge(source, LOSS, value.name or "", "", *self._seeded(value, blocked))
            for value, source in sources.items()
            if source is not None
        ]
        labels = [Node(f"input:{name}", "input", name) for name in inputs]
        ends = {edge.target for edge in kept}
        nodes = [node for node in nodes if node.kind != "output" or node.id in ends]
        return [*nodes, *labels, loss], [*kept, *moved, *(Edge(n.id, LOSS, n.op, "labels") for n in labels)]

    def _adjoints_of_loss(self, blocked: Mapping[str, str]) -> Iterator[Adjoint]:
        ops = self.tags.get((LOSS, ""), ())
        for value in self.question.of:
            status, reason = self._seeded(value, blocked)
            if status:
                yield Adjoint("scores", value.name or "", status, reason, ops if status == self.live else ())
                ops = () if status == self.live else ops

    def _seeded(self, value: ir.Value, blocked: Mapping[str, str] = MappingProxyType({})) -> tuple[str, str]:
        """What an output gets from the objective; a mark hands none of it on."""
        if value not in self.question.of:
            return "", ""
        if value in self.question.active:
            return self.live, ""
        producer = value.producer()
        reason = mark_reason(producer) if producer is not None and is_mark(producer) else ""
        reason = blocked.get(value.name or "", reason)
        return (CUT, reason) if reason else ("", "")

    # --- one node --------------------------------------------------------------------------------------------

    def _node(self, node: ir.Node) -> Node:
        if is_mark(node):
            return Node(node.name or "", "mark", "StopGradient", node_scope(node), mark_reason(node))
        return Node(
            node.name or "",
            "op",
            node.op_type,
            node_scope(node),
            parameters=tuple(self._parameters(node)),
            adjoints=tuple(self._adjoints(node)),
        )

    def _parameters(self, node: ir.Node) -> Iterator[ParameterUse]:
        for index, value in enumerate(node.inputs):
            status = self.question.status.get(value.name or "") if value is not None else None
            if value is not None and status is not None and value.producer() is None:
                yield ParameterUse(operand_label(node, index), value.name or "", status)

    def _adjoints(self, node: ir.Node) -> Iterator[Adjoint]:
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            label = operand_label(node, index)
            status, reason = self._status(node, index)
            if status:
                yield Adjoint(label, value.name or "", status, reason, self.tags.get((node.name or "", label), ()))

    def _status(self, node: ir.Node, index: int) -> tuple[str, str]:
        if (node, index) in self.carried:
            return self.live, ""
        reason = self.reasons.get((node.name or "", index))
        if reason is not None:
            return CUT, reason
        return (PRUNED, "") if (node, index) in self.in_full else ("", "")

    # --- edges -----------------------------------------------------------------------------------------------

    def _incoming(self, node: ir.Node, drawn: set[ir.Node]) -> Iterator[Edge]:
        for index, value in enumerate(node.inputs):
            source = self._source(value, drawn)
            if value is not None and source is not None:
                label = "" if is_mark(node) else operand_label(node, index)
                yield Edge(source, node.name or "", value.name or "", label, *self._going_back(node, index))
        for value in dict.fromkeys(_captured(node)):
            source = self._source(value, drawn)
            if source is not None:
                yield Edge(source, node.name or "", value.name or "", "captured")

    def _going_back(self, node: ir.Node, index: int) -> tuple[str, str]:
        """A mark is drawn where it stands: the cut is what it hands back, not what comes out of it."""
        if is_mark(node):
            return (PRUNED, "") if (node, index) in self.in_full or node.inputs[0] in self.question.full else ("", "")
        return self._status(node, index)

    def _source(self, value: ir.Value | None, drawn: set[ir.Node]) -> str | None:
        if value is None:
            return None
        producer = value.producer()
        if producer is not None:
            return producer.name if producer in drawn else None
        return f"input:{value.name}" if value.is_graph_input() and value.graph is self.graph else None


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            for inner in attribute.as_graph().all_nodes():
                for value in inner.inputs:
                    producer = value.producer() if value is not None else None
                    if value is not None and producer is not None and producer.graph is node.graph:
                        yield value
