"""MeanVarianceNormalization written out: ONNX's own body of it adds a float32 to numbers of any width."""

from __future__ import annotations

import onnx_ir as ir

from gradcut.ops import Builder, Names

_EPSILON = 1e-9


def write_out_mean_variance(model: ir.Model) -> None:
    """Y = D / (sqrt(mean D^2) + 1e-9), where D = X - mean X, over `axes`, which are 0, 2 and 3 where none are said."""
    names = Names.of(model)
    for node in [n for n in model.graph.all_nodes() if n.op_type == "MeanVarianceNormalization" and n.domain == ""]:
        b, X, Y = Builder(names, prefix=f"{node.outputs[0].name}_"), node.inputs[0], node.outputs[0]
        assert X is not None and node.graph is not None
        axes = b.ints(node.attributes["axes"].as_ints() if "axes" in node.attributes else [0, 2, 3])
        D = b.Sub(X, b.ReduceMean(X, axes, keepdims=1))
        deviation = b.Sqrt(b.ReduceMean(b.Mul(D, D), axes, keepdims=1))
        result = b.op("Div", D, b.Add(deviation, _EPSILON), dtype=Y.dtype, shape=Y.shape)
        for built in b.nodes:
            built.metadata_props.update(node.metadata_props)
        node.graph.insert_before(node, b.nodes)
        ir.convenience.replace_all_uses_with(Y, result, replace_graph_outputs=True)
        node.graph.remove(node)
        result.name = Y.name
