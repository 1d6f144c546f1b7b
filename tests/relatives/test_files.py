"""Relatives in files as they come: old opsets, local functions, bfloat16, ranks and batches that only a run knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import gradcut
from gradcut.errors import SpecError
from gradcut.passes import verify
from tests.written import parse, session

Relative = Callable[[gradcut.source.Source, str], ir.Model]
RELATIVES: dict[str, Relative] = {
    "scale": lambda model, at: gradcut.gradient_scale(model, at, 0.5),
    "scale by name": lambda model, at: gradcut.gradient_scale(model, at, "rate"),
    "reversal": lambda model, at: gradcut.gradient_reversal(model, at, 0.5),
    "clip": lambda model, at: gradcut.gradient_clip(model, at, value=0.5, norm=100),
    "conditional": lambda model, at: gradcut.conditional_stop(model, at, "closed"),
    "mask": lambda model, at: gradcut.gradient_mask(model, at, [1, 0, 1, 1], 1),
    "mask by name": lambda model, at: gradcut.gradient_mask(model, at, "kept", 1),
}
SETTINGS = {"rate": np.array(0.5, "f4"), "closed": np.array(True), "kept": np.array([True, False, True, True])}
#: What each makes of ones.
MADE = {
    "scale": 0.5, "scale by name": 0.5, "reversal": -0.5, "clip": 0.5, "conditional": 0.0, "mask": [1, 0, 1, 1],
    "mask by name": [1, 0, 1, 1],
}  # fmt: skip
each = pytest.mark.parametrize(("name", "relative"), RELATIVES.items(), ids=RELATIVES)
NET = "g ({d}[n, 4] x) => ({d}[n, 4] y) {{ h = Neg (x)  y = Identity (h) }}"


def slopes(model: ir.Model, rows: int = 2) -> np.ndarray:
    """The gradient of minus x for a cotangent of ones, with its sign turned round."""
    proto = gradcut.vjp(model, ["x"], ["y"])
    given = {"x": np.ones((rows, 4), "f4"), "y_grad": np.ones((rows, 4), "f4"), **SETTINGS}
    return -session(proto).run(["x_grad"], {value.name: given[value.name] for value in proto.graph.input})[0]


@each
@pytest.mark.parametrize("opset", [9, 13, 18, 23])
def test_at_any_opset(name: str, relative: Relative, opset: int) -> None:
    model = relative(parse(NET.format(d="float"), opset=opset, ir_version=4 if opset == 9 else 10), "h")
    verify(model, name)
    assert model.opset_imports[""] == opset
    np.testing.assert_array_equal(slopes(model), np.broadcast_to(MADE[name], (2, 4)))


@each
def test_a_batch_of_none(name: str, relative: Relative) -> None:
    assert slopes(relative(parse(NET.format(d="float")), "h"), rows=0).shape == (0, 4)


@each
def test_bfloat16_is_well_typed(name: str, relative: Relative) -> None:
    proto = gradcut.vjp(relative(parse(NET.format(d="bfloat16"), opset=22), "h"), ["x"], ["y"])
    onnx.checker.check_model(proto, full_check=True)
    assert {value.type.tensor_type.elem_type for value in proto.graph.output} == {onnx.TensorProto.BFLOAT16}


@each
def test_a_rank_that_only_a_run_knows(name: str, relative: Relative) -> None:
    text = """g (float[n, 4] x, int64[k] s) => (float[m, 4] y) {
        q = Constant <value_ints = [-1, 4]> ()  t = Reshape (x, s)  h = Neg (t)  y = Reshape (h, q) }"""
    model = ir.from_proto(parse(text))
    if name.startswith("mask"):
        with pytest.raises(SpecError, match="the rank of 'h' is unknown"):
            relative(model, "h")
        assert len(model.graph) == 4
        return
    proto = gradcut.vjp(relative(model, "h"), ["x"], ["y"])
    for shape in ((2, 4), (8,), (2, 2, 2)):
        given = {"x": np.ones((2, 4), "f4"), "y_grad": np.ones((2, 4), "f4"), "s": np.array(shape), **SETTINGS}
        dx = session(proto).run(["x_grad"], {value.name: given[value.name] for value in proto.graph.input})[0]
        np.testing.assert_array_equal(-dx, np.full((2, 4), MADE[name]))


def test_calls_that_any_tool_writes_come_out_of_functions() -> None:
    """Without a definition of the dialect's functions: import gives the file its own."""
    text = """<ir_version: 10, opset_import: ["": 21, "gradcut": 1, "own": 1]>
        g (float[2, 4] x, bool closed) => (float[2, 4] y) {
            half = Constant <value = float {0.5}> ()  h = own.Layer (x, half)  k = gradcut.ConditionalStop (h, closed)
            y = Neg (k) }
        <domain: "own", opset_import: ["": 21, "gradcut": 1]>
        Layer (a, s) => (b) { c = gradcut.GradientScale (a, s)  d = Neg (c)  b = gradcut.GradientReversal (d, s) }"""
    proto = gradcut.vjp(onnx.parser.parse_model(text), ["x"], ["y"])
    for closed, expected in ((False, -0.25), (True, 0.0)):
        given = {"x": np.ones((2, 4), "f4"), "y_grad": np.ones((2, 4), "f4"), "closed": np.array(closed)}
        np.testing.assert_array_equal(session(proto).run(["x_grad"], given)[0], np.full((2, 4), expected))


def test_lists_of_places_and_scopes() -> None:
    proto = parse("g (float[2, 4] x) => (float[2, 4] y) { a = Neg (x)  b = Neg (a)  y = Neg (b) }")
    for node, name in zip(proto.graph.node, ("enc/a", "enc/b", "dec/c"), strict=True):
        node.name = name
    assert (slopes(gradcut.gradient_scale(proto, "enc", 0.5)) == 0.5).all()
    assert (slopes(gradcut.gradient_scale(proto, ["enc", "x->enc/a", "a"], 0.5)) == 0.125).all()


def test_fan_out_into_one_node_twice() -> None:
    """Both operands of a square are the one use `value->node`."""
    text = "g (float[2, 4] x) => (float[2, 4] y) { [sq] s = Mul (x, x)  [out] t = Add (s, x)  y = Neg (t) }"
    for at, expected in (("x->sq", 2.0), ("x->out", 2.5), ("x", 1.5), ("s", 2.0)):
        np.testing.assert_array_equal(slopes(gradcut.gradient_scale(parse(text), at, 0.5)), np.full((2, 4), expected))


@each
def test_a_sequence_is_refused(name: str, relative: Relative) -> None:
    text = """g (float[2, 4] x) => (float[2, 4] y) {
        s = SequenceConstruct (x, x)  zero = Constant <value_int = 0> ()  y = SequenceAt (s, zero) }"""
    with pytest.raises(gradcut.GradcutError, match=r"is a sequence|the rank of 's' is unknown"):
        gradcut.vjp(relative(parse(text), "s"), ["x"], ["y"])
