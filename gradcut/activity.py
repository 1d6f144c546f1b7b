"""The activity analysis: which values carry a cotangent for a question (of, wrt), and where it is cut and why.

Pure: it reads a graph and returns names. A value is *varied* where a wanted value reaches it through edges that have
a derivative and through no mark, *useful* where it reaches an output asked for in the same way, *active* where both
hold (Hascoët and Pascual, "The Tapenade automatic differentiation tool", 2013, section 4). Without control flow two
reachability walks decide this exactly; the bodies of If, Loop and Scan are walked as part of one flow graph, whose
cycles are the carried values, so the walks find the fixpoint there too.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import onnx_ir as ir

from gradcut.dialect import is_mark, is_relative, mark_reason, reported_name
from gradcut.dialect.relatives import carriers, is_setting
from gradcut.dims import is_float
from gradcut.subgraphs import every_node, inner_graphs

#: Why a use carries no cotangent, in the order in which they apply.
REASONS = ("mark", "stop-at", "dtype", "zero-derivative", "frozen", "not-trained", "data")
NO_PATH = "no-path-to-loss"
_BLOCKERS = frozenset(REASONS[:4])


class CutEdge(NamedTuple):
    """A use (value -> operand `index` of `node`) without a cotangent although the node's output has one."""

    value: str
    node: str
    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    reason: str


@dataclass(frozen=True)
class Activity:
    """The answer to one question: names of values, and the cut in graph order.

    A wanted value that reaches no output asked for stands in `cut` as ``(value, "", -1, "no-path-to-loss")``.
    """

    varied: frozenset[str]
    useful: frozenset[str]
    active: frozenset[str]
    cut: tuple[CutEdge, ...]


class Declarations(Protocol):
    """What the rules declare of an operator: whether an output has a derivative by an operand."""

    def differentiable(self, node: ir.Node, operand: int, output: int) -> bool: ...


class Flow(NamedTuple):
    """Data flows from `source` to `target`; `blocked` says why no derivative does, `index` is -1 in control flow."""

    source: ir.Value
    target: ir.Value
    node: ir.Node
    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    blocked: str | None


class FlowGraph:
    """Every way data takes through nodes (of a graph) and the graphs inside them, in the order of the nodes."""

    def __init__(self, nodes: Iterable[ir.Node], declarations: Declarations) -> None:
        self.flows = [flow for node in every_node(nodes) for flow in _flows(node, declarations)]
        self.outgoing: dict[ir.Value, list[Flow]] = defaultdict(list)
        self.incoming: dict[ir.Value, list[Flow]] = defaultdict(list)
        for flow in self.flows:
            self.outgoing[flow.source].append(flow)
            self.incoming[flow.target].append(flow)

    def forward(self, sources: Iterable[ir.Value], through: Callable[[Flow], bool]) -> set[ir.Value]:
        """What `sources` reach, themselves included."""
        return _reach(sources, self.outgoing, lambda flow: flow.target, through)

    def backward(self, targets: Iterable[ir.Value], through: Callable[[Flow], bool]) -> set[ir.Value]:
        """What reaches `targets`, themselves included."""
        return _reach(targets, self.incoming, lambda flow: flow.source, through)


def analyze_graph(
    graph: ir.Graph,
    of: Collection[ir.Value],
    wrt: Collection[ir.Value],
    declarations: Declarations,
    parameters: Collection[ir.Value] = (),
    frozen: Collection[ir.Value] = (),
) -> Activity:
    """Answer the question (of, wrt) for a graph.

    Args:
        parameters: what counts as a parameter when a cut is explained; `frozen` are those the user froze.
    """
    flow_graph = FlowGraph(graph, declarations)
    varied = flow_graph.forward(wrt, _carries)
    useful = flow_graph.backward(of, _carries)
    active = varied & useful
    cut = _Cut(flow_graph, graph.inputs, of, wrt, varied, active, parameters, frozen)
    return Activity(_names(varied), _names(useful), _names(active), tuple(cut.edges()))


def active_values(
    nodes: Iterable[ir.Node], of: Collection[ir.Value], wrt: Collection[ir.Value], declarations: Declarations
) -> set[ir.Value]:
    """The active values themselves, for the passes that build on them; `nodes` may be a graph."""
    flow_graph = FlowGraph(nodes, declarations)
    return flow_graph.forward(wrt, _carries) & flow_graph.backward(of, _carries)


class _Cut:
    """The frontier of the active values, and the reason of each edge of it."""

    def __init__(
        self,
        graph: FlowGraph,
        inputs: Sequence[ir.Value],
        of: Collection[ir.Value],
        wrt: Collection[ir.Value],
        varied: set[ir.Value],
        active: set[ir.Value],
        parameters: Collection[ir.Value],
        frozen: Collection[ir.Value],
    ) -> None:
        self.graph, self.varied, self.active = graph, varied, active
        self.inputs, self.wrt = inputs, wrt
        self.parameters, self.frozen = set(parameters), set(frozen)
        sources = {*self.parameters, *(value for value in inputs if is_float(value))}
        anything = lambda flow: True
        self.from_source = graph.forward(sources, anything)
        self.from_wanted = graph.forward(wrt, anything)
        self.to_output = graph.backward(of, anything)
        self.behind = self._what_lies_behind()

    def edges(self) -> Iterator[CutEdge]:
        seen: set[tuple[ir.Node, int]] = set()
        carried = {(f.node, f.index) for f in self.graph.flows if self._has_cotangent(f)}
        for flow in self.graph.flows:
            use = (flow.node, flow.index)
            if flow.index < 0 or use in seen or use in carried or flow.target not in self.active:
                continue
            if flow.source in self.from_source and flow.source in self.to_output:
                seen.add(use)
                yield CutEdge(reported_name(flow.source), flow.node.name or "", flow.index, self._reason(flow))
        for value in self.wrt:
            if value not in self.to_output:
                yield CutEdge(reported_name(value), "", -1, NO_PATH)

    def _has_cotangent(self, flow: Flow) -> bool:
        return flow.blocked is None and flow.source in self.active and flow.target in self.active

    def _reason(self, flow: Flow) -> str:
        direct = {mark_reason(mark) for mark in _marks_behind(flow.source)}
        if flow.blocked is not None:
            direct.add(flow.blocked)
        if direct:
            return min(direct, key=REASONS.index)
        wanted, plain = self.behind.get(flow.source, (frozenset(), frozenset()))
        found = wanted or (plain - _BLOCKERS) or plain or {"data"}
        return min(found, key=REASONS.index)

    def _what_lies_behind(self) -> dict[ir.Value, tuple[frozenset[str], frozenset[str]]]:
        """For each value: reasons with a wanted value behind them, and the other reasons and sources.

        One walk forward from the sources and blockers; it goes through no blocker, so each value meets the first of
        each path. Sets only grow, so cycles of carried values end.
        """
        wanted: dict[ir.Value, set[str]] = defaultdict(set)
        plain: dict[ir.Value, set[str]] = defaultdict(set)
        for value in (*self.parameters, *self.inputs):
            plain[value].add(self._source_kind(value))
        for flow in self.graph.flows:
            if flow.blocked is not None:
                (wanted if flow.source in self.from_wanted else plain)[flow.target].add(flow.blocked)
        queue = deque([*wanted, *plain])
        while queue:
            value = queue.popleft()
            for flow in self.graph.outgoing.get(value, ()):
                if flow.blocked is None and _grow(flow, wanted, plain):
                    queue.append(flow.target)
        return {value: (frozenset(wanted[value]), frozenset(plain[value])) for value in {*wanted, *plain}}

    def _source_kind(self, value: ir.Value) -> str:
        if value in self.frozen:
            return "frozen"
        return "not-trained" if value in self.parameters else "data"


def _grow(flow: Flow, *kinds: dict[ir.Value, set[str]]) -> bool:
    grown = False
    for kind in kinds:
        new = kind.get(flow.source, set()) - kind.get(flow.target, set())
        if new:
            kind[flow.target] |= new
            grown = True
    return grown


def _marks_behind(value: ir.Value) -> Iterator[ir.Node]:
    """The marks that a value has just come through."""
    producer = value.producer()
    while producer is not None and is_mark(producer):
        yield producer
        source = producer.inputs[0]
        producer = None if source is None else source.producer()


def _carries(flow: Flow) -> bool:
    return flow.blocked is None


def _names(values: Iterable[ir.Value]) -> frozenset[str]:
    return frozenset(value.name for value in values if value.name and reported_name(value) == value.name)


def _reach(
    starts: Iterable[ir.Value],
    edges: dict[ir.Value, list[Flow]],
    end: Callable[[Flow], ir.Value],
    through: Callable[[Flow], bool],
) -> set[ir.Value]:
    seen = set(starts)
    stack = list(seen)
    while stack:
        for flow in edges.get(stack.pop(), ()):
            if through(flow) and end(flow) not in seen:
                seen.add(end(flow))
                stack.append(end(flow))
    return seen


def _flows(node: ir.Node, declarations: Declarations) -> Iterator[Flow]:
    if is_mark(node):
        assert node.inputs[0] is not None
        yield Flow(node.inputs[0], node.outputs[0], node, 0, mark_reason(node))
        return
    if is_relative(node):
        yield from _relative_flows(node)
        return
    if node.domain == "" and node.op_type in _CONTROL_FLOW:
        yield from _CONTROL_FLOW[node.op_type](node)
        return
    yield from _unknown_graph_flows(node)
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        for position, output in enumerate(node.outputs):
            blocked = _blocked(value, output)
            if blocked is None and not declarations.differentiable(node, index, position):
                blocked = "zero-derivative"
            yield Flow(value, output, node, index, blocked)


def _relative_flows(node: ir.Node) -> Iterator[Flow]:
    """From what gets the cotangent, and from what the result is, which is marked; other operands only say how."""
    carrying, count = carriers(node), len(node.outputs)
    for index, value in enumerate(node.inputs):
        if value is None or is_setting(node, index):
            continue
        for output in node.outputs[index : index + 1] if index < count else node.outputs:
            blocked = _blocked(value, output) or (None if index in carrying else "mark")
            yield Flow(value, output, node, index, blocked)


def _blocked(source: ir.Value, target: ir.Value) -> str | None:
    return None if is_float(source) and is_float(target) else "dtype"


def _unknown_graph_flows(node: ir.Node) -> Iterator[Flow]:
    """An operator that is not known may do anything with its graphs: all of it reaches every output."""
    for graph in inner_graphs(node):
        for value in (value for value in node.inputs if value is not None):
            yield from (Flow(value, target, node, -1, _blocked(value, target)) for target in graph.inputs)
        for result in graph.outputs:
            yield from (Flow(result, output, node, -1, _blocked(result, output)) for output in node.outputs)


def _if_flows(node: ir.Node) -> Iterator[Flow]:
    condition = node.inputs[0]
    for output_index, output in enumerate(node.outputs):
        if condition is not None:
            yield Flow(condition, output, node, 0, "dtype")
        for branch in ("then_branch", "else_branch"):
            result = node.attributes[branch].as_graph().outputs[output_index]
            yield Flow(result, output, node, -1, _blocked(result, output))


def _loop_flows(node: ir.Node) -> Iterator[Flow]:
    body = node.attributes["body"].as_graph()
    carried = len(body.inputs) - 2
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if index < 2:
            yield from (Flow(value, output, node, index, "dtype") for output in node.outputs)
            continue
        for target in (body.inputs[index], *node.outputs[index - 2 : index - 1]):  # the second: zero trips
            yield Flow(value, target, node, index, _blocked(value, target))
    for position, result in enumerate(body.outputs):
        targets = [] if position == 0 else [*node.outputs[position - 1 : position]]
        if position <= carried:
            targets.append(body.inputs[position + 1])
        for target in targets:
            yield Flow(result, target, node, -1, _blocked(result, target))


def _scan_flows(node: ir.Node) -> Iterator[Flow]:
    body = node.attributes["body"].as_graph()
    states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        targets = [body.inputs[index], *(node.outputs[index : index + 1] if index < states else [])]
        for target in targets:
            yield Flow(value, target, node, index, _blocked(value, target))
    for position, result in enumerate(body.outputs):
        targets = [*node.outputs[position : position + 1], *([body.inputs[position]] if position < states else [])]
        for target in targets:
            yield Flow(result, target, node, -1, _blocked(result, target))


_CONTROL_FLOW: dict[str, Callable[[ir.Node], Iterator[Flow]]] = {
    "If": _if_flows,
    "Loop": _loop_flows,
    "Scan": _scan_flows,
}
