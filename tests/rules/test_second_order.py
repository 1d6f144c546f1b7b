"""What rules emit has rules itself: the gradient of a gradient against finite differences of the gradient."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import gradcut
from gradcut.api import VJP
from gradcut.rules import REGISTRY
from gradcut.rules.registry import is_variadic
from gradcut.runtime.check import check_gradients, require
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, Built, Sample, build, sample
from tests.rules.samples import SAMPLES

#: Of each operator, with samples that differ only in shapes, the first few.
FEW = [s for s in SAMPLES if [t for t in SAMPLES if (t.domain, t.op) == (s.domain, s.op)].index(s) < 24]
#: What the gradient of a gradient is promised of, by operator.
GROUPS = {
    "elementwise": """
        Abs Acos Acosh Add Asin Asinh Atan Atanh Cast CastLike Celu Clip Cos Cosh Div Elu Erf Exp Gelu HardSigmoid
        HardSwish Identity LeakyRelu Log Max Mean Min Mish Mod Mul Neg PRelu Pow Reciprocal Relu Selu Shrink Sigmoid Sin
        Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where
    """,
    "MatMul": "Gemm MatMul Det",
    "Conv": "Conv ConvTranspose",
    "normalisation": """
        BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization
        RMSNormalization SimplifiedLayerNormalization
    """,
    "softmax": "LogSoftmax Softmax",
}
#: The modules that these rules are in: a rule that joins them joins a group.
_MODULES = ("activation", "conv", "elementwise", "matmul", "norm")


@pytest.mark.parametrize("group", GROUPS)
def test_every_operand_of_a_group_is_differentiated_twice(group: str) -> None:
    """By `test_gradient_of_the_gradient`, which has every sample named here."""
    for op in GROUPS[group].split():
        (rule,) = [rule for rule in REGISTRY if (rule.domain, rule.op_type) == ("", op)]
        wanted = {name for one in FEW if (one.domain, one.op) == ("", op) for name in one.wanted}
        if is_variadic("", op):
            wanted = {name.rpartition("_")[0] or name for name in wanted}
        assert rule.differentiable <= wanted, op


def test_no_rule_is_left_out_of_the_groups() -> None:
    named = {op for group in GROUPS.values() for op in group.split()}
    modules = [f"gradcut.rules.{name}" for name in _MODULES]
    assert {rule.op_type for rule in REGISTRY if rule.vjp and rule.vjp.__module__ in modules} <= named


def gradient_model(sample: Sample, built: Built) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, dict[str, str]]]:
    """The model with its gradient, feeds for it, and its names."""
    proto = gradcut.vjp(built.model, list(sample.wanted), list(built.of))
    names = json.loads(next(p.value for p in proto.metadata_props if p.key == VJP))
    rng = np.random.default_rng(7)
    outputs = dict(zip((o.name for o in built.model.graph.output), runtime(built.model)(built.feeds), strict=True))
    cotangents = {
        names["cotangents"][y]: rng.standard_normal(outputs[y].shape).astype(outputs[y].dtype) for y in built.of
    }
    return proto, {**built.feeds, **cotangents}, names


@pytest.mark.parametrize("sample", FEW, ids=str)
def test_gradient_of_the_gradient(sample: Sample) -> None:
    proto, feeds, names = gradient_model(sample, build(sample))
    wrt = [*sample.wanted, *names["cotangents"].values()]
    require(check_gradients(proto, feeds, wrt, list(names["wrt"].values()), directions=2, seed=5))


@pytest.mark.parametrize("p", [1, 2])
def test_gradient_of_the_gradient_of_a_zero_vector_is_finite(p: int) -> None:
    zero = np.float32([[0, 0], [3, 4]])
    one = sample("LpNormalization", "zero", zero, axis=1, p=p)
    proto, feeds, names = gradient_model(one, build(one))
    (dX,) = names["wrt"].values()
    again = gradcut.vjp(proto, ["input"], [dX])
    given = {**feeds, again.graph.input[-1].name: np.ones_like(zero)}
    assert np.isfinite(runtime(again)(given)[-1]).all()


def test_third_derivative_of_a_power() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float x) => (float y) { y = Exp(x) }'
    model, wrt, of = onnx.parser.parse_model(text), ["x"], ["y"]
    for _ in range(3):
        model = gradcut.vjp(model, wrt, of)
        of = [model.graph.output[-1].name]
    feeds = {v.name: np.asarray(0.5 if v.name == "x" else 1.0, np.float32) for v in model.graph.input}
    assert runtime(model)(feeds)[-1] == pytest.approx(np.exp(0.5), rel=1e-6)
