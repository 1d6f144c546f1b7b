"""What stop-gradient means, rule by rule, where no other test says it; `test_table` has the whole list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import onnxruntime as ort
import pytest

import gradcut
from tests.uses.common import backward, normal, outputs
from tests.written import parse, session

# --- 1: forward it is the identity -----------------------------------------------------------------------------

DTYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 2, 0, 3)], ids=str)
def test_the_forward_is_the_identity_bit_for_bit(kind: str, shape: tuple[int, ...]) -> None:
    dims = f"[{','.join(map(str, shape))}]" if shape else ""
    model = parse(f"g ({kind}{dims} x) => ({kind}{dims} y) {{ h = gradcut.StopGradient (x)  y = Identity (h) }}")
    rng, dtype, count = np.random.default_rng(0), np.dtype(DTYPES[kind]), int(np.prod(shape))
    bits = rng.integers(0, 2, count, np.uint8) if kind == "bool" else rng.bytes(count * dtype.itemsize)
    x = np.frombuffer(bits, dtype).reshape(shape)  # every pattern of bits, NaN and infinity among them
    assert outputs(model, {"x": x})["y"].tobytes() == x.tobytes()


KERNEL = ", ".join(f"{i % 7 - 3}" for i in range(54))
CONV = f"""g (float[1,2,6,6] x) => (float[1,3,4,4] y) <float[3,2,3,3] w = {{{KERNEL}}}> {{
    c = Conv (x, w)  m = gradcut.StopGradient (c)  y = Relu (m) }}"""


def optimised(model: onnx.ModelProto | ir.Model, folder: Path) -> list[str]:
    """The operators of the runtime's own optimised graph; layouts of one machine only (nchwc) are left out."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 4
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def test_conv_mark_relu_fuses_to_one_kernel(tmp_path: Path) -> None:
    """In the file itself, in what `vjp` gives with a question behind the mark, and in what `compile` emits."""
    assert optimised(parse(CONV), tmp_path) == ["FusedConv"]
    behind = parse(
        CONV.replace("y = Relu (m)", "r = Relu (m)  y = Mul (r, s)").replace("float[3,2", "float s = {2}, float[3,2")
    )
    derived = optimised(gradcut.vjp(behind, ["s"], ["y"]), tmp_path)
    assert derived.count("FusedConv") == 1 and not {"Conv", "Relu", "Identity", "StopGradient"} & set(derived)
    artifacts = gradcut.compile(behind, "mse", train=["s"])
    for graph in (artifacts.training_model, artifacts.eval_model):
        assert not [node for node in graph.graph.all_nodes() if node.domain == "gradcut"] and not graph.functions
        assert optimised(graph, tmp_path).count("FusedConv") == 1


def test_no_mark_is_left_in_what_is_emitted() -> None:
    """In bodies too; an output that is marked, an input, a weight, keeps its name."""
    text = """g (bool c, float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
        h = Mul (x, w)  z = gradcut.StopGradient (h)
        y = If (c) <then_branch = a () => (float[2] p) { k = gradcut.StopGradient (h)  p = Mul (k, w) },
                    else_branch = b () => (float[2] q) { q = gradcut.StopGradient (w) }> }"""
    artifacts = gradcut.compile(parse(text), "mse:output=y")
    for name in ("training_model", "optimizer_model", "step_model", "eval_model"):
        proto = ir.to_proto(artifacts.models[name])
        assert not proto.functions and b"StopGradient" not in proto.graph.SerializeToString(), name
        session(proto)
    assert [value.name for value in artifacts.eval_model.graph.outputs] == ["loss", "y", "z"]


# --- 2 and 4: structure, and whose it is -------------------------------------------------------------------------


def test_what_lies_only_behind_a_mark_is_not_even_looked_at() -> None:
    """An operator without any derivative there is no obstacle, and nothing of it is built."""
    text = """g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> {
        d = my.Unheard (x)  m = gradcut.StopGradient (d)  y = Mul (m, w) }"""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21, "gradcut" : 1, "my" : 1]>'
        + text
        + '<domain: "gradcut", opset_import: ["" : 21]> StopGradient (X) => (Y) { Y = Identity (X) }'
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("d", 1, [2, 2]))
    assert backward(gradcut.vjp(model, ["x", "w"], ["y"])) == {"Mul_y": {"B"}}


def test_a_mark_belongs_to_the_model_and_a_cut_to_a_question() -> None:
    """Two players ask the same marked model; the mark stands still, and cuts for one of them only."""
    text = """g (float[2] x) => (float[2] a, float[2] b) <float[2] u = {1, 2}, float[2] v = {3, 4}> {
        h = Mul (x, u)  m = gradcut.StopGradient (h)  a = Mul (m, v)  b = Mul (h, v) }"""
    model = ir.from_proto(parse(text))
    before = ir.to_proto(model).SerializeToString()
    asked = {of: gradcut.analyze(model, of=[of], wrt=["u", "v"]) for of in "ab"}
    assert {edge.reason for edge in asked["a"].cut} == {"mark"}
    assert "mark" not in {edge.reason for edge in asked["b"].cut}
    assert "u" in asked["b"].active and "u" not in asked["a"].active
    gradcut.vjp(model, ["u"], ["a", "b"])
    gradcut.compile(model, "mse:output=a", train=["v"])
    assert ir.to_proto(model).SerializeToString() == before


def test_the_cut_of_one_question_is_no_mark_for_the_next() -> None:
    """Derived marks, which `propagate` writes into a file, are not the model's."""
    text = """g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}> {
        h = Mul (x, v)  y = Mul (h, w) }"""
    asked = gradcut.Pipeline.parse("import,propagate{of=y wrt=w}").run(ir.from_proto(parse(text)))
    assert "StopGradient" in [node.op_type for node in asked.graph]
    assert gradcut.analyze(asked, ["y"], ["x"]) == gradcut.analyze(parse(text), ["y"], ["x"])
    found = outputs(gradcut.vjp(asked, ["x"], ["y"]), {"x": [1, 1], "y_grad": [1, 1]})
    assert found["x_grad"].tolist() == [1, 4]


@pytest.mark.parametrize("attribute", ['reason = "because"', "reason = 1", "note = 2.5", 'reason = "stop-at"'])
def test_a_mark_of_another_tool_may_carry_what_it_likes(attribute: str) -> None:
    """What it carries is nothing to a question, and without a function of its own it is a mark as well."""
    node = f"s = Mul (x, x)  m = gradcut.StopGradient <{attribute}> (s)  y = Mul (m, x)"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21, "gradcut" : 1]> g (float x) => (float y) {{ {node} }}'
    )
    assert outputs(gradcut.vjp(model, ["x"], ["y"]), {"x": 3, "y_grad": 1})["x_grad"] == 9
    (edge,) = gradcut.analyze(model, ["y"], ["x"]).cut
    assert edge[1:3] == ("Mul_y", 0) and edge.reason in ("mark", "stop-at")


# --- 5: fan-out --------------------------------------------------------------------------------------------------


def test_nine_with_the_mark_and_twenty_seven_without() -> None:
    """d/dx [stop(x x) x] = x^2 = 9 at 3; without the mark 3 x^2 = 27; of a stopped x alone, 0."""
    text = "g (float x) => (float y) {{ s = Mul (x, x)  h = {} (s)  y = Mul (h, x) }}"
    for op, expected in (("gradcut.StopGradient", 9.0), ("Identity", 27.0)):
        assert outputs(gradcut.vjp(parse(text.format(op)), ["x"], ["y"]), {"x": 3, "y_grad": 1})["x_grad"] == expected
    alone = parse("g (float x) => (float y) { y = gradcut.StopGradient (x) }")
    assert outputs(gradcut.vjp(alone, ["x"], ["y"]), {"x": 3, "y_grad": 1})["x_grad"] == 0.0


# --- 7: what carries no gradient ---------------------------------------------------------------------------------


def test_marks_on_integers_booleans_and_strings_change_nothing() -> None:
    text = """g (float[3] x, int64[2] i, bool[2] b, string[2] s) => (float[2] y, string[2] t) {
        g = Gather (x, i)  n = Neg (g)  y = Where (b, g, n)  t = Identity (s) }"""
    feeds = {"x": [1, 2, 3], "i": [2, 0], "b": [True, False], "s": np.array(["a", "b"], object), "y_grad": [1, 1]}
    plain = outputs(gradcut.vjp(parse(text), ["x"], ["y"]), feeds)
    marked = gradcut.stop_gradient(parse(text), ["i", "b", "s", "t"])
    found = outputs(gradcut.vjp(marked, ["x"], ["y"]), feeds)
    assert found["x_grad"].tolist() == plain["x_grad"].tolist() == [-1, 0, 1]
    assert outputs(marked, {k: v for k, v in feeds.items() if k != "y_grad"})["t"].tolist() == ["a", "b"]
    session_of = gradcut.TrainingSession(
        gradcut.compile(gradcut.stop_gradient(weighted(text), ["i", "b"]), "mse:output=y")
    )
    assert session_of.artifacts.trainable == ("w",)


def weighted(text: str) -> onnx.ModelProto:
    """With a weight behind x, and without the strings, which no loss reads."""
    text = text.replace(", string[2] s)", ")").replace(", string[2] t) {", ") <float[3] w = {1, 2, 3}> {")
    return parse(text.replace("g = Gather (x, i)", "h = Mul (x, w)  g = Gather (h, i)").replace("t = Identity (s)", ""))


# --- 8: parameters that nothing reaches --------------------------------------------------------------------------

BEHIND = """g (float[n,2] x) => (float[n,2] y) <float[2] u = {1, 2}, float[2] v = {3, 4}> {
    h = Mul (x, u)  m = gradcut.StopGradient (h)  y = Mul (m, v) }"""


def test_vjp_gives_zeros_of_the_run_time_shape() -> None:
    found = outputs(gradcut.vjp(parse(BEHIND), ["x", "u"], ["y"]), {"x": normal(0, 5, 2), "y_grad": np.ones((5, 2))})
    assert found["x_grad"].shape == (5, 2) and not found["x_grad"].any()
    assert found["u_grad"].tolist() == [0, 0]


@pytest.mark.parametrize("optimizer", ["adamw:weight_decay=0.5", "sgd:momentum=0.9,weight_decay=0.5", "rmsprop"])
def test_compile_leaves_it_out_and_no_decay_or_momentum_moves_it(optimizer: str) -> None:
    trainer = gradcut.TrainingSession(gradcut.compile(parse(BEHIND), "mse", optimizer=optimizer))
    assert trainer.artifacts.trainable == ("v",)
    assert trainer.artifacts.manifest["unreached"] == {"u": "mark at h"}
    assert not [name for name in trainer.artifacts.tensors if name.startswith("u")]  # no gradient, no state
    for seed in range(3):
        trainer.step({"x": normal(seed, 4, 2), "labels": normal(9, 4, 2)})
    assert trainer.parameters()["u"].tolist() == [1, 2]
    assert trainer.parameters()["v"].tolist() != [3, 4]


def test_strict_makes_it_an_error() -> None:
    with pytest.raises(gradcut.errors.NothingTrainsError, match=r"strict: .*\(u: mark at h\)"):
        gradcut.compile(parse(BEHIND), "mse", strict=True)
