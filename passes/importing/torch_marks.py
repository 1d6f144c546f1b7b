"""Marks that torch's exporter wrote down without a node of ours: by what its metadata say a node was.

1. The Identity of ``x.detach()`` is a mark.
2. Rows that ``Embedding(padding_idx=k)`` looks up at k are marked: ``Where(indices == k, mark(rows), rows)``.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from gradcut.dialect import DOMAIN, MARK, new_mark
from gradcut.ops import Builder, Names
from gradcut.parameters import constant_tensor

#: Where torch's exporter says what a node was.
_FX_NODE = "pkg.torch.onnx.fx_node"
#: The third argument of aten.embedding(weight, indices, padding_idx=-1, ...); below 0 there is none.
_PADDING = re.compile(r"aten\.embedding\.default\]\(args = \([^,()]*, [^,()]*, (\d+)[,)]")


def mark_as_torch(model: ir.Model) -> None:
    """Put in the marks that torch's metadata tell of."""
    names = Names.of(model)
    for graph in model.graphs():
        for node in tuple(graph):
            told = node.metadata_props.get(_FX_NODE, "")
            if node.domain == "" and node.op_type == "Identity" and "aten.detach" in told:
                _mark_detached(node)
            padding = _PADDING.search(told)
            if node.domain == "" and node.op_type == "Gather" and padding:
                _mark_padding(graph, node, int(padding[1]), names)


def _mark_detached(node: ir.Node) -> None:
    """A detach of a literal (``torch.tensor(c)`` writes one) is left as it is: it is constant anyway."""
    source = node.inputs[0]
    if source is not None and constant_tensor(source) is None:
        node.domain, node.op_type = DOMAIN, MARK


def _mark_padding(graph: ir.Graph | ir.Function, node: ir.Node, padding: int, names: Names) -> None:
    """What is looked up at `padding` takes no gradient to the table, as in torch; the result keeps its name."""
    rows, indices = node.outputs[0], node.inputs[1]
    if indices is None or indices.dtype is None:
        return
    uses, outputs = list(rows.uses()), list(graph.outputs)
    b, mark = Builder(names, prefix=f"{rows.name}_"), new_mark(rows, names)
    there = b.Unsqueeze(b.op("Equal", indices, b.constant(padding, indices.dtype)), b.ints([-1]))
    b.nodes.append(mark)
    chosen = b.op("Where", there, mark.outputs[0], rows, dtype=rows.dtype, shape=rows.shape)
    for user, index in uses:
        user.replace_input_with(index, chosen)
    for position, output in enumerate(outputs):
        if output is rows:
            graph.outputs[position] = chosen
    rows.name, chosen.name = chosen.name, rows.name
    graph.insert_after(node, b.nodes)
