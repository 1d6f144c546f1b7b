"""The life of a relative: through text and pipelines, emitted without a trace, checked without crying wolf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import gradcut
from gradcut.cli.app import app
from gradcut.passes import Pipeline
from gradcut.runtime.check import check_gradients
from gradcut.source import load
from gradcut.view.describe import describe_model
from tests.relatives.subjects import optimised
from tests.written import parse, session

Relative = Callable[[gradcut.source.Source, str], ir.Model]
RELATIVES: dict[str, Relative] = {
    "scale": lambda model, at: gradcut.gradient_scale(model, at, 0.5),
    "scale by name": lambda model, at: gradcut.gradient_scale(model, at, "rate"),
    "reversal": lambda model, at: gradcut.gradient_reversal(model, at),
    "clip": lambda model, at: gradcut.gradient_clip(model, at, value=1e-3, norm=1e-3),
    "conditional": lambda model, at: gradcut.conditional_stop(model, at, "closed"),
    "mask": lambda model, at: gradcut.gradient_mask(model, at, [1, 0], 1) if at in "yv" else _half(model, at),
    "straight through": lambda model, at: gradcut.straight_through(model, "r"),
}
CONV = """g (float[n, 3, 6, 6] x, float[4, 3, 3, 3] w, float[4] b, float[4, 2] v) => (float[n, 2] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)  k = GlobalAveragePool (r)  f = Flatten (k)
    y = MatMul (f, v) }"""


def _half(model: gradcut.source.Source, at: str) -> ir.Model:
    """Every other of the four channels."""
    return gradcut.gradient_mask(model, at, [1, 0, 1, 0], 0 if at == "w" else 1)


SETTINGS = {"rate": np.array(0.5, "f4"), "closed": np.array(False)}
each = pytest.mark.parametrize("relative", RELATIVES.values(), ids=RELATIVES)


def command(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def conv() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = parse(CONV)
    for value in list(model.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype("f4"), value.name)
        )
    del model.graph.input[1:]
    return model


def feeds(*names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    given = {"x": rng.standard_normal((2, 3, 6, 6)).astype("f4"), "labels": np.zeros((2, 2), "f4")}
    return {**given, **{name: array for name, array in SETTINGS.items() if name in names}}


@each
def test_the_forward_is_bit_for_bit_the_same(relative: Relative) -> None:
    model = relative(relative(conv(), "r"), "y")
    given = {
        name: array for name, array in feeds(*(v.name or "" for v in model.graph.inputs)).items() if name != "labels"
    }
    (expected,) = session(conv()).run(None, {"x": given["x"]})
    np.testing.assert_array_equal(session(ir.to_proto(model)).run(["y"], given)[0], expected)


@each
def test_nothing_is_left_in_what_is_emitted_and_fusion_goes_on(relative: Relative, tmp_path: Path) -> None:
    """Of the frozen forward Conv and Relu are one kernel, as in the plain model."""
    plain = gradcut.compile(conv(), loss="mse", train=["v"])
    artifacts = gradcut.compile(relative(relative(relative(conv(), "c"), "r"), "w"), loss="mse", train=["v"])
    for name in ("training_model", "eval_model", "step_model"):
        graphs = [optimised(one.models[name], tmp_path) for one in (artifacts, plain)]
        mine, other = ([(node.domain, node.op_type) for node in graph.graph.node] for graph in graphs)
        assert mine == other
        assert "gradcut" not in {opset.domain for opset in graphs[0].opset_import}


@each
def test_the_trained_forward_has_no_node_more(relative: Relative, tmp_path: Path) -> None:
    """Whatever the backward does, the evaluation graph is that of the plain model."""
    artifacts = gradcut.compile(relative(conv(), "r"), loss="mse")
    plain = gradcut.compile(conv(), loss="mse")
    graphs = [optimised(one.eval_model, tmp_path) for one in (artifacts, plain)]
    assert [node.op_type for node in graphs[0].graph.node] == [node.op_type for node in graphs[1].graph.node]


@each
def test_text_and_pipelines_and_back(relative: Relative, tmp_path: Path) -> None:
    """A file of text, imported, differentiated and verified after each pass, gives what the model does."""
    model = relative(conv(), "r")
    ir.save(model, tmp_path / "model.onnx")
    (tmp_path / "model.onnxtxt").write_text(ir.to_onnx_text(model))
    pipeline = "import,propagate{of=y wrt=[w,v]},differentiate,simplify,lower"
    found = []
    for suffix in ("onnx", "onnxtxt"):
        out = tmp_path / f"out_{suffix}.onnx"
        command("opt", tmp_path / f"model.{suffix}", "-p", pipeline, "-o", out, "--verify-each")
        names = [value.name for value in onnx.load(out).graph.input]
        given = {**feeds(*names), "y_grad": np.ones((2, 2), "f4")}
        found.append(session(onnx.load(out)).run(None, {name: given[name] for name in names}))
    direct = load(gradcut.vjp(model, ["w", "v"], ["y"]))
    found.append(
        session(ir.to_proto(direct)).run(None, {value.name: given[value.name] for value in direct.graph.inputs})
    )
    for one, text, other in zip(*found, strict=True):
        np.testing.assert_allclose(text, one, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(one, other)
    assert str(Pipeline.parse(pipeline)) == pipeline


@each
def test_it_is_there_after_every_pass_and_gone_after_emit(relative: Relative) -> None:
    model = relative(conv(), "r")
    count = sum(node.domain == "gradcut" for node in model.graph)
    for text in ("import", "fold", "propagate{of=y wrt=w}", "differentiate", "simplify", "lower"):
        Pipeline.parse(text)(model)
        own = [node for node in model.graph if node.domain == "gradcut" and "derived" not in node.attributes]
        assert (
            sum(node.op_type in {n.op_type for n in relative(conv(), "r").graph if n.domain} for node in own) == count
        )
    Pipeline.parse("emit")(model)
    assert not [node for node in model.graph if node.domain] and not model.functions


@each
def test_a_check_does_not_cry_wolf(relative: Relative) -> None:
    report = check_gradients(relative(relative(conv(), "f"), "r"))
    assert report.ok and all(value.decided for value in report.values), str(report)


@each
def test_pictures_and_explanations(relative: Relative, tmp_path: Path) -> None:
    model = relative(conv(), "r")
    assert describe_model(ir.from_proto(ir.to_proto(model))).nodes
    ir.save(model, tmp_path / "model.onnx")
    command("visualize", tmp_path / "model.onnx", "-o", tmp_path / "g.svg")
    gradcut.compile(model, loss="mse").save(tmp_path / "build")
    command("visualize", tmp_path / "build", "-o", tmp_path / "h.svg")
    for name in ("w", "v", "r", "r_scaled"):
        CliRunner().invoke(app, ["explain", str(tmp_path / "build"), name])
    assert "w" in command("explain", tmp_path / "build", "w")
    assert "float" in command("inspect", tmp_path / "model.onnx").lower()


@each
def test_what_is_exported_is_the_plain_model(relative: Relative, tmp_path: Path) -> None:
    """Settings go with what reads them; with its marks, the file is the one that was given."""
    model = relative(conv(), "r")
    session_ = gradcut.TrainingSession(gradcut.compile(model, loss="mse"))
    session_.export(tmp_path / "plain.onnx")
    session_.export(tmp_path / "marked.onnx", keep_marks=True)
    plain = onnx.load(tmp_path / "plain.onnx")
    assert [node.op_type for node in plain.graph.node] == [node.op_type for node in conv().graph.node]
    assert [value.name for value in plain.graph.input] == ["x"] and not plain.functions
    again, given = gradcut.vjp(tmp_path / "marked.onnx", ["w"], ["y"]), gradcut.vjp(model, ["w"], ["y"])
    assert again.graph == given.graph and list(again.functions) == list(given.functions)


@each
def test_compiling_twice_writes_the_same_bytes(relative: Relative) -> None:
    one, other = (gradcut.compile(relative(conv(), "r"), loss="mse") for _ in range(2))
    for name in one.models:
        assert ir.to_proto(one.models[name]).SerializeToString() == ir.to_proto(other.models[name]).SerializeToString()
