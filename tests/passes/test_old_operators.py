"""What ONNX's converter leaves wrong: the file itself, run by ONNX Runtime, says what is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import gradcut


def one(node: onnx.NodeProto, x: list[int], weights: dict[str, Any], opset: int) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info("x", 1, x)]
    made = [helper.make_tensor_value_info("y", 1, None)]
    inits = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph([node], "one", given, made, inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ran(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [1.7, 2.0, 2.3, 3.0])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_a_resize_of_old_reads_the_places_that_it_read(op: str, opset: int, scale: float, mode: str) -> None:
    """Every element of x in turn is 1: the column of the forward's matrix, which the gradient sums."""
    node = helper.make_node(op, ["x", "s"], ["y"], mode=mode)
    model = one(node, [1, 1, 1, 4], {"s": [1, 1, 1, scale]}, opset)
    columns = [ran(model, {"x": np.eye(4, dtype=np.float32)[i].reshape(1, 1, 1, 4)})[0] for i in range(4)]
    derived = gradcut.vjp(model, wrt=["x"], of=["y"])
    x = np.float32([1, 2, 3, 4]).reshape(1, 1, 1, 4)
    y, dx = ran(derived, {"x": x, "y_grad": np.ones_like(columns[0])})
    np.testing.assert_allclose(y, ran(model, {"x": x})[0], rtol=1e-5)
    np.testing.assert_allclose(dx.ravel(), [column.sum() for column in columns], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scales", [(0.6, 0.6), (0.7, 1.0), (0.5, 0.5), (0.6, 1.7), (2.3, 0.3), (0.6, 1.1), (1.1, 1.1)])
@pytest.mark.parametrize("given", ["known", "at run time"])
def test_a_nearest_resize_of_old_that_shrinks(scales: tuple[float, float], given: str) -> None:
    """Shrinking, it reads the next place above; growing, the one below; one of both kinds is split."""
    node = helper.make_node("Resize", ["x", "s"], ["y"], mode="nearest")
    model = one(node, [1, 1, 5, 6], {"s": [1, 1, *scales]}, 10)
    feeds = {"x": np.arange(30, dtype=np.float32).reshape(1, 1, 5, 6)}
    if given == "at run time":
        feeds["s"] = numpy_helper.to_array(model.graph.initializer.pop())
        model.graph.input.append(helper.make_tensor_value_info("s", 1, [4]))
    expected = ran(model, feeds)[0]
    seed = np.random.default_rng(0).normal(size=expected.shape).astype(np.float32)
    y, dx = ran(gradcut.vjp(model, wrt=["x"], of=["y"]), {**feeds, "y_grad": seed})
    np.testing.assert_array_equal(y, expected)
    sums = np.zeros(30)
    np.add.at(sums, expected.astype(int).ravel(), seed.ravel())
    np.testing.assert_allclose(dx.ravel(), sums, rtol=1e-5, atol=1e-5)


def test_a_resize_of_opset_11_by_sizes_is_given_scales_of_no_element() -> None:
    """They were obligatory there; as inputs of the graph they are fed."""
    node = helper.make_node("Resize", ["x", "roi", "scales", "sizes"], ["y"], mode="nearest")
    model = one(node, [1, 1, 2, 3], {}, 11)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 4, 6]), "sizes"))
    model.graph.input.extend(helper.make_tensor_value_info(name, 1, [0]) for name in ("roi", "scales"))
    x, nothing = np.float32([[[[1, 2, 3], [4, 5, 6]]]]), np.zeros(0, np.float32)
    feeds = {"x": x, "roi": nothing, "scales": nothing}
    y, dx = ran(gradcut.vjp(model, wrt=["x"], of=["y"]), {**feeds, "y_grad": np.ones((1, 1, 4, 6), np.float32)})
    np.testing.assert_array_equal(y, ran(model, feeds)[0])
    np.testing.assert_array_equal(dx, np.full_like(x, 4))


@pytest.mark.parametrize(("op", "axes"), [("Squeeze", [3, 0]), ("Unsqueeze", [4, 0])])
def test_axes_in_any_order(op: str, axes: list[int]) -> None:
    """Inference at these opsets wants them sorted, and tells a wrong rank otherwise."""
    model = one(helper.make_node(op, ["x"], ["y"], axes=axes), [1, 3, 2, 1], {}, 9)
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 1)).astype(np.float32)
    expected = ran(model, {"x": x})[0]
    y, dx = ran(gradcut.vjp(model, wrt=["x"], of=["y"]), {"x": x, "y_grad": 2 * expected})
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, 2 * x)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_group_norm_with_a_scale_for_each_group(groups: int) -> None:
    scale = np.arange(1, groups + 1, dtype=np.float32)
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=groups)
    model = one(node, [2, 4, 3], {"s": scale, "b": 0 * scale}, 18)
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    seed = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    y, ds, db = ran(gradcut.vjp(model, wrt=["s", "b"], of=["y"]), {"x": x, "y_grad": seed})
    np.testing.assert_allclose(y, ran(model, {"x": x})[0], rtol=1e-4, atol=1e-5)
    split = lambda array: array.reshape(2, groups, -1)
    np.testing.assert_allclose(db, split(seed).sum((0, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ds, (split(seed) * split(y)).sum((0, 2)) / scale, rtol=1e-4, atol=1e-4)
    session = gradcut.TrainingSession(gradcut.compile(model, loss="mse"))
    session.step({"x": x, "labels": seed})
    assert {name: array.shape for name, array in session.parameters().items()} == {"s": (groups,), "b": (groups,)}
