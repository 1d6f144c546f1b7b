"""What stands in for onnx's own operators in the gradient check, against onnx's and torch's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional as F

from gradcut.runtime.evaluators import EVALUATORS

SEED = 7


def both(op_type: str, inputs: list[np.ndarray], outputs: int = 1, **attributes: object) -> list[list[np.ndarray]]:
    """By onnx's operator, and by ours."""
    names = [f"i{at}" for at in range(len(inputs))]
    node = helper.make_node(op_type, names, [f"o{at}" for at in range(outputs)], **attributes)
    ports = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, a.shape) for n, a in zip(names, inputs, strict=True)]
    graph = helper.make_graph([node], "g", ports, [onnx.ValueInfoProto(name=name) for name in node.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    feeds = dict(zip(names, inputs, strict=True))
    return [ReferenceEvaluator(model, new_ops=new).run(None, feeds) for new in (None, EVALUATORS)]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape)


WINDOWS = [
    {},
    {"strides": [2, 1]},
    {"pads": [1, 0, 2, 1], "strides": [2, 3]},
    {"dilations": [2, 1], "pads": [1, 1, 1, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
    {"auto_pad": "VALID"},
]


@pytest.mark.parametrize("attributes", WINDOWS, ids=str)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_convolutions(attributes: dict[str, object], group: int) -> None:
    x, w, b = random(2, 4, 9, 8), random(8, 4 // group, 3, 2), random(8)
    (theirs,), (ours,) = both("Conv", [x, w, b], group=group, **attributes)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank: int) -> None:
    x, w = random(2, 3, *[7] * rank), random(4, 3, *[2] * rank)
    _, (ours,) = both("Conv", [x, w])
    expected = getattr(F, f"conv{rank}d")(torch.from_numpy(x), torch.from_numpy(w)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attributes", WINDOWS, ids=str)
def test_the_largest_of_windows(attributes: dict[str, object]) -> None:
    (theirs,), (ours,) = both("MaxPool", [random(2, 3, 9, 8)], kernel_shape=[3, 2], **attributes)
    np.testing.assert_array_equal(ours, theirs)


def test_the_largest_of_a_sequence() -> None:
    x = random(2, 3, 7)
    _, (ours,) = both("GlobalMaxPool", [x])
    np.testing.assert_array_equal(ours, x.max(2, keepdims=True))


@pytest.mark.parametrize(("axis", "shape"), [(0, (1, 0)), (1, (2, 0)), (2, (0, 3)), (-1, (0, 3)), (3, (0, 1))])
def test_flattening_what_has_no_element(axis: int, shape: tuple[int, int]) -> None:
    """The shapes are those of the operator page; onnx's own fails behind the axis of size 0."""
    node = helper.make_node("Flatten", ["x"], ["y"], axis=axis)
    given, found = helper.make_tensor_value_info("x", TensorProto.DOUBLE, [2, 0, 3]), onnx.ValueInfoProto(name="y")
    model = helper.make_model(helper.make_graph([node], "g", [given], [found]))
    (ours,) = ReferenceEvaluator(model, new_ops=EVALUATORS).run(None, {"x": np.zeros((2, 0, 3))})
    assert ours.shape == shape
