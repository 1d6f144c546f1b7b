"""RNN, GRU and LSTM in float64 against ONNX Runtime's kernels, whose choices they follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from gradcut.runtime.widen import reference, runtime
from tests.rules.sample import Array, Sample, build
from tests.rules.samples_recurrent import samples

SAMPLES = list(samples())
SEED = 5


def both(model: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """The evaluator's outputs are ONNX Runtime's."""
    for mine, theirs in zip(reference(model)(feeds), runtime(model)(feeds), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_each_configuration(sample: Sample) -> None:
    built = build(sample)
    both(built.model, built.feeds)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_large_numbers_before_the_clip(op: str) -> None:
    """The cell of an LSTM is not clipped before its last activation, whatever the operator page says."""
    for sample in [sample for sample in SAMPLES if sample.op == op and "clip" in sample.attributes]:
        large = replace(
            sample, operands=tuple(a if a is None or a.dtype.kind != "f" else 4 * a for a in sample.operands)
        )
        built = build(large)
        both(built.model, built.feeds)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_the_batch_first(op: str) -> None:
    """ONNX Runtime has no kernel for it: the same as with the time first, transposed."""
    built = build(next(sample for sample in SAMPLES if str(sample) == f"{op}-both_lengths"))
    swapped, feeds = onnx.ModelProto(), dict(built.feeds)
    swapped.CopyFrom(built.model)
    swapped.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    for name in {"X", "initial_h", "initial_c"} & feeds.keys():
        feeds[name] = feeds[name].swapaxes(0, 1)
    Y, *last = reference(swapped)(feeds)
    expected = reference(built.model)(built.feeds)
    np.testing.assert_array_equal(Y, expected[0].transpose(2, 0, 1, 3))
    for mine, theirs in zip(last, expected[1:], strict=True):
        np.testing.assert_array_equal(mine, theirs.swapaxes(0, 1))
