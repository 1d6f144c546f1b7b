"""A cut graph as Graphviz text: forward on the left, the backward beside it, the cut in between.

Every kind differs in colour and in shape or line: forward nodes are rounded boxes, the emitted backward are sharp boxes
with a heavy border, a cut is an octagon, and what was pruned is dashed.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from gradcut.view.describe import CUT, EMITTED, PLANNED, PRUNED, Adjoint, CutGraph, Edge, Node

FORWARD, BACKWARD, STOP, GONE = "#2b6cb0", "#c05621", "#c53030", "#a0aec0"
_FILL = {"op": "#ebf4fb", "group": "#dbeafe", "loss": "#d9f0e3", "mark": "#fed7d7"}
_STATUS = {"trained": "#276749", "frozen": "#718096", "not-trained": "#718096", "unreached": STOP, "state": "#6b46c1"}
_FONT = "Arial"
_MARKS = ("mark", "stop-at")


def to_dot(graph: CutGraph) -> str:
    """Deterministic Graphviz text."""
    return "\n".join(["digraph cut {", *_head(graph), *_body(graph), *_legend(graph), "}"]) + "\n"


def _head(graph: CutGraph) -> Iterator[str]:
    yield f"graph [rankdir=TB labelloc=t labeljust=l fontname={_quoted(_FONT)} fontsize=14 nodesep=0.35 ranksep=0.35"
    yield f"  label={_html(_title(graph))}];"
    yield f"node [fontname={_quoted(_FONT)} fontsize=11 margin={_quoted('0.12,0.06')}];"
    yield f"edge [fontname={_quoted(_FONT)} fontsize=9 arrowsize=0.7];"


def _title(graph: CutGraph) -> str:
    counts: dict[str, int] = {}
    for status in graph.status.values():
        counts[status] = counts.get(status, 0) + 1
    parameters = ", ".join(f"{counts[status]} {status}" for status in _STATUS if status in counts and status != "state")
    rows = [f"<b>{escape(graph.title)}</b>", f"parameters: {parameters or 'none'}"]
    rows.append(f"backward: {graph.backward_nodes} nodes emitted" if graph.compiled else "not compiled")
    if graph.hidden:
        rows.append(f"not drawn: {graph.hidden} nodes that only compute shapes or constants")
    small = [rows[0], *(f'<font point-size="10">{row}</font>' for row in rows[1:])]
    lines = "".join(f'<tr><td align="left">{row}</td></tr>' for row in small)
    return f'<table border="0" cellspacing="0" cellpadding="2">{lines}</table>'


def _body(graph: CutGraph) -> Iterator[str]:
    numbers = {node.id: number for number, node in enumerate(graph.nodes)}
    beside = set()
    for node in graph.nodes:
        number = numbers[node.id]
        yield f"f{number} {_forward(node)};"
        if node.has_backward or node.has_pruned:
            beside.add(node.id)
            yield f"b{number} {_backward(node)};"
            yield f"{{rank=same; f{number}; b{number}}}"
            yield f"f{number} -> b{number} [style=invis weight=0];"
    for number, edge in enumerate(graph.edges):
        source, target = numbers[edge.source], numbers[edge.target]
        yield f'f{source} -> f{target} [color="{FORWARD}" weight=4 tooltip={_quoted(edge.value)}];'
        to = f"b{source}" if edge.source in beside else ""
        back = f"b{target}" if edge.target in beside else f"f{target}"
        if edge.backward == CUT and edge.reason in _MARKS:
            yield f'f{source} -> {back} [dir=back arrowtail=tee color="{STOP}" penwidth=1.8 weight=2];'
        elif to and edge.backward:
            yield from _going_back(edge, f"c{number}", to, back)


def _going_back(edge: Edge, cut: str, source: str, target: str) -> Iterator[str]:
    """The cotangent's way, drawn against the value's."""
    if edge.backward == CUT:
        yield f"{cut} {_octagon(edge.reason)};"
        yield f'{source} -> {cut} [dir=none style=dashed color="{GONE}" weight=2];'
        yield f'{cut} -> {target} [dir=back arrowtail=tee color="{STOP}" penwidth=1.8 weight=2];'
    elif edge.backward == PRUNED:
        yield f'{source} -> {target} [dir=back style=dashed color="{GONE}" weight=2];'
    else:
        yield f'{source} -> {target} [dir=back color="{BACKWARD}" penwidth=1.8 weight=2];'


def _octagon(reason: str) -> str:
    label = _html(f'<font color="white" point-size="10"><b>cut: {escape(reason)}</b></font>')
    return f'[shape=octagon style=filled fillcolor="{STOP}" color="{STOP}" label={label} margin="0.04,0.02"]'


# --- boxes ---------------------------------------------------------------------------------------------------


def _forward(node: Node) -> str:
    if node.kind in ("input", "output"):
        around = 2 if node.kind == "output" else 1
        return f'[shape=ellipse peripheries={around} color="{FORWARD}" label={_quoted(node.op)}]'
    if node.kind == "mark":
        label = f"<b>StopGradient</b><br/>{escape(node.reason)}"
        colours = f'fillcolor="{_FILL["mark"]}" color="{STOP}"'
        return f"[shape=octagon style=filled {colours} penwidth=2 label={_html(label)}]"
    rows = [f"<b>{escape(node.op)}</b>", f'<font color="#4a5568" point-size="9">{escape(_short(node.id))}</font>']
    rows += [_parameter(one.operand, one.name, one.status) for one in node.parameters]
    shape = 'shape=box style="rounded,filled"'
    return f'[{shape} fillcolor="{_FILL[node.kind]}" color="{FORWARD}" label={_html(_table(rows))}]'


def _parameter(operand: str, name: str, status: str) -> str:
    colour = _STATUS[status]
    text = f"{escape(operand)} {escape(_short(name))}: {status}".strip()
    text = f"<b>{text}</b>" if status == "trained" else f"<i>{text}</i>"
    return f'<font color="{colour}" point-size="9">{text}</font>'


def _backward(node: Node) -> str:
    name = f'<font color="#4a5568" point-size="9">{escape(_short(node.id))}</font>'
    rows = [f"<b>backward of {escape(node.op)}</b>", name, *(_adjoint(one) for one in node.adjoints)]
    if node.has_backward:
        planned = all(one.status != EMITTED for one in node.adjoints)
        style = "filled,dashed" if planned else "filled"
        shape = f'shape=box style="{style}" fillcolor="#feebdd" color="{BACKWARD}" penwidth=2.2'
    else:
        rows = [f'<font color="#718096">{row}</font>' for row in [f"pruned: backward of {escape(node.op)}", *rows[1:]]]
        shape = f'shape=box style="dashed" color="{GONE}" penwidth=1.4'
    return f"[{shape} label={_html(_table(rows))}]"


def _adjoint(one: Adjoint) -> str:
    name = escape(_differential(one.operand))
    if one.status == EMITTED:
        return f'<font point-size="9">{name}: {_operators(one.ops)}</font>'
    if one.status == PLANNED:
        return f'<font point-size="9">{name}</font>'
    if one.status == PRUNED:
        return f'<font point-size="9" color="#718096"><s>{name}</s>&#160; pruned</font>'
    colour = "#718096" if one.reason in ("frozen", "not-trained", "data") else STOP
    return f'<font point-size="9" color="{colour}"><s>{name}</s>&#160; {escape(one.reason)}</font>'


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
        return f"{len(ops)} nodes"
    return ", ".join(map(escape, ops))


def _legend(graph: CutGraph) -> Iterator[str]:
    live = "emitted backward" if graph.compiled else "backward, if compiled"
    dashed = "" if graph.compiled else ",dashed"
    boxes = [
        f'l1 [shape=box style="rounded,filled" fillcolor="{_FILL["op"]}" color="{FORWARD}" label="forward"]',
        f'l2 [shape=box style="filled{dashed}" fillcolor="#feebdd" color="{BACKWARD}" penwidth=2.2 label="{live}"]',
        f"l3 {_octagon('reason')}",
        f'l4 [shape=box style=dashed color="{GONE}" fontcolor="#718096" penwidth=1.4 label="pruned (full training)"]',
    ]
    yield 'subgraph cluster_legend { label="legend" labeljust=l color="#e2e8f0" fontsize=10'
    yield from (f"  {box};" for box in boxes)
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
