"""Marks that cannot be meant: one line that says what is wrong, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import gradcut
from gradcut.cli.app import app
from gradcut.errors import GradcutWarning, NothingTrainsError, PatternError, SpecError
from tests.written import parse, run

TWELVE = ", ".join(["0.1"] * 12)
MODEL = f"""g (float[n,3] x) => (float[n,4] y) <float[3,4] w1 = {{{TWELVE}}}, float[4] b1 = {{0, 0, 0, 0}},
    float[4,4] w2 = {{{TWELVE}, 1, 2, 3, 4}}, float[4] b2 = {{0, 0, 0, 0}}> {{
    [m1] a = MatMul (x, w1)  [a1] h = Add (a, b1)  [r] k = Relu (h)  [m2] c = MatMul (k, w2)  [a2] y = Add (c, b2) }}"""


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("kk", "'kk' matches no value and no module scope. Nearest: k."),
        ("encoder.*", "'encoder.*' matches no value and no module scope."),
        ("m1", "'m1' matches no value and no module scope. Nearest: w1, b1."),
        ("q->m2", "'q' matches no value and no module scope."),
        ("k->m3", "'m3' matches no node and no module scope. Nearest: m2, m1."),
        ("k->c", "'c' matches no node and no module scope. Nearest: m2."),  # the value that the node m2 makes
        ("x->m2", "'x->m2': x is no operand of m2"),
        ("x->", "'' matches no node and no module scope."),
    ],
)
def test_a_mark_on_a_name_that_does_not_exist(at: str, message: str) -> None:
    for ask in (
        lambda: gradcut.stop_gradient(parse(MODEL), at),
        lambda: gradcut.vjp(parse(MODEL), ["x"], ["y"], stop_at=at),
        lambda: gradcut.analyze(parse(MODEL), ["y"], ["x"], stop_at=["k", at]),
        lambda: gradcut.compile(parse(MODEL), "mse", stop_at=at),
    ):
        with pytest.raises(PatternError if " is no operand" not in message else SpecError) as raised:
            ask()
        assert str(raised.value) == message


@pytest.mark.parametrize("at", [3, None, b"k", {"k": 1}, ["k", ""], ["k", 3], ""])
def test_what_is_no_pattern(at: object) -> None:
    if at is None:
        assert len(gradcut.stop_gradient(ir.from_proto(parse(MODEL)), at).graph) == 5  # nothing to mark
        return
    with pytest.raises(SpecError, match=r"is not a pattern.*give names such as 'head.weight'"):
        gradcut.stop_gradient(parse(MODEL), at)


def test_two_marks_that_leave_no_trainable_are_both_named() -> None:
    expected = r"no trainable reaches the loss \(w1, b1, w2: stop-at at c; b2: stop-at at b2\)"
    with pytest.raises(NothingTrainsError, match=expected):
        gradcut.compile(parse(MODEL), "mse", stop_at=["c->a2", "b2"])
    marked = gradcut.stop_gradient(gradcut.stop_gradient(parse(MODEL), "k"), ["w2", "b2"])
    with pytest.raises(NothingTrainsError, match=r"\(w1, b1: mark at k; w2: mark at w2; b2: mark at b2\)"):
        gradcut.compile(marked, "mse")


def test_both_are_named_however_many_parameters_one_of_them_cuts_off() -> None:
    layers = "".join(f"h{i + 1} = Mul (h{i}, w{i})\n" for i in range(20))
    weights = ", ".join(f"float[2] w{i} = {{1, 2}}" for i in range(22))
    text = f"g (float[n,2] h0) => (float[n,2] y) <{weights}> {{ {layers} a = Mul (h20, w20)  y = Mul (a, w21) }}"
    with pytest.raises(NothingTrainsError, match=r"w0, w1, w2, w3 and 17 more: stop-at at a; w21: stop-at at w21"):
        gradcut.compile(parse(text), "mse", train=[f"w{i}" for i in range(22)], stop_at=["a", "w21"])


def test_a_mark_and_a_freeze_that_leave_no_trainable() -> None:
    with pytest.raises(NothingTrainsError, match=r"no trainable reaches the loss \(w1, b1: stop-at at k\)"):
        gradcut.compile(parse(MODEL), "mse", stop_at="k", freeze=["w2", "b2"])


def test_a_value_that_import_takes_apart_is_not_passed_over_in_silence() -> None:
    """An Optional gives way to what it holds, and its name with it; a mark on it in the file does what it should."""
    text = "g (float[2] x) => (float[2] y) { o = Optional (x)  q = OptionalGetElement (o)  y = Mul (q, x) }"
    with pytest.raises(PatternError, match="'o' matches no value"):
        gradcut.vjp(parse(text), ["x"], ["y"], stop_at="o")
    derived = gradcut.vjp(gradcut.stop_gradient(parse(text), "o"), ["x"], ["y"])
    assert run(derived, {"x": [3, 5], "y_grad": [1, 1]})[1].tolist() == [3, 5]


def test_nodes_without_a_name_go_by_the_one_that_import_gives_them() -> None:
    text = MODEL
    for name in ("m1", "a1", "r", "m2", "a2"):
        text = text.replace(f"[{name}]", "")
    marked = ir.to_proto(gradcut.stop_gradient(parse(text), "k->MatMul_c"))
    (mark,) = [node for node in marked.graph.node if node.op_type == "StopGradient"]
    assert [list(n.input) for n in marked.graph.node if mark.output[0] in n.input] == [[mark.output[0], "w2"]]
    assert not any(node.name for node in marked.graph.node if node.op_type != "StopGradient")  # and stay without


@pytest.mark.parametrize("options", [["--stop-at", "kk"], ["--stop-at", "c->a2", "--stop-at", "b2"]])
def test_from_the_command_line_nothing_is_written(options: list[str], tmp_path: Path) -> None:
    onnx.save(parse(MODEL), tmp_path / "model.onnx")
    result = CliRunner().invoke(
        app, ["compile", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "out"), "--loss", "mse", *options]
    )
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_trainable_whose_only_way_to_the_loss_is_flat_is_warned_about() -> None:
    model = parse(
        """g (float[n,2] x) => (float[n,2] y) <float[2] w = {1, 1}, float[2] v = {1, 1}> {
        [m] a = Mul (x, w)  [r] b = Round (a)  [n] y = Mul (b, v) }"""
    )
    with pytest.warns(
        GradcutWarning, match="^w gets no gradient and is left out of training: zero-derivative at a -> r$"
    ):
        compiled = gradcut.compile(model, loss="mse")
    assert compiled.trainable == ("v",)
