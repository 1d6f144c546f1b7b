"""RNN, GRU and LSTM with the batch first, as Transposes around those with the time first; called by `import`.

ONNX Runtime's CPU kernels refuse layout=1, so without this no such model could be evaluated or trained there.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder, Names

RECURRENT = frozenset({"RNN", "GRU", "LSTM"})
#: From [batch, ...] to [time or direction, batch, ...] and back, by operand and by output.
_OPERANDS = {0: [1, 0, 2], 5: [1, 0, 2], 6: [1, 0, 2]}
_OUTPUTS = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])


def time_first(model: ir.Model) -> None:
    """Turn each layout=1 into layout=0, in every graph of the model; outputs keep their names."""
    found = [node for node in model.graph.all_nodes() if _is_batch_first(node)]
    if not found:
        return
    names = Names.of(model)
    for node in found:
        node.attributes.pop("layout")
        _transpose(node, names)


def _is_batch_first(node: ir.Node) -> bool:
    return (
        node.domain == ""
        and node.op_type in RECURRENT
        and "layout" in node.attributes
        and not node.attributes["layout"].is_ref()
        and node.attributes["layout"].as_int() == 1
    )


def _transpose(node: ir.Node, names: Names) -> None:
    before, after = (Builder(names, prefix=f"{node.name or node.op_type}_") for _ in range(2))
    for index, perm in _OPERANDS.items():
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None:
            node.replace_input_with(index, before.op("Transpose", value, perm=perm))
    for output, perm in zip(node.outputs, _OUTPUTS, strict=False):
        if not output.name:
            continue
        inner = ir.Value(name=output.name, type=output.type, shape=output.shape)
        ir.convenience.replace_all_uses_with(output, inner, replace_graph_outputs=True)
        output.name, output.shape = names.fresh(f"{output.name}_time_first"), None
        after.nodes.append(ir.Node("", "Transpose", [output], [ir.AttrInt64s("perm", perm)], outputs=[inner]))
    for built in (*before.nodes, *after.nodes):
        built.metadata_props.update(node.metadata_props)
    assert isinstance(node.graph, (ir.Graph, ir.Function))
    node.graph.insert_before(node, before.nodes)
    node.graph.insert_after(node, after.nodes)
