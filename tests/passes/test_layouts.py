"""Recurrent layers with the batch first, and of old opsets: what import makes of them, and their gradients."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import gradcut
from gradcut.runtime.check import check_gradients, require
from gradcut.runtime.widen import reference, runtime
from tests.rules.sample import Array, build
from tests.rules.samples_recurrent import samples

SAMPLES = {str(sample): sample for sample in samples()}
KINDS = ("RNN", "GRU", "LSTM")


def batch_first(name: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A sample with layout=1, whose inputs are transposed."""
    built = build(SAMPLES[name])
    graph, feeds = built.model.graph, dict(built.feeds)
    graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    for port in graph.input:
        if port.name in ("X", "initial_h", "initial_c"):
            feeds[port.name] = np.ascontiguousarray(feeds[port.name].swapaxes(0, 1))
            port.CopyFrom(helper.make_tensor_value_info(port.name, onnx.TensorProto.FLOAT, feeds[port.name].shape))
    for port in graph.output:
        port.type.tensor_type.ClearField("shape")
    return built.model, feeds


@pytest.mark.parametrize("name", ["all", "Y", "both_lengths", "reverse"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_first(kind: str, name: str) -> None:
    """ONNX Runtime refuses the file, and runs what is made of it; outputs are those of the operator page."""
    model, feeds = batch_first(f"{kind}-{name}")
    wrt, of = list(SAMPLES[f"{kind}-{name}"].wanted), [output.name for output in model.graph.output]
    proto = gradcut.vjp(model, wrt, of)
    assert "layout" not in {a.name for node in proto.graph.node for a in node.attribute}
    expected = reference(model)(feeds)
    seeds = {value.name: np.zeros_like(y) for value, y in zip(proto.graph.input[-len(of) :], expected, strict=True)}
    for mine, theirs in zip(runtime(proto)({**feeds, **seeds}), expected, strict=False):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    require(check_gradients(model, feeds, wrt, of, directions=1))


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 20, 22, 26])
@pytest.mark.parametrize("kind", KINDS)
def test_opsets(kind: str, opset: int) -> None:
    """The operators are of 7, 14 and 22; what they compute is the same."""
    sample = SAMPLES[f"{kind}-both_lengths"]
    built = build(sample)
    del built.model.opset_import[:]
    built.model.opset_import.append(helper.make_opsetid("", opset))
    expected = runtime(built.model)(built.feeds)
    proto = gradcut.vjp(built.model, list(sample.wanted), list(built.of))
    seeds = {v.name: np.ones_like(y) for v, y in zip(proto.graph.input[-len(expected) :], expected, strict=True)}
    for mine, theirs in zip(runtime(proto)({**built.feeds, **seeds}), expected, strict=False):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
    require(check_gradients(built.model, built.feeds, sample.wanted, directions=1))


def test_the_batch_first_inside_a_branch() -> None:
    """Bodies are rewritten as well."""
    model, _ = batch_first("GRU-plain")
    graph = model.graph
    body = helper.make_graph(list(graph.node), "then", [], [onnx.ValueInfoProto(name="y0")])
    del graph.node[:]
    graph.node.append(helper.make_node("If", ["c"], ["y0"], "n", then_branch=body, else_branch=body))
    del graph.output[1:]
    graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    imported = gradcut.Pipeline.parse("import")(gradcut.load(model)).model
    kinds = [node.op_type for node in imported.graph.all_nodes()]
    assert kinds.count("Transpose") == 6 and kinds.count("GRU") == 2
    layouts = [node.attributes.get("layout") for node in imported.graph.all_nodes() if node.op_type == "GRU"]
    assert layouts == [None, None]
