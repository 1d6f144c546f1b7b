"""Planted rules that are wrong only now and then: at some sizes, attributes, outputs, points, dtypes, orders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

import gradcut
from gradcut.errors import GradientCheckError
from gradcut.rules import REGISTRY, Adjoint, Cotangents, Rule
from gradcut.runtime.check import CheckReport, check_gradients, require
from tests.rules import test_kinks
from tests.rules.sample import Array, Built, build, normal
from tests.rules.samples import SAMPLES
from tests.rules.test_planted import planted


def of_sample(name: str, of: tuple[str, ...] = ()) -> CheckReport:
    (sample,) = [one for one in SAMPLES if str(one) == name]
    built: Built = build(sample)
    return check_gradients(built.model, built.feeds, sample.wanted, of or built.of)


def model(body: str, shape: str = "2,3", kind: str = "float", result: str = "") -> onnx.ModelProto:
    header = f'<ir_version: 10, opset_import: ["" : 21]> g ({kind}[{shape}] x) => ({kind}[{result or shape}] y)'
    return parser.parse_model(f"{header} {{ {body} }}")


def caught(op: str, check: Callable[[], CheckReport], **changes: Any) -> str:
    """What the report says of a planted rule; the right one passes before and after."""
    require(check())
    with planted(op, **changes), pytest.raises(GradientCheckError, match="gradients are wrong") as raised:
        require(check())
    require(check())
    return str(raised.value)


# --- at some sizes ---------------------------------------------------------------------------------------------


def first_row_for_all(op: Adjoint) -> Cotangents:
    """Right for a batch of one."""
    b, Y = op.b, op.out()
    first = b.op("Slice", op.dY, b.ints([0]), b.ints([1]), b.ints([0]))
    yield "input", b.Expand(first, b.Shape(Y)) * (1.0 - Y * Y)


def test_wrong_only_in_a_batch_of_more_than_one() -> None:
    assert "FAIL input" in caught("Tanh", lambda: of_sample("Tanh-matrix"), vjp=first_row_for_all)
    with planted("Tanh", vjp=first_row_for_all):
        require(check_gradients(model("y = Tanh(x)", "1,3")))


# --- for some outputs --------------------------------------------------------------------------------------------


def last_for_the_missing(op: Adjoint) -> Cotangents:
    """Right where every output is used."""
    given = [index for index in range(len(op.node.outputs)) if op.cotangent(index) is not None]
    parts = [op.cotangent(index) or op.cotangent(given[-1]) for index in range(len(op.node.outputs))]
    yield "input", op.b.op("Concat", *(p for p in parts if p is not None), axis=op.attr("axis", 0))


def first_output_alone(op: Adjoint) -> Cotangents:
    """What the second output contributes is lost."""
    first = op.cotangent(0) or op.b.zeros_like(op.out(0))
    yield "input", op.b.op("Concat", first, op.b.zeros_like(op.out(1)), axis=op.attr("axis", 0))


def test_wrong_only_beside_an_unused_output() -> None:
    caught("Split", lambda: of_sample("Split-equal", ("y1",)), vjp=last_for_the_missing)
    with planted("Split", vjp=last_for_the_missing):
        require(of_sample("Split-equal"))


def test_lost_second_output() -> None:
    caught("Split", lambda: of_sample("Split-equal"), vjp=first_output_alone)
    with planted("Split", vjp=first_output_alone):
        require(of_sample("Split-equal", ("y0",)))


# --- for some attributes, states and masks -----------------------------------------------------------------------


def never_exclusive(op: Adjoint) -> Cotangents:
    yield "x", op.b.op("CumSum", op.dY, op["axis"], reverse=1 - op.attr("reverse", 0))


def always_training(op: Adjoint) -> Cotangents:
    """A mode that is known only at run time is not asked for."""
    yield "data", op.dY / (1.0 - op["ratio"])


def one_diagonal_off(op: Adjoint) -> Cotangents:
    k = op.b.ints([1]) if op.get("k") is None else op["k"] + 1
    yield "input", op.b.op("Trilu", op.dY, op.b.Reshape(k, op.b.ints([])), upper=op.attr("upper", 1))


@pytest.mark.parametrize(
    ("op", "rule", "wrong", "right"),
    [
        ("CumSum", never_exclusive, "CumSum-exclusive", "CumSum-reverse"),
        ("Dropout", always_training, "Dropout-off_at_run_time", "Dropout-ratio_zero"),
        ("Trilu", one_diagonal_off, "Trilu-upper", ""),
        ("Trilu", one_diagonal_off, "Trilu-lower", ""),
    ],
)
def test_wrong_only_in_some_configuration(op: str, rule: Any, wrong: str, right: str) -> None:
    caught(op, lambda: of_sample(wrong), vjp=rule)
    if right:
        with planted(op, vjp=rule):
            require(of_sample(right))


# --- what is held constant -----------------------------------------------------------------------------------------


def first_operand_alone(op: Adjoint) -> Cotangents:
    if op.wants("A"):
        yield "A", op.dY * op["B"]


def test_an_operand_that_is_declared_without_a_derivative_but_has_one() -> None:
    check = lambda: check_gradients(model("h = Exp(x) y = Mul(x, h)"))
    caught("Mul", check, vjp=first_operand_alone, differentiable=frozenset({"A"}))


SETTINGS = {
    "Dropout": "float[4,5] x, float r) => (float[4,5] y) <bool yes = {1}> { s = Sigmoid(r) h = Dropout(x, s, yes)",
    "Resize": 'float[2,3] x, float[2] r) => (float[n,k] y) { s = Exp(r) h = Resize<mode = "linear">(x, , s)',
}


@pytest.mark.parametrize(("op", "r"), [("Dropout", np.float32(-0.3)), ("Resize", np.float32([0.6, 0.7]))])
def test_a_setting_is_held_still_because_its_rule_declares_it(op: str, r: Array) -> None:
    """And what else depends on the same value is not."""
    graph = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({SETTINGS[op]} c = ReduceMax(r) y = Mul(h, c) }}'
    )
    feeds = {"x": normal(4, 5) if op == "Dropout" else normal(2, 3), "r": r}
    assert "FAIL r" in caught(op, lambda: check_gradients(graph, feeds), constant=frozenset())


def straight_through(op: Adjoint) -> Cotangents:
    yield "X", op.dY


def test_a_gradient_of_what_is_constant() -> None:
    check = lambda: check_gradients(model("h = Floor(x) y = Mul(h, x)"))
    caught("Floor", check, vjp=straight_through, differentiable=frozenset({"X"}), zero=False)


# --- at kinks, jumps and edges: there the point is moved, which hides nothing -------------------------------------


def zero_everywhere(op: Adjoint) -> Cotangents:
    yield "X", op.b.zeros_like(op["X"])


def quotient(op: Adjoint) -> Cotangents:
    """No number at zero, right everywhere else."""
    yield "X", op.dY * op["X"] / op.out()


def half_of_it(op: Adjoint) -> Cotangents:
    yield "input", op.dY / (op.b.Sqrt(op["input"] * op["input"] - 1.0) * 2.0)


ZERO = {"x": np.zeros((2, 3), np.float32)}


@pytest.mark.parametrize(
    ("op", "rule", "body", "feeds", "said"),
    [
        ("Abs", zero_everywhere, "y = Abs(x)", ZERO, "a kink: slopes .*; judged where it is moved at random by 0.001"),
        ("Abs", quotient, "y = Abs(x)", ZERO, "nan"),
        ("Relu", zero_everywhere, "y = Relu(x)", ZERO, "judged where it is moved"),
        ("Acosh", half_of_it, "y = Acosh(x)", {"x": ZERO["x"] + 1}, "the edge of where .*judged where it is moved"),
        (
            "Acosh",
            half_of_it,
            "y = Acosh(x)",
            {"x": np.float32([[1, 3, 5], [2, 1, 1.5]])},
            "the edge of where the model is defined at the point",
        ),
    ],
    ids=["zero", "not a number", "one side", "edge", "edges among others"],
)
def test_wrong_at_a_point_without_a_derivative(
    op: str, rule: Any, body: str, feeds: dict[str, Array], said: str
) -> None:
    assert re.search(said, caught(op, lambda: check_gradients(model(body), feeds), vjp=rule))


def last_of_the_ties(op: Adjoint) -> Cotangents:
    """Between the slopes of both sides, and right wherever no two are equal: only a convention says it is wrong."""
    b, X = op.b, op["X"]
    last = b.op("ArgMax", X, axis=1, keepdims=1, select_last_index=1)
    yield "X", b.op("ScatterElements", b.zeros_like(X), last, op.dY, axis=1, shape=X.shape)


def test_the_wrong_one_of_equal_elements_is_found_by_the_table_of_conventions() -> None:
    test_kinks.test_of_equal_values_top_k_takes_the_first()
    with planted("TopK", vjp=last_of_the_ties), pytest.raises(AssertionError):
        test_kinks.test_of_equal_values_top_k_takes_the_first()


def test_wrong_beside_a_jump() -> None:
    """Floor jumps at the point; what is multiplied with it has a derivative there."""
    check = lambda: check_gradients(model("h = Floor(x) e = Exp(x) y = Add(h, e)"), {"x": np.ones((2, 3), np.float32)})
    assert "a jump at the point" in caught("Exp", check, vjp=lambda op: iter([("input", op.dY)]))


# --- in some dtype -------------------------------------------------------------------------------------------------


def by_a_detour(op: Adjoint) -> Cotangents:
    """Right in float64, and where numbers are small."""
    yield "A", op.dY * op["B"] * 1e30 * 1e-30
    yield "B", op.dY * op["A"]


def test_overflow_in_the_models_type_is_not_excused_by_float64() -> None:
    graph = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[2,3] x, float[2,3] w) => (float[2,3] y) { y = Mul(x, w) }""")
    feeds = {"x": np.ones((2, 3), np.float32), "w": np.full((2, 3), 3e10, np.float32)}
    caught("Mul", lambda: check_gradients(graph, feeds), vjp=by_a_detour)


def twice_in_double(op: Adjoint) -> Cotangents:
    """Wrong in one dtype alone."""
    Y = op.out()
    yield "input", op.dY * Y * (2.0 if Y.dtype == ir.DataType.DOUBLE else 1.0)


@pytest.mark.parametrize(("kind", "wrong"), [("float", False), ("double", True), ("float16", False)])
def test_wrong_only_in_one_dtype(kind: str, wrong: bool) -> None:
    with planted("Exp", vjp=twice_in_double):
        assert check_gradients(model("y = Exp(x)", kind=kind)).ok is not wrong


# --- in complex numbers --------------------------------------------------------------------------------------------


def spectrum(adjoint: Callable[[Adjoint], Cotangents]) -> Rule:
    operands = ("input", "dft_length", "axis")
    return Rule("DFT", "", 20, operands, frozenset({"input"}), vjp=adjoint)


def inverse_transform(op: Adjoint) -> Cotangents:
    """The adjoint of a complex transform of length n: n times the inverse one."""
    yield "input", op.b.op("DFT", op.dY, None, op["axis"], inverse=1) * 4.0


def without_conjugate(op: Adjoint) -> Cotangents:
    yield "input", op.b.op("DFT", op.dY, None, op["axis"])


def test_missing_conjugate() -> None:
    body = "axis = Constant<value = int64 {1}>() y = DFT(x, , axis)"
    before = [one for one in REGISTRY if one.op_type == "DFT"]
    check = lambda: check_gradients(model(body, "2,4,2"))
    try:
        for rule in (inverse_transform, without_conjugate):
            REGISTRY.add(spectrum(rule))
            assert check().ok is (rule is inverse_transform)
    finally:
        forget("DFT", before)


def forget(op_type: str, before: Sequence[Rule]) -> None:
    REGISTRY._rules[("", op_type)] = list(before)


# --- at the second order ---------------------------------------------------------------------------------------------


def doubled(op: Adjoint) -> Cotangents:
    for wanted, other in (("A", "B"), ("B", "A")):
        if op.wants(wanted):
            yield wanted, op.dY * op[other] * 2.0


def test_wrong_only_at_the_second_order() -> None:
    """The rule of Exp is right; that of the Mul which it emits is not."""
    graph, feeds = model("y = Exp(x)"), {"x": normal(2, 3), "y_grad": normal(2, 3)}
    with planted("Mul", vjp=doubled):
        require(check_gradients(graph))
    caught("Mul", lambda: second_order(graph, feeds), vjp=doubled)


def second_order(graph: onnx.ModelProto, feeds: dict[str, Array]) -> CheckReport:
    return check_gradients(gradcut.vjp(graph, ["x"], ["y"]), feeds, ["x"], ["x_grad"])
