"""BatchNormalization's modes and state, sentence by sentence of DESIGN.md, *Modes*; CastLike."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

import gradcut
from tests.exported import text

C = 3


def model(mode: int = 0, momentum: float = 0.9, outputs: str = "", more: str = "", then: str = "h") -> onnx.ModelProto:
    """x [n, 3, s] -> BatchNormalization -> times the head, mean."""
    running = ", rm, rv" if mode else ""
    return text(f"""
    g (float[n, 3, s] x) => (float[n, 3, s] h, float loss{outputs})
    <float[3] scale = {{1.0, 2.0, 3.0}}, float[3] bias = {{0.1, 0.2, 0.3}}, float[3] mean = {{0.5, -0.5, 0.0}},
     float[3] var = {{1.0, 2.0, 0.5}}, float[3, 1] head = {{1.0, -1.0, 2.0}}>
    {{
        h{running} = BatchNormalization <training_mode = {mode}, momentum = {momentum}> (x, scale, bias, mean, var)
        {more}
        scaled = Mul ({then}, head)
        square = Mul (scaled, scaled)
        loss = ReduceMean <keepdims = 0> (square)
    }}""")


def data(rows: int = 4, length: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(1.0, 2.0, (rows, C, length)).astype(np.float32)}


def session(given: onnx.ModelProto, **options: Any) -> gradcut.TrainingSession:
    artifacts = gradcut.compile(given, optimizer=gradcut.SGD(lr=0.01), **options)
    return gradcut.TrainingSession(artifacts, threads=1)


def trains(given: onnx.ModelProto, **options: Any) -> bool:
    """Whether its one batch norm normalises by the batch and moves its statistics; never one without the other."""
    running = session(given, **options)
    moves = {"mean", "var"} <= set(running.manifest["state"])
    h = running.step(data()).outputs["h"]
    normalised = np.allclose(h.mean(axis=(0, 2)), [0.1, 0.2, 0.3], atol=1e-5)
    assert normalised == moves == ("train" in running.manifest["batch_norm"].values())
    return moves


HEAD = {"train": ["head"]}


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        (1, HEAD, True),  # the file's training mode is kept
        (1, {}, True),
        (1, {"freeze": ["scale", "bias"]}, False),  # unless a freeze names its parameters
        (1, {**HEAD, "freeze": ["scale"]}, False),
        (1, {"freeze": ["scale"]}, True),  # the bias trains
        (0, HEAD, False),  # inference becomes training iff scale or bias trains
        (0, {}, True),
        (0, {"train": ["scale"]}, True),
        (0, {"train": ["bias"]}, True),
        (0, {"freeze": ["scale"]}, True),
        (0, {"freeze": ["scale", "bias"]}, False),
        (0, {"stop_at": ["h"]}, True),  # a mark changes no mode, though it takes the gradient away
        (0, {**HEAD, "stop_at": ["h"]}, False),
        (1, {"stop_at": ["scale", "bias", "mean", "var"]}, True),
        (0, {"stop_at": ["mean", "var"]}, True),
        (0, {**HEAD, "batch_norm": "train"}, True),
        (0, {"batch_norm": "eval"}, False),
        (1, {"batch_norm": "eval"}, False),
        (1, {"freeze": ["scale", "bias"], "batch_norm": "train"}, False),
    ],
)
def test_which_batch_norm_trains(mode: int, options: dict[str, Any], expected: bool) -> None:
    assert trains(model(mode), **options) is expected


def test_a_freeze_in_the_models_own_metadata_counts_too() -> None:
    assert not trains(gradcut.freeze(model(1), ["scale", "bias"]))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(gradcut.GradcutError, match="batch_norm is one of auto, train, eval"):
        gradcut.compile(model(), batch_norm="on")


# --- state ---------------------------------------------------------------------------------------------------


def torch_batch_norm(momentum: float = 0.9) -> torch.nn.BatchNorm1d:
    layer = torch.nn.BatchNorm1d(C, momentum=1 - momentum)
    layer.running_mean.copy_(torch.tensor([0.5, -0.5, 0.0]))
    layer.running_var.copy_(torch.tensor([1.0, 2.0, 0.5]))
    return layer


def statistics(running: gradcut.TrainingSession) -> list[np.ndarray]:
    return [running._slots[name].numpy() for name in ("mean", "var")]


@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0, 0.25])
@pytest.mark.parametrize(("rows", "length"), [(4, 5), (1, 5), (2, 1)])
def test_running_statistics_are_torchs(momentum: float, rows: int, length: int) -> None:
    layer, running = torch_batch_norm(momentum), session(model(1, momentum))
    for seed in range(3):
        feeds = data(rows, length, seed)
        layer(torch.from_numpy(feeds["x"]))
        running.step(feeds)
    for actual, expected in zip(statistics(running), (layer.running_mean, layer.running_var), strict=True):
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_one_element_a_channel_leaves_the_statistics_as_they_were() -> None:
    """torch refuses such a batch; the output is the bias."""
    running = session(model(1))
    before = statistics(running)
    h = running.step(data(rows=1, length=1)).outputs["h"]
    np.testing.assert_allclose(h.reshape(-1), [0.1, 0.2, 0.3], atol=1e-3)
    for left, right in zip(before, statistics(running), strict=True):
        np.testing.assert_array_equal(left, right)


def test_rank_two_has_no_spatial_axes() -> None:
    flat = text("""
    g (float[n, 3] x) => (float loss)
    <float[3] scale = {1.0, 2.0, 3.0}, float[3] bias = {0.1, 0.2, 0.3}, float[3] mean = {0.5, -0.5, 0.0},
     float[3] var = {1.0, 2.0, 0.5}>
    {
        h, rm, rv = BatchNormalization <training_mode = 1> (x, scale, bias, mean, var)
        loss = ReduceMean <keepdims = 0> (h)
    }""")
    layer, running = torch_batch_norm(), session(flat)
    x = data(length=1)["x"][:, :, 0]
    layer(torch.from_numpy(x))
    running.step({"x": x})
    np.testing.assert_allclose(statistics(running)[1], layer.running_var.numpy(), rtol=1e-5)
    before = statistics(running)
    assert np.isfinite(running.step({"x": x[:1]}).loss)
    np.testing.assert_array_equal(before, statistics(running))


SHARED = model(
    1,
    more="""
        k, rm2, rv2 = BatchNormalization <training_mode = 1, momentum = 0.5> (h, scale, bias, mean, var)
        both = Add (h, k)""",
    then="both",
)


def test_nodes_that_share_statistics_move_them_in_graph_order() -> None:
    layer, running = torch_batch_norm(), session(SHARED, **HEAD)
    layer.weight.data = torch.tensor([1.0, 2.0, 3.0])
    layer.bias.data = torch.tensor([0.1, 0.2, 0.3])
    for seed in range(2):
        feeds = data(seed=seed)
        layer.momentum = 0.1
        first = layer(torch.from_numpy(feeds["x"]))
        layer.momentum = 0.5
        layer(first)
        running.step(feeds)
    np.testing.assert_allclose(statistics(running)[0], layer.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics(running)[1], layer.running_var.numpy(), rtol=1e-5)


def test_gradients_through_shared_statistics_are_torchs() -> None:
    running = session(SHARED)
    x = data()["x"]
    scale, bias = (torch.tensor(v, requires_grad=True) for v in ([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]))
    head = torch.tensor([[1.0], [-1.0], [2.0]])
    norm = lambda v: torch.nn.functional.batch_norm(v, None, None, scale, bias, training=True)
    h = norm(torch.from_numpy(x))
    ((h + norm(h)) * head).square().mean().backward()
    gradients = running.gradients({"x": x})
    np.testing.assert_allclose(gradients["scale"], scale.grad.numpy(), rtol=1e-4)
    np.testing.assert_allclose(gradients["bias"], bias.grad.numpy(), rtol=1e-4)


def test_running_outputs_that_the_model_reads_stay_onnxs() -> None:
    """Of population variance, and from the statistics as they stood before the node."""
    given = model(1, outputs=", float[3] rm, float[3] seen", more="seen = Neg (rv)")
    running, feeds = session(given), data()
    before = statistics(running)
    outputs = running.step(feeds).outputs
    x = feeds["x"].astype(np.float64)
    np.testing.assert_allclose(outputs["rm"], before[0] * 0.9 + x.mean(axis=(0, 2)) * 0.1, rtol=1e-5)
    np.testing.assert_allclose(-outputs["seen"], before[1] * 0.9 + x.var(axis=(0, 2)) * 0.1, rtol=1e-5)
    np.testing.assert_allclose(statistics(running)[1], before[1] * 0.9 + x.var(axis=(0, 2), ddof=1) * 0.1, rtol=1e-5)


def test_running_outputs_of_a_frozen_one_are_the_statistics() -> None:
    given = model(1, outputs=", float[3] rm, float[3] seen", more="seen = Neg (rv)")
    outputs = session(given, freeze=["scale", "bias"]).step(data()).outputs
    np.testing.assert_allclose(outputs["rm"], [0.5, -0.5, 0.0])
    np.testing.assert_allclose(outputs["seen"], [-1.0, -2.0, -0.5])


def test_the_state_is_untouched_by_gradients_and_evaluate() -> None:
    """onnxruntime's kernel writes its running outputs over its inputs where nothing keeps it from doing so."""
    running = session(model(1))
    running.step(data())
    before = [array.tobytes() for array in statistics(running)]
    first = running.gradients(data(seed=1))
    running.evaluate(data(seed=2))
    assert [array.tobytes() for array in statistics(running)] == before
    for name, gradient in running.gradients(data(seed=1)).items():
        np.testing.assert_array_equal(first[name], gradient)


def test_evaluation_is_inference_with_the_statistics_of_now() -> None:
    layer, running = torch_batch_norm(), session(model(1), **HEAD)
    layer.weight.data, layer.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])
    running.step(data())
    layer(torch.from_numpy(data()["x"]))
    expected = layer.eval()(torch.from_numpy(data(seed=1)["x"])).detach().numpy()
    np.testing.assert_allclose(running.evaluate(data(seed=1)).outputs["h"], expected, rtol=1e-4, atol=1e-5)


def test_inference_on_an_active_path() -> None:
    """dX = dY scale / sqrt(var + eps), what torch gives in eval mode."""
    weighted = text("""
    g (float[n, 3, s] x) => (float loss)
    <float[3, 1] w = {1.0, -2.0, 0.5}, float[3] scale = {1.0, 2.0, 3.0}, float[3] bias = {0.1, 0.2, 0.3},
     float[3] mean = {0.5, -0.5, 0.0}, float[3] var = {1.0, 2.0, 0.5}>
    {
        v = Mul (x, w)
        h = BatchNormalization (v, scale, bias, mean, var)
        square = Mul (h, h)
        loss = ReduceMean <keepdims = 0> (square)
    }""")
    layer = torch_batch_norm().eval()
    layer.weight.data, layer.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])
    w = torch.tensor([[1.0], [-2.0], [0.5]], requires_grad=True)
    layer(torch.from_numpy(data()["x"]) * w).square().mean().backward()
    actual = session(weighted, train=["w"]).gradients(data())["w"]
    np.testing.assert_allclose(actual, w.grad.numpy(), rtol=1e-4)


@pytest.mark.parametrize("opset", [9, 13, 14, 15])
def test_older_opsets(opset: int) -> None:
    """Opset 14 brought training_mode, opset 9 is the oldest without `spatial`."""
    old = model(0).graph.SerializeToString()
    given = onnx.ModelProto(ir_version=7, opset_import=[onnx.helper.make_opsetid("", opset)])
    given.graph.ParseFromString(old)
    for node in given.graph.node:
        kept = [a for a in node.attribute if a.name not in ("training_mode",)]
        del node.attribute[:]
        node.attribute.extend(kept)
    onnx.checker.check_model(given)
    assert trains(given)
    assert not trains(given, **HEAD)


# --- folding -------------------------------------------------------------------------------------------------


def test_cast_like_a_known_type_becomes_cast() -> None:
    given = text("""
    g (float[n] x, int64[n] i) => (float loss) <float[1] w = {1.0}>
    {
        f = CastLike (i, x)
        p = Mul (f, w)
        loss = ReduceMean <keepdims = 0> (p)
    }""")
    operators = [node.op_type for node in gradcut.compile(given, train=["w"]).training_model.graph]
    assert "CastLike" not in operators and "Cast" in operators
