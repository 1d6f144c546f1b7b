"""Sparse weights, which the IR has none of: as ONNX Runtime does, they are made dense where a model is taken in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from gradcut.errors import NotOnnxError


def densified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The proto itself, or a copy with dense tensors in place of sparse ones.

    Raises:
        NotOnnxError: a sparse tensor contradicts itself, or lies in another file.
    """
    if not any(_has_sparse(nodes, graph) for nodes, graph in _bodies(proto)):
        return proto
    dense = onnx.ModelProto()
    dense.CopyFrom(proto)
    for nodes, graph in _bodies(dense):
        for tensor in graph.sparse_initializer if graph is not None else ():
            graph.initializer.append(_dense(tensor))  # type: ignore[union-attr]
        if graph is not None:
            graph.ClearField("sparse_initializer")
        for attribute in _sparse_attributes(nodes):
            attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
            attribute.t.CopyFrom(_dense(attribute.sparse_tensor))
            attribute.ClearField("sparse_tensor")
    return dense


def _bodies(proto: onnx.ModelProto) -> Iterator[tuple[list[onnx.NodeProto], onnx.GraphProto | None]]:
    """Nodes of the graph, of graphs inside nodes, and of functions; and the graph, where it is one."""
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while waiting:
        body = waiting.pop()
        yield list(body.node), body if isinstance(body, onnx.GraphProto) else None
        for node in body.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _has_sparse(nodes: list[onnx.NodeProto], graph: onnx.GraphProto | None) -> bool:
    return (graph is not None and bool(graph.sparse_initializer)) or any(True for _ in _sparse_attributes(nodes))


def _sparse_attributes(nodes: list[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    for node in nodes:
        if node.op_type == "Constant":
            yield from (attribute for attribute in node.attribute if attribute.HasField("sparse_tensor"))


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Its values at its indices, each a place in the flat tensor or one along every axis, and zeros elsewhere."""
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        array = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 2:
            array[tuple(indices.T)] = values
        else:
            array.reshape(-1)[indices] = values
    except Exception as error:  # of a shape, a place, or a type; or it lies in another file
        raise NotOnnxError(f"sparse tensor {sparse.values.name!r} of shape {list(sparse.dims)}: {error}") from error
    return numpy_helper.from_array(array, sparse.values.name)
