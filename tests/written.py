"""Models written down as ONNX text, and running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir
import onnxruntime as ort

import gradcut

Feeds = Mapping[str, object]
MARK = """
<domain: "gradcut", opset_import: ["" : {opset}]>
StopGradient (X) => (Y) {{ Y = Identity (X) }}
"""


def parse(text: str, opset: int = 21, ir_version: int = 10, props: str = "", also: str = "") -> onnx.ModelProto:
    """``g (float[2] x) => (float[2] y) { y = Relu (x) }`` as a model; marks get their function."""
    marked = "gradcut." in text
    domains = f'"" : {opset}' + (', "gradcut" : 1' if marked else "") + also
    metadata = f", metadata_props: [{props}]" if props else ""
    header = f"<ir_version: {ir_version}, opset_import: [{domains}]{metadata}>\n"
    return onnx.parser.parse_model(header + text + (MARK.format(opset=opset) if marked else ""))


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | ir.Model, feeds: Feeds) -> list[np.ndarray]:
    """Outputs by ONNX Runtime, of a model that the checker takes. Feeds get the type of their input."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    onnx.checker.check_model(proto, full_check=True)
    types = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in proto.graph.input}
    return session(proto).run(None, {name: np.asarray(value, types[name]) for name, value in feeds.items()})


def gradients(
    model: onnx.ModelProto, feeds: Feeds, wrt: Sequence[str], of: Sequence[str], stop_at: Sequence[str] = ()
) -> list[np.ndarray]:
    """What `gradcut.vjp` gives for `wrt` where every cotangent is ones."""
    derived = gradcut.vjp(model, wrt=wrt, of=of, stop_at=stop_at)
    seeds = [value.name for value in derived.graph.input[-len(of) :]]
    ones = {seed: np.ones_like(value) for seed, value in zip(seeds, values(model, feeds, of), strict=True)}
    return run(derived, {**feeds, **ones})[len(of) :]


def values(model: onnx.ModelProto, feeds: Feeds, names: Sequence[str]) -> list[np.ndarray]:
    """Any values of the main graph, by ONNX Runtime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    types = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in copy.graph.input}
    return session(copy).run(None, {name: np.asarray(value, types[name]) for name, value in feeds.items()})


def names(ports: Sequence[onnx.ValueInfoProto]) -> list[str]:
    return [port.name for port in ports]


def lines(model: onnx.ModelProto | ir.Model) -> list[str]:
    """The nodes of the main graph as text, one each, without their names."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        node.ClearField("name")
    body = onnx.printer.to_text(copy.graph).partition("{\n")[2].rpartition("}")[0]
    return [" ".join(line.split()) for line in body.splitlines()]
