"""The bodies of the dialect's operators: a model that is not lowered runs, and equals the lowered one."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gradcut.dialect import DIALECT, DOMAIN, MARK
from gradcut.dialect.kept import PLACE, TAKE
from gradcut.dialect.relatives import TRANSPARENT
from gradcut.passes import Differentiate, Lower, Pipeline, Propagate, Simplify
from gradcut.runtime.check import imported
from gradcut.runtime.widen import runtime
from tests.rules.sample import FORMS, Array, Built, Sample, build
from tests.rules.samples import SAMPLES

#: Operators that no node alone leads to, and the tests that call them.
ELSEWHERE = {
    "FiniteReluGrad": "tests/rules/test_finite.py",
    "StraightThrough": "tests/passes/test_straight_through.py",
    **dict.fromkeys({*TRANSPARENT, TAKE, PLACE} - {MARK}, "tests/relatives"),
}


def differentiated(sample: Sample, built: Built, lower: bool) -> onnx.ModelProto:
    work = imported(built.model)
    passes = (Propagate(of=built.of, wrt=sample.wanted), Differentiate(), Simplify(), *((Lower(),) if lower else ()))
    ranks_known = all(output.shape is not None for output in work.graph.outputs)  # onnx's checker insists on it
    Pipeline(passes).run(work, verify_each=ranks_known)
    work.ir_version = 10
    return ir.to_proto(work)


def calls(proto: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node if node.domain == DOMAIN}


def feeds_of(built: Built, proto: onnx.ModelProto) -> dict[str, Array]:
    """The sample's feeds and a cotangent for each output."""
    rng = np.random.default_rng(1)
    names = [output.name for output in built.model.graph.output]
    outputs = dict(zip(names, runtime(built.model)(built.feeds), strict=True))
    seeds = [value.name for value in proto.graph.input if value.name not in built.feeds]
    shapes = zip(seeds, built.of, strict=True)
    return {**built.feeds, **{s: rng.standard_normal(outputs[y].shape).astype(outputs[y].dtype) for s, y in shapes}}


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_bodies_equal_their_lowerings(sample: Sample, form: str) -> None:
    built = build(sample, form)
    plain = differentiated(sample, built, lower=False)
    if not calls(plain):
        return
    lowered = differentiated(sample, built, lower=True)
    assert not calls(lowered)
    feeds = feeds_of(built, plain)
    for mine, other in zip(runtime(plain)(feeds), runtime(lowered)(feeds), strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-5)


def test_every_operator_of_the_dialect_is_called_by_some_sample() -> None:
    uncalled = set(DIALECT) - {MARK, *ELSEWHERE}
    for sample, form in product(SAMPLES, FORMS[:2]):
        if uncalled:
            uncalled -= calls(differentiated(sample, build(sample, form), lower=False))
    assert uncalled == set()
