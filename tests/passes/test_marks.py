"""`stop-gradient` and `propagate`: marks asked for, and marks derived from a question, before and after as text."""

from __future__ import annotations

import json

import onnx.printer
import onnx_ir as ir
import pytest

import gradcut
from gradcut.passes import Import, Propagate, StopGradient, verify
from gradcut.passes.propagate import clear_derived
from tests.written import lines, parse, run

MIXED = """g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}> {
    h = Mul (x, v)  f = Floor (h)  m = gradcut.StopGradient (h)  a = Add (f, w)  b = Add (m, a)
    y = Mul (b, h) }"""


def after(text: str, *passes: gradcut.passes.Pass) -> ir.Model:
    model = ir.from_proto(parse(text))
    Import()(model)
    for one in passes:
        one(model)
        verify(model, str(one))
    return model


# --- stop-gradient -------------------------------------------------------------------------------------------

SQUARE = "g (float[2] x) => (float[2] y) { h = Mul (x, x)  [last] y = Mul (h, x) }"


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("h", ["h = Mul (x, x)", "h_stopped = STOP (h)", "y = Mul (h_stopped, x)"]),
        ("x", ["x_stopped = STOP (x)", "h = Mul (x_stopped, x_stopped)", "y = Mul (h, x_stopped)"]),
        ("x->last", ["x_stopped = STOP (x)", "h = Mul (x, x)", "y = Mul (h, x_stopped)"]),
        ("y", ["h = Mul (x, x)", "y_stopped = Mul (h, x)", "y = STOP (y_stopped)"]),
    ],
)
def test_where_a_mark_is_put(at: str, expected: list[str]) -> None:
    stop = 'gradcut.StopGradient <reason: string = "stop-at">'
    assert lines(after(SQUARE, StopGradient(at=(at,)))) == [line.replace("STOP", stop) for line in expected]


def test_a_mark_of_the_model_has_no_reason() -> None:
    assert lines(gradcut.stop_gradient(parse(SQUARE), "h"))[1] == "h_stopped = gradcut.StopGradient (h)"


def test_a_model_given_is_changed_in_place_and_a_proto_is_not() -> None:
    proto = parse(SQUARE)
    model = ir.from_proto(proto)
    before = proto.SerializeToString()
    assert gradcut.stop_gradient(model, "h") is model
    gradcut.stop_gradient(proto, "h")
    assert proto.SerializeToString() == before


def test_a_pattern_that_matches_nothing_leaves_the_model_alone() -> None:
    model = ir.from_proto(parse(SQUARE))
    with pytest.raises(gradcut.errors.PatternError):
        gradcut.stop_gradient(model, ["h", "nix"])
    assert len(model.graph) == 2


def test_an_old_file_can_be_marked() -> None:
    """Functions came with IR version 8."""
    model = gradcut.stop_gradient(parse(SQUARE, opset=9, ir_version=4), "h")
    verify(model, "stop_gradient")
    assert (model.ir_version, model.opset_imports[""]) == (8, 9)


def test_captured_values_are_rewired() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) { h = Neg (x)
        y = If (c) <then_branch = a () => (float[2] p) { p = Relu (h) }, else_branch = b () => (float[2] q) {
            q = Exp (h) }> }"""
    (node,) = [node for node in after(text, StopGradient(at=("h",))).graph if node.op_type == "If"]
    for branch in ("then_branch", "else_branch"):
        assert node.attributes[branch].as_graph()[0].inputs[0].name == "h_stopped"


def test_marks_inside_a_loop_body() -> None:
    text = """g (int64 n, float[2] x) => (float[2] y) <bool yes = {1}> {
        y = Loop (n, yes, x) <body = body (int64 i, bool go, float[2] a) => (bool go, float[2] b) {
        b = Mul (a, a) }> }"""
    for at, expected in (("a", "a_stopped"), ("b", "b")):
        model = after(text, StopGradient(at=(at,)))
        body = model.graph[0].attributes["body"].as_graph()
        assert [node.op_type for node in body] == (["StopGradient", "Mul"] if at == "a" else ["Mul", "StopGradient"])
        assert expected in [value.name for node in body for value in node.outputs]
        assert body.outputs[1].name == "b"


def test_freezing_wins_over_training() -> None:
    model = after(MIXED, StopGradient(train=("*",), freeze=("v",)))
    assert json.loads(model.metadata_props["gradcut.trainable"]) == ["w"]
    assert json.loads(model.metadata_props["gradcut.frozen"]) == ["v"]


def test_nothing_left_to_train() -> None:
    with pytest.raises(gradcut.errors.SpecError, match="nothing is left to train"):
        after(MIXED, StopGradient(freeze=("*",)))


# --- propagate -----------------------------------------------------------------------------------------------


def test_the_cut_stands_in_the_text_as_derived_marks() -> None:
    model = after(MIXED, Propagate(of=("y",), wrt=("v",)))
    derived = [line for line in lines(model) if "derived" in line]
    assert derived == [
        'x_stopped = gradcut.StopGradient <reason: string = "data", derived: int = 1> (x)',
        'b_stopped = gradcut.StopGradient <reason: string = "mark", derived: int = 1> (b)',
    ]
    assert lines(model)[-1] == "y = Mul (b_stopped, h)"


def test_no_derived_mark_where_the_model_has_one() -> None:
    text = "g (float[2] x) => (float[2] y) { h = Relu (x)  m = gradcut.StopGradient (h)  y = Mul (m, h) }"
    assert lines(after(text, Propagate(of=("y",), wrt=("x",)))) == lines(after(text))


def test_another_question_takes_the_place_of_the_first() -> None:
    asked = Propagate(of=("y",), wrt=("w",))
    assert lines(after(MIXED, Propagate(of=("y",), wrt=("v",)), asked)) == lines(after(MIXED, asked))


def test_derived_marks_come_out_without_a_trace() -> None:
    model = after(MIXED, Propagate(of=("y",), wrt=("w",)))
    clear_derived(model)
    assert lines(model) == lines(after(MIXED))


def test_the_reasons_survive_text() -> None:
    model = after(MIXED, Propagate(of=("y",), wrt=("w",)))
    again = ir.from_onnx_text(onnx.printer.to_text(ir.to_proto(model)))
    assert lines(again) == lines(model)


def test_a_graph_with_derived_marks_computes_the_same() -> None:
    given, asked = parse(MIXED), after(MIXED, Propagate(of=("y",), wrt=("v",)))
    assert run(given, {"x": [1.5, -2]})[0].tolist() == run(asked, {"x": [1.5, -2]})[0].tolist()


def test_nothing_to_ask_for() -> None:
    with pytest.raises(gradcut.errors.PipelineError, match="propagate has nothing to ask for: say wrt="):
        after(MIXED, Propagate())


def test_the_default_question_is_every_float_output_by_the_trainables() -> None:
    model = after(MIXED, StopGradient(train=("w",)), Propagate())
    assert json.loads(model.metadata_props["gradcut.question"]) == {"of": ["y"], "wrt": ["w"]}
