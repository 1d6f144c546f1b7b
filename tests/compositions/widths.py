"""A case in another width of floats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.compositions.generate import Case

WIDTHS = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


def retyped(case: Case, width: str) -> Case:
    """The case with every float32 in another width; what stands in Casts too."""
    model = ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = WIDTHS[width]
    wide = [_tensor(tensor, width) for tensor in graph.initializer]
    del graph.initializer[:]
    graph.initializer.extend(wide)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = WIDTHS[width]
            if attribute.name == "value":
                attribute.t.CopyFrom(_tensor(attribute.t, width))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            zero = numpy_helper.from_array(np.zeros(1, width))
            node.attribute.append(helper.make_attribute("value", zero))
        if node.op_type == "Resize" and len(node.input) > 2 and node.input[2]:
            _keep_scales(graph, node.input[2])
    feeds = {name: array.astype(width) for name, array in case.feeds.items()}
    return replace(case, model=model, feeds=feeds)


def _tensor(tensor: TensorProto, width: str) -> TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(width), tensor.name)


def _keep_scales(graph: onnx.GraphProto, name: str) -> None:
    """Scales are float32 in a model of any width."""
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name))
