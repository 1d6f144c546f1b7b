"""A cut graph as Graphviz text: forward on the left, the backward beside it, the cut in between.

Every kind differs in colour and in shape or line: forward nodes are rounded boxes, the emitted backward are sharp boxes
with a heavy border, a cut is an octagon, and what was pruned is dashed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from gradcut.text import counted
from gradcut.view.describe import EMITTED, PLANNED, PRUNED, Adjoint, CutGraph, Edge, Node

FORWARD, BACKWARD, STOP, GONE = "#2b6cb0", "#c05621", "#c53030", "#a0aec0"
_FILL = {"op": "#ebf4fb", "mark": "#ebf4fb", "group": "#dbeafe", "loss": "#d9f0e3"}
_LIVE = "#feebdd"
_GREY = "#718096"
_STATUS = {"trained": "#276749", "frozen": _GREY, "not-trained": _GREY, "unreached": STOP, "state": "#6b46c1"}
#: Reasons of operands that nobody is surprised by.
_EXPECTED = ("frozen", "not-trained", "data", "dtype")
_FONT = "Arial"
_TEE = f'tee color="{STOP}" penwidth=1.8'


def to_dot(graph: CutGraph) -> str:
    """Deterministic Graphviz text."""
    return "\n".join(["digraph cut {", *_head(graph), *_body(graph), *_legend(graph), "}"]) + "\n"


def said(word: str) -> str:
    """A status or reason as people say it."""
    return "not trained" if word == "not-trained" else word


def _head(graph: CutGraph) -> Iterator[str]:
    yield f"graph [rankdir=TB labelloc=t labeljust=l fontname={_quoted(_FONT)} fontsize=14 nodesep=0.35 ranksep=0.35"
    yield f"  label={_html(_title(graph))}];"
    yield f"node [fontname={_quoted(_FONT)} fontsize=11 margin={_quoted('0.12,0.06')}];"
    yield f"edge [fontname={_quoted(_FONT)} fontsize=9 arrowsize=0.7];"


def _title(graph: CutGraph) -> str:
    counts = Counter(graph.status.values())
    parameters = ", ".join(f"{counts[one]} {said(one)}" for one in _STATUS if counts[one] and one != "state")
    rows = [f"parameters: {parameters or 'none'}"]
    rows.append(f"backward: {counted(graph.backward_nodes, 'node')} emitted" if graph.compiled else "not compiled")
    if graph.hidden:
        only = "that only computes" if graph.hidden == 1 else "that only compute"
        rows.append(f"not drawn: {counted(graph.hidden, 'node')} {only} shapes or constants")
    title = [f"<b>{escape(graph.title)}</b>"] if graph.title else []
    small = [f'<font point-size="10">{row}</font>' for row in rows]
    lines = "".join(f'<tr><td align="left">{row}</td></tr>' for row in [*title, *small])
    return f'<table border="0" cellspacing="0" cellpadding="2">{lines}</table>'


def _body(graph: CutGraph) -> Iterator[str]:
    numbers = {node.id: number for number, node in enumerate(graph.nodes)}
    beside = {node.id: f"b{numbers[node.id]}" for node in graph.nodes if node.has_backward or node.has_pruned}
    for node in graph.nodes:
        number = numbers[node.id]
        yield f"f{number} {_forward(node)};"
        if node.id in beside:
            yield f"b{number} {_backward(node)};"
            yield _side_by_side(f"f{number}", f"b{number}", "style=invis weight=0")
        for place, (reason, count) in enumerate(node.cuts):
            yield f"i{number}_{place} {_octagon(reason, count)};"
            yield _side_by_side(beside.get(node.id, f"f{number}"), f"i{number}_{place}", f"arrowhead={_TEE} weight=0")
    yield from _flow(graph, numbers)
    yield from _cotangents(graph, numbers, beside)


def _side_by_side(left: str, right: str, style: str) -> str:
    return f"{{rank=same; {left}; {right}}} {left} -> {right} [{style}];"


def _flow(graph: CutGraph, numbers: Mapping[str, int]) -> Iterator[str]:
    """What is computed, an arrow from one box to another however many values go there."""
    values: dict[tuple[str, str], dict[str, None]] = {}
    for edge in graph.edges:
        values.setdefault((edge.source, edge.target), {})[edge.value] = None
    for (source, target), names in values.items():
        tooltip = _quoted(", ".join(names))
        yield f'f{numbers[source]} -> f{numbers[target]} [color="{FORWARD}" weight=4 tooltip={tooltip}];'


def _cotangents(graph: CutGraph, numbers: Mapping[str, int], beside: Mapping[str, str]) -> Iterator[str]:
    """The cotangents' way, drawn against the values'. What is cut of a box for one reason shares an octagon."""
    values = _cut_values(graph.edges)
    cuts = {key: f"c{number}" for number, key in enumerate(values)}
    marks = {node.id for node in graph.nodes if node.kind == "mark"}
    for (source, reason), cut in cuts.items():
        yield f"{cut} {_octagon(reason, len(values[source, reason]))};"
        if source in marks:
            yield _side_by_side(f"f{numbers[source]}", cut, f'dir=none style=dotted color="{STOP}" weight=0')
        elif source in beside:
            yield f'{beside[source]} -> {cut} [dir=none style=dashed color="{GONE}" weight=2];'
        else:
            yield f'f{numbers[source]} -> {cut} [dir=none style=dotted color="{STOP}"];'
    back = {**beside, **{source: cut for (source, _), cut in cuts.items() if source in marks}}
    passed = {edge.target: edge.source for edge in graph.edges if edge.target in marks - set(back)}
    yield from dict.fromkeys(_stopped(graph.edges, numbers, back, cuts))
    yield from dict.fromkeys(_going_back(graph.edges, back, passed))


def _cut_values(edges: Sequence[Edge]) -> dict[tuple[str, str], set[str]]:
    """The values that are cut, by the box they come from and the reason."""
    found: dict[tuple[str, str], set[str]] = {}
    for edge in edges:
        if edge.is_cut:
            found.setdefault((edge.source, edge.reason), set()).add(edge.value)
    return found


def _stopped(
    edges: Sequence[Edge], numbers: Mapping[str, int], back: Mapping[str, str], cuts: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    for edge in edges:
        if edge.is_cut:
            target = back.get(edge.target, f"f{numbers[edge.target]}")
            yield f"{cuts[edge.source, edge.reason]} -> {target} [dir=back arrowtail={_TEE} weight=2];"


def _going_back(edges: Sequence[Edge], back: Mapping[str, str], passed: Mapping[str, str]) -> Iterator[str]:
    """What is emitted and what is pruned; it goes past a mark that no gradient gets to."""
    live = f'color="{BACKWARD}" penwidth=1.8'
    styles = {PRUNED: f'style=dashed color="{GONE}"', EMITTED: live, PLANNED: live}
    for edge in edges:
        source, target = back.get(passed.get(edge.source, edge.source)), back.get(edge.target)
        if edge.backward in styles and source and target:
            yield f"{source} -> {target} [dir=back {styles[edge.backward]} weight=2];"


def _octagon(reason: str, count: int = 1) -> str:
    times = f"{count} " if count > 1 else ""
    label = _html(f'<font color="white" point-size="10"><b>cut: {times}{escape(said(reason))}</b></font>')
    return f'[shape=octagon style=filled fillcolor="{STOP}" color="{STOP}" label={label} margin="0.04,0.02"]'


# --- boxes ---------------------------------------------------------------------------------------------------


def _forward(node: Node) -> str:
    if node.kind in ("input", "output"):
        around = 2 if node.kind == "output" else 1
        return f'[shape=ellipse peripheries={around} color="{FORWARD}" label={_quoted(node.op)}]'
    rows = [f"<b>{escape(node.op)}</b>", _named(node)]
    rows += [_parameter(one.operand, one.name, one.status) for one in node.parameters]
    shape = 'shape=box style="rounded,filled"'
    return f'[{shape} fillcolor="{_FILL[node.kind]}" color="{FORWARD}" label={_html(_table(rows))}]'


def _named(node: Node) -> str:
    """A mark by its reason and a group by its scope: their ids say nothing."""
    name = {"mark": node.reason, "group": node.scope}.get(node.kind, node.id)
    return f'<font color="#4a5568" point-size="9">{escape(_short(name))}</font>'


def _parameter(operand: str, name: str, status: str) -> str:
    colour = _STATUS[status]
    text = f"{escape(operand)} {escape(_short(name))}: {said(status)}".strip()
    text = f"<b>{text}</b>" if status == "trained" else f"<i>{text}</i>"
    return f'<font color="{colour}" point-size="9">{text}</font>'


def _backward(node: Node) -> str:
    rows = [f"<b>backward of {escape(node.op)}</b>", _named(node), *(_adjoint(one) for one in node.adjoints)]
    if node.has_backward:
        planned = all(one.status != EMITTED for one in node.adjoints)
        style = "filled,dashed" if planned else "filled"
        shape = f'shape=box style="{style}" fillcolor="{_LIVE}" color="{BACKWARD}" penwidth=2.2'
    else:
        rows = [f'<font color="{_GREY}">{row}</font>' for row in [f"pruned: backward of {escape(node.op)}", *rows[1:]]]
        shape = f'shape=box style="dashed" color="{GONE}" penwidth=1.4'
    return f"[{shape} label={_html(_table(rows))}]"


def _adjoint(one: Adjoint) -> str:
    name = escape(_differential(one.operand))
    if one.status == EMITTED:
        return f'<font point-size="9">{name}: {_operators(one.ops)}</font>'
    if one.status == PLANNED:
        return f'<font point-size="9">{name}</font>'
    if one.status == PRUNED:
        return f'<font point-size="9" color="{_GREY}"><s>{name}</s>&#160; pruned</font>'
    colour = _GREY if one.reason in _EXPECTED else STOP
    return f'<font point-size="9" color="{colour}"><s>{name}</s>&#160; {escape(said(one.reason))}</font>'


def _differential(operand: str) -> str:
    """``dX``, ``d input``; the count of operands of a group as it is."""
    if operand[:1].isdigit():
        return operand
    return f"d{operand}" if operand[:1].isupper() else f"d {operand}"


def _operators(ops: tuple[str, ...]) -> str:
    """Runs of one operator are counted; no operator means that the output's cotangent is handed on."""
    if not ops:
        return "handed on"
    if len(ops) > 3:
        return counted(len(ops), "node")
    return ", ".join(map(escape, ops))


def _legend(graph: CutGraph) -> Iterator[str]:
    """The kinds that are in the picture."""
    yield 'subgraph cluster_legend { label="legend" labeljust=l color="#e2e8f0" fontsize=10'
    yield f'  l1 [shape=box style="rounded,filled" fillcolor="{_FILL["op"]}" color="{FORWARD}" label="forward"];'
    if any(node.has_backward for node in graph.nodes):
        style, label = ("filled", "emitted backward") if graph.compiled else ("filled,dashed", "backward, if compiled")
        yield f'  l2 [shape=box style="{style}" fillcolor="{_LIVE}" color="{BACKWARD}" penwidth=2.2 label="{label}"];'
    if any(edge.is_cut for edge in graph.edges) or any(node.cuts for node in graph.nodes):
        yield f"  l3 {_octagon('reason')};"
    if any(node.has_pruned and not node.has_backward for node in graph.nodes):
        look = f'style=dashed color="{GONE}" fontcolor="{_GREY}" penwidth=1.4'
        yield f'  l4 [shape=box {look} label="pruned (full training)"];'
    yield "}"


def _table(rows: list[str]) -> str:
    lines = "".join(f"<tr><td>{row}</td></tr>" for row in rows)
    return f'<table border="0" cellspacing="0" cellpadding="1">{lines}</table>'


def _short(name: str, limit: int = 44) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2 - 2]}...{name[-limit // 2 + 1 :]}"


def _html(text: str) -> str:
    return f"<{text}>"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
