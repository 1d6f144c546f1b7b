"""The checker is itself checked: rules planted wrong on purpose must be caught, each by a sample of the suite."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from gradcut.errors import GradientCheckError, NoGradientError
from gradcut.passes.reverse import Sweep
from gradcut.rules import REGISTRY, Adjoint, Cotangents
from gradcut.runtime.check import CheckReport, check_gradients, require
from tests.rules.sample import build
from tests.rules.samples import SAMPLES


@contextlib.contextmanager
def planted(op: str, **changes: Any) -> Iterator[None]:
    """Another rule for an operator, for as long as this lasts."""
    (right,) = [rule for rule in REGISTRY if rule.op_type == op and rule.domain == ""]
    REGISTRY.add(dataclasses.replace(right, **changes))
    try:
        yield
    finally:
        REGISTRY.add(right)


def report(sample_name: str, *, fan_out: bool = False) -> CheckReport:
    (sample,) = [one for one in SAMPLES if str(one) == sample_name]
    built = build(sample, fan_out=fan_out)
    return check_gradients(built.model, built.feeds, sample.wanted, built.of)


def wrong_sign(op: Adjoint) -> Cotangents:
    yield "A", op.dY
    yield "B", op.dY


def missing_factor(op: Adjoint) -> Cotangents:
    yield "X", op.dY / op.out()


def one_per_cent_off(op: Adjoint) -> Cotangents:
    yield "input", op.dY * op.out() * 1.01


def swapped_operands(op: Adjoint) -> Cotangents:
    yield "A", op.dY * op["A"]
    yield "B", op.dY * op["B"]


def wrong_axis(op: Adjoint) -> Cotangents:
    Y = op.out()
    yield "input", op.b.op("SoftmaxGrad", op.dY, Y, axis=0, domain="gradcut", dtype=Y.dtype, shape=Y.shape)


def wrong_end(op: Adjoint) -> Cotangents:
    yield "x", op.b.CumSum(op.dY, op["axis"])


def transposed(op: Adjoint) -> Cotangents:
    yield "A", op.b.MatMul(op.dY, op["B"])
    yield "B", op.b.MatMul(op["A"], op.dY)


def not_inverted(op: Adjoint) -> Cotangents:
    yield "data", op.b.Transpose(op.dY, perm=op.attr("perm"))


def not_masked(op: Adjoint) -> Cotangents:
    yield "X", op.dY


def nothing(op: Adjoint) -> Cotangents:
    yield "input", op.b.zeros_like(op["input"])


def other_side(op: Adjoint) -> Cotangents:
    b = op.b
    zero = b.scalar_like(0.0, op.dY)
    yield "X", b.Where(op["condition"], zero, op.dY)
    yield "Y", b.Where(op["condition"], op.dY, zero)


def first_wins(op: Adjoint) -> Cotangents:
    """Without `reduction`: of two cotangents for one row one is lost."""
    b, data = op.b, op["data"]
    rows = b.Unsqueeze(op["indices"], b.ints([-1]))
    yield "data", b.ScatterND(b.zeros_like(data), rows, op.dY)


def without_mean(op: Adjoint) -> Cotangents:
    """The statistics taken for constants, as in inference."""
    X = op["X"]
    yield "X", op.dY * op["Scale"] * op.b.Cast(op.out("InvStdDev"), to=X.dtype)
    yield "Scale", op.b.sum_to(op.dY * (X - op.out("Mean")) * op.out("InvStdDev"), op["Scale"])
    yield "B", op.b.sum_to(op.dY, op["B"])


def twice_the_quotient(op: Adjoint) -> Cotangents:
    yield "A", op.dY / op["B"] * 2.0


PLANTED = [
    ("Sub", "Sub-same", {"vjp": wrong_sign}),
    ("Sqrt", "Sqrt-matrix", {"vjp": missing_factor}),
    ("Exp", "Exp-matrix", {"vjp": one_per_cent_off}),
    ("Mul", "Mul-same", {"vjp": swapped_operands}),
    ("Softmax", "Softmax-last", {"vjp": wrong_axis}),
    ("CumSum", "CumSum-first", {"vjp": wrong_end}),
    ("Relu", "Relu-matrix", {"vjp": not_masked}),
    ("Tanh", "Tanh-matrix", {"vjp": nothing}),
    ("Where", "Where-same", {"vjp": other_side}),
    ("Gather", "Gather-rows", {"vjp": first_wins}),
    ("LayerNormalization", "LayerNormalization-last", {"vjp": without_mean}),
]


@pytest.mark.parametrize(("op", "sample", "changes"), PLANTED, ids=[f"{s}-{i}" for i, (_, s, _) in enumerate(PLANTED)])
def test_wrong_rule_is_caught(op: str, sample: str, changes: dict[str, Any]) -> None:
    require(report(sample))
    with planted(op, **changes), pytest.raises(GradientCheckError, match="gradients are wrong"):
        require(report(sample))
    require(report(sample))


@pytest.mark.parametrize("sample", ["Mul-row", "Mul-scalar"])
def test_a_forgotten_broadcast_is_refused_before_it_is_run(sample: str) -> None:
    with (
        planted("Mul", broadcasts=False, foreign=True),
        pytest.raises(NoGradientError, match=r"op\.b\.sum_to undoes broadcasting"),
    ):
        report(sample)


def test_a_forgotten_broadcast_is_caught_where_no_shape_is_known() -> None:
    model = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,3] x, float[m,3] w) => (float[n,3] y) {
        y = Mul (x, w) }"""
    proto = ir.to_proto(ir.from_onnx_text(model))
    check = lambda: require(check_gradients(proto, sizes={"n": 2, "m": 1}))
    check()
    with planted("Mul", broadcasts=False), pytest.raises(GradientCheckError, match="gradients are wrong"):
        check()


@pytest.mark.parametrize(("op", "rule"), [("MatMul", transposed), ("Transpose", not_inverted)])
def test_transposed_result_of_the_right_shape_is_caught(op: str, rule: Any) -> None:
    """Between equal dimensions a shape cannot tell."""
    text = {"MatMul": "MatMul(x, w)", "Transpose": "Transpose<perm = [1, 2, 0]>(x)"}[op]
    shape = {"MatMul": "3,3", "Transpose": "3,3,3"}[op]
    model = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[{shape}] x, float[{shape}] w) => (float[{shape}] y) {{ y = {text} }}"""
    wrt = ["x", "w"] if op == "MatMul" else ["x"]
    proto = ir.to_proto(ir.from_onnx_text(model))
    require(check_gradients(proto, wrt=wrt))
    with planted(op, vjp=rule), pytest.raises(GradientCheckError):
        require(check_gradients(proto, wrt=wrt))


CHAIN = """<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x, float[3,3] u, float[3,3] v, float[3,3] w)
    => (float[2,3] y) { a = MatMul(x, w)  b = Tanh(a)  c = MatMul(b, v)  d = Sigmoid(c)  y = MatMul(d, u) }"""


@pytest.mark.parametrize("wrong", ["Tanh", "Sigmoid"])
def test_one_per_cent_is_caught_among_values_that_are_judged_together(wrong: str) -> None:
    (right,) = [rule for rule in REGISTRY if rule.op_type == wrong and rule.domain == ""]

    def off(op: Adjoint) -> Cotangents:
        assert right.vjp is not None
        yield from ((name, found * 1.01) for name, found in right.vjp(op))

    proto = ir.to_proto(ir.from_onnx_text(CHAIN))
    check = lambda: check_gradients(proto, wrt=["u", "w", "v", "x"], seconds=0.0)
    assert require(check()).unseen == ("w", "v", "x")
    with planted(wrong, vjp=off):
        found = check()
    assert found.values[0].ok and found.together is not None and found.failed == (found.together,) and not found.ok
    assert found.summary.startswith("of the gradients that were looked at together one or more are wrong")


def test_a_wrong_rule_is_caught_at_a_kink_that_is_wherever_the_inputs_are() -> None:
    model = """<ir_version: 10, opset_import: ["" : 21, "gradcut" : 1]> g (float[4] x, float[4] w) => (float[4] y)
        <float small = {0.02}> { m = gradcut.StopGradient(x)  d = Sub(x, m)  k = Abs(d)  s = Mul(k, small)
        t = Div(x, w)  y = Add(t, s) }"""
    proto = ir.to_proto(ir.from_onnx_text(model))
    check = lambda: check_gradients(proto, {"x": np.float32([1, 2, 3, 4]), "w": np.full(4, 0.5, np.float32)}, ["x"])
    require(check())
    with planted("Div", vjp=twice_the_quotient), pytest.raises(GradientCheckError):
        require(check())


def test_lost_contribution_of_a_second_use_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Sweep.total

    def first_only(self: Sweep, value: ir.Value, named: bool = True) -> ir.Value | None:
        del self._contributions[value][1:]
        return whole(self, value, named)

    require(report("Tanh-matrix", fan_out=True))
    monkeypatch.setattr(Sweep, "total", first_only)
    with pytest.raises(GradientCheckError):
        require(report("Tanh-matrix", fan_out=True))
