"""Tensors without elements, known as such and only at run time: gradients of the right shape, zeros where they have
elements, as nothing depends on them. The runtime's own kernels fail on such sizes, or never end."""

from __future__ import annotations

import numpy as np
import pytest

import gradcut
from gradcut.runtime.widen import runtime
from tests.rules.sample import Sample, build, ints, normal, sample

LATER = [
    sample("LRN", "no_images", normal(0, 2, 5, 5), size=3),
    sample("ReduceProd", "none_of_some", normal(0, 3), ints(0)),
    sample("ReduceProd", "some_of_none", normal(0, 3), ints(1)),
    sample("ReduceProd", "none_at_all", normal(0, 3)),
    sample("ReduceProd", "computed", normal(0, 3), ints(0), runtime="axes"),
    sample("Unique", "flat", normal(0), outputs=4),
    sample("Unique", "rows", normal(0, 2), outputs=4, axis=0),
    sample("Unique", "columns", normal(0, 2), outputs=4, axis=1),
    sample("Gather", "empty_table", normal(0, 3), np.zeros(0, np.int64), runtime="indices"),
    sample("Gather", "empty_rows", normal(3, 0), np.zeros(2, np.int64), runtime="indices"),
    sample("GatherND", "empty_table", normal(0, 3), np.zeros((0, 1), np.int64), runtime="indices"),
    sample("MatMul", "nothing_inside", normal(2, 3, 0), normal(2, 0, 4)),
    sample("MatMul", "no_products", normal(0, 2, 4), normal(4, 3)),
    sample("MaxPool", "no_images", normal(0, 2, 5, 5), kernel_shape=[2, 2]),
    sample("Softmax", "no_rows", normal(0, 3)),
]
#: At run time the runtime's Conv with pads never ends without channels, and of a batch of products over nothing its
#: MatMul sets the first alone to zero; a guard would cost a third of each product of an attention.
KNOWN = [
    sample("MatMul", "no_rows", normal(2, 0, 4), normal(2, 4, 3)),
    sample("MatMul", "no_columns", normal(2, 3, 4), normal(2, 4, 0)),
    sample("Einsum", "nothing_inside", normal(0, 2), normal(1, 3), normal(3, 2, 0), equation="ca,xy,yac->"),
    sample("Einsum", "no_rows", normal(0, 2), normal(2, 3), equation="ij,jk->ik"),
    sample("Conv", "no_images", normal(0, 2, 5, 5), normal(3, 2, 3, 3), normal(3), pads=[1, 1, 1, 1]),
    sample("Conv", "no_images_same", normal(0, 2, 5, 5), normal(3, 2, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    sample("ConvTranspose", "no_images", normal(0, 2, 4, 4), normal(2, 3, 3, 3), pads=[1, 1, 1, 1]),
    sample("DeformConv", "no_images", normal(0, 2, 5, 5), normal(3, 2, 3, 3), normal(0, 18, 3, 3), opset=22),
]


@pytest.mark.parametrize("form", ["static", "dynamic"])
@pytest.mark.parametrize("case", LATER, ids=str)
def test_gradients_of_what_is_empty(case: Sample, form: str) -> None:
    _check(case, form)


@pytest.mark.parametrize("case", KNOWN, ids=str)
def test_gradients_of_what_is_known_to_be_empty(case: Sample) -> None:
    _check(case, "static")


def _check(case: Sample, form: str) -> None:
    built = build(case, form)
    shapes = [output.shape for output in runtime(built.model)(built.feeds)]
    proto = gradcut.vjp(built.model, list(case.wanted), [built.of[0]])
    feeds = {**built.feeds, f"{built.of[0]}_grad": np.ones(shapes[0], np.float32)}
    outputs = dict(zip((output.name for output in proto.graph.output), runtime(proto)(feeds), strict=True))
    for name in case.wanted:
        assert outputs[f"{name}_grad"].shape == built.feeds[name].shape
        assert not outputs[f"{name}_grad"].any()
