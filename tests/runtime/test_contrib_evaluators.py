"""The evaluators of ONNX Runtime's own operators, which checks in float64 rest on, against ONNX Runtime itself."""

from __future__ import annotations

import numpy as np
import pytest

from gradcut.runtime.evaluators.contrib import CONTRIB
from gradcut.runtime.widen import reference, runtime
from tests.rules import samples_contrib
from tests.rules.sample import Sample, build
from tests.rules.samples import SAMPLES

OWN = tuple(samples_contrib.samples())
#: What onnx's own evaluator gets wrong, or does not take, and ours is to get right.
MENDED = tuple(sample for sample in SAMPLES if sample.op in ("Attention", "Pad") and not sample.domain)


@pytest.mark.parametrize("sample", [*OWN, *MENDED], ids=str)
def test_outputs_are_those_of_the_runtime(sample: Sample) -> None:
    built = build(sample)
    theirs, ours = (program(built.model)(built.feeds) for program in (runtime, reference))
    for expected, found in zip(theirs, ours, strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        if expected.dtype.kind == "f":  # a mask_index, say, is not written out: nothing reads it
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_every_evaluator_is_held_against_the_runtime() -> None:
    sampled = {(sample.domain, sample.op) for sample in OWN}
    assert {(one.op_domain, one.__name__) for one in CONTRIB} <= sampled
