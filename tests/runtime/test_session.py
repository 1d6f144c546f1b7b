"""The session: feeds, state, what is left alone, both optimizers, checkpoints."""

from __future__ import annotations

import builtins
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import gradcut
from gradcut.errors import (
    CheckpointError,
    FeedError,
    GradcutError,
    MissingExtraError,
    NotFiniteError,
    NothingTrainsError,
    SpecError,
)
from gradcut.runtime import backend
from gradcut.runtime.host_optimizer import HostOptimizer
from tests.exported import exported, text

# One model with everything: a batch norm, a dropout, a weight that two layers read, and a frozen one.
MODEL = text("""
g (float[n, 4] x) => (float[n, 3] logits)
<float[4] scale = {1.0, 1.0, 1.0, 1.0}, float[4] bias = {0.0, 0.0, 0.0, 0.0}, float[4] mean = {0.0, 0.0, 0.0, 0.0},
 float[4] var = {1.0, 1.0, 1.0, 1.0}, float ratio = {0.25}, bool on = {1},
 float[4, 4] tied = {0.5, -0.3, 0.2, 0.1, 0.4, 0.6, -0.2, 0.3, -0.5, 0.1, 0.7, 0.2, 0.3, -0.4, 0.1, 0.6},
 float[4, 3] frozen = {0.3, -0.2, 0.5, 0.1, 0.4, -0.3, -0.6, 0.2, 0.1, 0.5, -0.1, 0.3}, float[3] b = {0.1, 0.2, 0.3}>
{
    first = MatMul (x, tied)
    normal, rm, rv = BatchNormalization <training_mode = 1> (first, scale, bias, mean, var)
    active = Tanh (normal)
    dropped = Dropout (active, ratio, on)
    second = MatMul (dropped, tied)
    product = MatMul (second, frozen)
    logits = Add (product, b)
}""")


def feeds(rows: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {"x": generator.normal(size=(rows, 4)).astype(np.float32), "labels": generator.integers(0, 3, rows)}


def compiled(optimizer: Any = None, **options: Any) -> gradcut.TrainingArtifacts:
    options = {"freeze": ["frozen"], **options}
    return gradcut.compile(MODEL, "cross_entropy", optimizer=optimizer or gradcut.AdamW(lr=0.01), **options)


def session(optimizer: Any = None, backend: str = "auto", **options: Any) -> gradcut.TrainingSession:
    return gradcut.TrainingSession(compiled(optimizer, **options), threads=1, optimizer_backend=backend)


def state(running: gradcut.TrainingSession) -> dict[str, bytes]:
    """Every tensor that may move, bit for bit, and the step."""
    held = {name: slot.numpy().tobytes() for name, slot in running._slots.items()}
    return {**held, "step": str(running.steps).encode()}


# --- feeds ---------------------------------------------------------------------------------------------------

TWO_INPUTS = text("""
g (float[n, 4] left, float[n, 4] right, int64[3] index) => (float[n, 3] y)
<float[4, 3] w = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}>
{
    sum = Add (left, right)
    picked = MatMul (sum, w)
    y = Gather <axis = 1> (picked, index)
}""")
GOOD = {
    "left": np.zeros((2, 4), np.float32),
    "right": np.zeros((2, 4), np.float32),
    "index": np.zeros(3, np.int64),
    "labels": np.zeros(2, np.int64),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lefd": GOOD["left"]}, "the graph has no input 'lefd'; it takes left, labels"),
        ({"zzz": GOOD["left"]}, "the graph has no input 'zzz'; it takes left, right, index, labels"),
        ({"right": None}, "no feed for right; the graph takes left, right, index, labels"),
        ({"right": None, "index": None}, "no feed for right, index; the graph takes left, right, index, labels"),
        (
            {"left": np.zeros((2, 4))},
            "feed 'left' is float64; the graph takes float32: use .astype('float32')",
        ),
        (
            {"labels": np.zeros(2, np.int32)},
            "feed 'labels' is int32; the graph takes int64: use .astype('int64')",
        ),
        ({"left": np.zeros(4, np.float32)}, "feed 'left' has shape [4]; the graph takes [n, 4]"),
        ({"left": np.zeros((2, 5), np.float32)}, "feed 'left' has shape [2, 5]; the graph takes [n, 4]"),
        ({"index": np.zeros(2, np.int64)}, "feed 'index' has shape [2]; the graph takes [3]"),
        (
            {"right": np.zeros((3, 4), np.float32)},
            "feed 'right' has 3 at axis 0 (n), and 'left' has 2; they must agree",
        ),
        ({"labels": np.zeros(3, np.int64)}, "feed 'labels' has 3 at axis 0 (n), and 'left' has 2; they must agree"),
        (
            {"labels": np.array([0, 3])},
            "feed 'labels' holds label 3 at row 1; the model has 3 classes, 0 to 2",
        ),
    ],
)
def test_a_feed_that_does_not_fit(change: dict[str, Any], message: str) -> None:
    running = gradcut.TrainingSession(gradcut.compile(TWO_INPUTS, "cross_entropy"), threads=1)
    before = state(running)
    given = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    for call in (running.step, running.evaluate, running.gradients):
        with pytest.raises(FeedError) as error:
            call(given)
        assert str(error.value) == message
    assert state(running) == before
    running.step({**GOOD, "labels": np.array([-100, 1])})


def test_feeds_may_be_lists_views_and_fortran_ordered() -> None:
    running, given = session(), feeds()
    expected = running.evaluate(given).loss
    x = given["x"]
    strided = np.zeros((6, 8), np.float32)[:, ::2]
    strided[...] = x
    for form in (np.asfortranarray(x), strided, x.astype(">f4").astype("f4")):
        assert running.evaluate({**given, "x": form}).loss == expected
    assert running.evaluate({**given, "labels": given["labels"].tolist()}).loss == expected


def test_a_caller_may_change_what_it_fed_and_what_it_got() -> None:
    running, given = session(), feeds()
    first = running.evaluate(given)
    kept = {name: array.copy() for name, array in given.items()}
    first.outputs["logits"][...] = 7.0
    running.parameters()["tied"][...] = 7.0
    running.gradients(given)["tied"][...] = 7.0
    np.testing.assert_array_equal(given["x"], kept["x"])
    assert running.evaluate(given).loss == first.loss


def test_results_stay_as_they_were_when_later_steps_run() -> None:
    running = session()
    gradients, result = running.gradients(feeds()), running.step(feeds())
    kept = {name: array.copy() for name, array in gradients.items()}
    logits = result.outputs["logits"].copy()
    for seed in range(3):
        running.step(feeds(seed=seed + 1))
        running.gradients(feeds(seed=seed + 1))
    np.testing.assert_array_equal(result.outputs["logits"], logits)
    for name, array in kept.items():
        np.testing.assert_array_equal(gradients[name], array)


def test_the_batch_is_dynamic_and_the_last_one_ragged() -> None:
    running = session()
    for rows in (6, 6, 2, 1, 17, 6):
        assert running.step(feeds(rows)).outputs["logits"].shape == (rows, 3)


# --- what a step must leave alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["host", "graph"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_changes_nothing(kind: str, poison: float) -> None:
    running, witness = session(backend=kind), session(backend=kind)
    running.step(feeds()), witness.step(feeds())
    before = state(running)
    bad = feeds(seed=1)
    bad["x"][2, 1] = poison
    with pytest.raises(
        NotFiniteError, match=r"the loss is nan at step 2 \(learning rate 0\.01\); the step was not taken"
    ):
        running.step(bad)
    assert state(running) == before
    assert running.step(feeds(seed=2)).loss == witness.step(feeds(seed=2)).loss
    assert state(running) == state(witness)


@pytest.mark.parametrize("kind", ["host", "graph"])
def test_gradients_and_evaluate_leave_no_trace(kind: str) -> None:
    running, witness = session(backend=kind), session(backend=kind)
    for seed in range(3):
        before = state(running)
        running.gradients(feeds(seed=10 + seed))
        running.evaluate(feeds(seed=20 + seed))
        assert state(running) == before
        assert running.step(feeds(seed=seed)).loss == witness.step(feeds(seed=seed)).loss
    assert state(running) == state(witness)


def test_gradients_are_those_of_the_next_step() -> None:
    """The same draw, the same statistics: with SGD the step is minus lr times them."""
    running = session(gradcut.SGD(lr=0.5))
    before, gradients = running.parameters(), running.gradients(feeds())
    running.step(feeds())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(running.parameters()[name], before[name] - 0.5 * gradient, rtol=1e-5, atol=1e-6)


def test_parameters_are_all_of_them_by_the_files_names() -> None:
    running = session()
    assert set(running.parameters()) == {"scale", "bias", "tied", "frozen", "b"}
    assert set(running.artifacts.trainable) == {"scale", "bias", "tied", "b"}


def test_a_frozen_parameter_never_moves() -> None:
    running = session(gradcut.AdamW(lr=0.1, weight_decay=0.5))
    before = running.parameters()["frozen"].tobytes()
    for seed in range(5):
        running.step(feeds(seed=seed))
    assert running.parameters()["frozen"].tobytes() == before
    assert not any(name.startswith("frozen") for name in running._slots)


@pytest.mark.parametrize("kind", ["host", "graph"])
@pytest.mark.parametrize("optimizer", [gradcut.AdamW(weight_decay=0.5), gradcut.SGD(momentum=0.9, weight_decay=0.5)])
def test_an_unreached_trainable_is_left_out(kind: str, optimizer: Any) -> None:
    running = session(optimizer, kind, stop_at=["active"])
    assert set(running.artifacts.trainable) == {"tied", "b"}
    assert set(running.manifest["unreached"]) == {"scale", "bias"}
    assert set(running.manifest["unreached"].values()) == {"stop-at at active"}
    before = {name: running.parameters()[name].tobytes() for name in ("scale", "bias")}
    for seed in range(3):
        running.step(feeds(seed=seed))
    assert {name: running.parameters()[name].tobytes() for name in before} == before
    assert not any(name.startswith(("scale_", "bias_")) for name in running._slots)


def test_strict_refuses_an_unreached_trainable() -> None:
    with pytest.raises(NothingTrainsError, match=r"strict: some trainables do not reach the loss \(scale: stop-at"):
        compiled(stop_at=["active"], strict=True)


def test_nothing_reaches_the_loss() -> None:
    with pytest.raises(NothingTrainsError, match=r"no trainable reaches the loss \(tied: stop-at at product"):
        compiled(train=["tied"], stop_at=["product"])


def test_every_trainable_frozen() -> None:
    with pytest.raises(SpecError, match="nothing is left to train"):
        compiled(train=["tied"], freeze=["tied"])


@pytest.mark.parametrize("carrier", ["proto", "file", "text"])
def test_freezes_live_in_the_model_and_join_the_option(carrier: str, tmp_path: Path) -> None:
    model = gradcut.freeze(MODEL, "scale")
    proto = ir.to_proto(model)
    if carrier == "file":
        onnx.save(proto, tmp_path / "m.onnx")
    if carrier == "text":
        (tmp_path / "m.onnxtxt").write_text(onnx.printer.to_text(proto))
    given = {"proto": proto, "file": tmp_path / "m.onnx", "text": tmp_path / "m.onnxtxt"}[carrier]
    artifacts = gradcut.compile(given, "cross_entropy", freeze=["frozen"], train=["*"])
    assert set(artifacts.trainable) == {"bias", "tied", "b"}
    again = gradcut.compile(artifacts.model, "cross_entropy")  # the given model with what was frozen by option
    assert set(again.trainable) == {"bias", "tied", "b"}
    thawed = gradcut.compile(gradcut.unfreeze(artifacts.model, "*"), "cross_entropy")
    assert set(thawed.trainable) == {"scale", "bias", "tied", "frozen", "b"}


# --- the optimizers ------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": (gradcut.SGD(lr=0.05), torch.optim.SGD),
    "momentum": (gradcut.SGD(lr=0.05, momentum=0.9), torch.optim.SGD),
    "nesterov": (gradcut.SGD(lr=0.05, momentum=0.9, nesterov=True), torch.optim.SGD),
    "decay": (gradcut.SGD(lr=0.05, momentum=0.9, weight_decay=0.1), torch.optim.SGD),
    "adamw": (gradcut.AdamW(lr=0.01), torch.optim.AdamW),
    "adamw decay": (gradcut.AdamW(lr=0.01, weight_decay=0.3, betas=(0.8, 0.95)), torch.optim.AdamW),
    "amsgrad": (gradcut.AdamW(lr=0.01, amsgrad=True), torch.optim.AdamW),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
# Three parameters whose gradients are exactly what is fed: loss-free, cotangents as inputs.
FED = text(
    """
g (float[1, 8] x) => (float[8] p, float[4, 8] q, float[1, 8] r)
<float[8] a = {1.0, -2.0, 0.5, 3.0, -0.1, 0.0, 1e-3, 10.0}, float[4, 8] c = {CS}, float[1, 8] e = {ES}>
{
    flat = Squeeze (x)
    p = Add (a, flat)
    q = Add (c, x)
    r = Add (e, x)
}""".replace("CS", ", ".join(f"{i / 16 - 1:.4f}" for i in range(32))).replace("ES", ", ".join("12345678"))
)


@pytest.mark.parametrize("kind", ["host", "graph"])
@every_optimizer
def test_fifty_steps_from_fed_gradients_equal_torch(name: str, kind: str) -> None:
    optimizer, peer = OPTIMIZERS[name]
    artifacts = gradcut.compile(FED, train=["a", "c", "e"], optimizer=optimizer)
    running = gradcut.TrainingSession(artifacts, threads=1, optimizer_backend=kind)
    tensors = {key: torch.tensor(value) for key, value in running.parameters().items()}
    torch_side = peer(tensors.values(), **dataclasses.asdict(optimizer))
    generator = np.random.default_rng(0)
    for _ in range(50):
        fed = {key: generator.normal(size=t.shape).astype(np.float32) for key, t in tensors.items()}
        for key, tensor in tensors.items():
            tensor.grad = torch.from_numpy(fed[key])
        torch_side.step()
        running.step({"x": np.zeros((1, 8), np.float32), "p_grad": fed["a"], "q_grad": fed["c"], "r_grad": fed["e"]})
    for key, array in running.parameters().items():
        np.testing.assert_allclose(array, tensors[key].numpy(), rtol=1e-5, atol=1e-5, err_msg=key)


class Tied(torch.nn.Module):
    """MODEL without its dropout and batch norm: x tied, tanh, tied, frozen, plus b."""

    def __init__(self, start: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.tied, self.b = (torch.nn.Parameter(torch.from_numpy(start[name])) for name in ("tied", "b"))
        self.frozen = torch.from_numpy(start["frozen"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal = x @ self.tied / np.sqrt(1 + 1e-5)
        return torch.tanh(normal) @ self.tied @ self.frozen + self.b


@every_optimizer
def test_a_weight_that_several_layers_read_is_updated_after_all_have(name: str) -> None:
    """In-place updates: host, graph and torch agree over 20 steps; an update too early would show in the first."""
    optimizer, peer = OPTIMIZERS[name]
    options = {"freeze": ["frozen", "scale", "bias"], "dropout": "eval"}
    host, graph = (session(optimizer, kind, **options) for kind in ("host", "graph"))
    module = Tied(host.parameters())
    torch_side = peer(module.parameters(), **dataclasses.asdict(optimizer))
    for seed in range(20):
        given = feeds(seed=seed)
        torch_side.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            module(torch.from_numpy(given["x"])), torch.from_numpy(given["labels"])
        )
        loss.backward()
        torch_side.step()
        for running in (host, graph):
            assert running.step(given).loss == pytest.approx(loss.item(), rel=1e-5)
    for parameter in ("tied", "b"):
        expected = getattr(module, parameter).detach().numpy()
        for running in (host, graph):
            np.testing.assert_allclose(running.parameters()[parameter], expected, rtol=1e-4, atol=1e-6)


class Bindings:
    """Watches what a runner binds: (graph, side, name) -> addresses seen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[tuple[dict[str, int], dict[str, int]]] = []
        original: Callable[..., Any] = backend.Runner.run

        def run(runner: Any, inputs: Any, outputs: Any) -> Any:
            address = lambda values: {name: value.data_ptr() for name, value in values.items()}
            read = {name: inputs[name] for name in runner.inputs}
            self.runs.append((address(read), address(outputs)))
            return original(runner, inputs, outputs)

        monkeypatch.setattr(backend.Runner, "run", run)


@pytest.mark.parametrize("kind", ["host", "graph"])
def test_no_buffer_is_both_read_and_written_by_a_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    running, watched = session(backend=kind), Bindings(monkeypatch)
    for seed in range(4):
        running.step(feeds(seed=seed))
        running.gradients(feeds(seed=seed))
        running.evaluate(feeds(seed=seed))
    assert len(watched.runs) == 4 * (4 if kind == "graph" else 3)
    for read, written in watched.runs:
        assert not set(read.values()) & set(written.values())
        assert len(set(written.values())) == len(written)


def test_the_emitted_graphs_read_no_name_that_they_write() -> None:
    artifacts = compiled()
    for name in ("training_model", "optimizer_model", "step_model", "eval_model"):
        ports = artifacts.manifest["graphs"][name]
        assert not {p["name"] for p in ports["inputs"]} & {p["name"] for p in ports["outputs"]}


def test_the_host_updates_in_place_and_the_graph_between_two_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of a parameter is made per step; gradients, too, have their buffers for good."""
    for kind, buffers in (("host", 1), ("graph", 2)):
        with monkeypatch.context() as patch:
            running, watched = session(backend=kind), Bindings(patch)
            for seed in range(6):
                running.step(feeds(seed=seed))
        training = [run for run in watched.runs if "x" in run[0]]
        for one in running.manifest["trainable"]:
            read = [inputs[one["name"]] for inputs, _ in training]
            assert len(set(read)) == buffers, (kind, one["name"])
            assert len({outputs[one["gradient"]] for _, outputs in training}) == 1
        for name, after in running.manifest["state"].items():
            read = [inputs[name] for inputs, _ in training]
            assert len(set(read)) == 2 and read[2:] == read[:-2]
            assert len({outputs[after] for _, outputs in training}) == 2


def test_the_host_optimizer_writes_where_the_graph_reads() -> None:
    running = session(backend="host")
    slot = running._slots["tied"]
    assert slot.current.data_ptr() == slot.array.ctypes.data
    before = slot.current.numpy().copy()
    running.step(feeds())
    assert not np.array_equal(slot.current.numpy(), before)
    assert isinstance(running._updater._kernel, HostOptimizer)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("gpu", "optimizer_backend is one of auto, graph, host, not 'gpu'")],
)
def test_an_unknown_backend(wanted: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        session(backend=wanted)
    assert str(error.value) == message


def test_a_learning_rate_for_one_step() -> None:
    for kind in ("host", "graph"):
        running = session(gradcut.SGD(lr=0.5), kind)
        before, gradients = running.parameters(), running.gradients(feeds())
        running.step(feeds(), lr=0.125)
        np.testing.assert_allclose(running.parameters()["b"], before["b"] - 0.125 * gradients["b"], rtol=1e-5)


# --- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["host", "graph"])
@pytest.mark.parametrize("optimizer", [gradcut.AdamW(lr=0.01), gradcut.SGD(lr=0.1, momentum=0.9)])
def test_ten_steps_saved_and_ten_more_are_twenty(kind: str, optimizer: Any, tmp_path: Path) -> None:
    whole = session(optimizer, kind)
    for seed in range(20):
        whole.step(feeds(rows=3 + seed % 4, seed=seed))
    first = session(optimizer, kind)
    for seed in range(10):
        first.step(feeds(rows=3 + seed % 4, seed=seed))
    first.save_checkpoint(tmp_path / "c.safetensors", extra={"epoch": 1})
    resumed = session(optimizer, kind)
    resumed.step(feeds(seed=99))
    assert resumed.load_checkpoint(tmp_path / "c.safetensors") == {"epoch": 1}
    assert resumed.steps == 10 and state(resumed) == state(first)
    for seed in range(10, 20):
        resumed.step(feeds(rows=3 + seed % 4, seed=seed))
    assert state(resumed) == state(whole)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"train": ["tied"]}, r"lacks 'b'; it is of another model or another choice of what trains"),
        ({"freeze": []}, r"holds, and this model does not, 'frozen'; it is of another model"),
        ({"optimizer": gradcut.SGD()}, r"lacks 'b_exp_avg'; it is of another model"),
    ],
)
def test_a_foreign_checkpoint_is_refused(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    optimizer = other.pop("optimizer", None)
    session(optimizer, **other).save_checkpoint(tmp_path / "c.safetensors")
    running = session()
    running.step(feeds())
    before = state(running)
    with pytest.raises(CheckpointError, match=message):
        running.load_checkpoint(tmp_path / "c.safetensors")
    assert state(running) == before


def test_a_checkpoint_of_other_shapes_or_types_is_refused(tmp_path: Path) -> None:
    running = session()
    saved = {name: slot.numpy() for name, slot in running._slots.items()}
    before = state(running)
    for change in (np.zeros(4, np.float32), np.zeros(3, np.float64)):
        gradcut.checkpoint.save(tmp_path / "c.safetensors", {**saved, "b": change}, {"step": 3})
        with pytest.raises(CheckpointError, match=r"'b' is float\d\d\[\d\], and the model's is float32\[3\]"):
            running.load_checkpoint(tmp_path / "c.safetensors")
        assert state(running) == before


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    running = session()
    running.save_checkpoint(tmp_path / "c.safetensors")
    before = state(running)
    whole = (tmp_path / "c.safetensors").read_bytes()
    for damaged in (whole[:-7], whole[:40], b"", whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]):
        (tmp_path / "c.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            running.load_checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        running.load_checkpoint(tmp_path / "none")
    assert state(running) == before


# --- devices, runtimes, types --------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(GradcutError, match="device 'cuda': this onnxruntime has no CUDA provider; ") as error:
        gradcut.TrainingSession(compiled(), device="cuda")
    assert "\n" not in str(error.value)
    with pytest.raises(GradcutError, match="there is no device 'tpu'; there are cpu, cuda"):
        gradcut.TrainingSession(compiled(), device="tpu")


def test_without_a_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ort", None)
    artifacts = compiled()  # needs none
    with pytest.raises(MissingExtraError) as error:
        gradcut.TrainingSession(artifacts)
    assert str(error.value) == ("a training session needs an extra that is not installed: pip install 'gradcut[cpu]'")


def test_without_numba_the_graph_optimizer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("host_optimizer", "host_updates", "kernels"):
        monkeypatch.delitem(sys.modules, f"gradcut.runtime.{name}", raising=False)
    original = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "numba":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert session().optimizer_backend == "graph"
    with pytest.raises(MissingExtraError, match=r"the host optimizer needs .*gradcut\[cpu\]"):
        session(backend="host")


def typed(dtype: str) -> onnx.ModelProto:
    w, b = np.full((4, 3), 0.25, dtype), np.array([0.0, 0.5, 1.0], dtype)
    kind = onnx.helper.np_dtype_to_tensor_dtype(w.dtype)
    value = lambda name, *dims: onnx.helper.make_tensor_value_info(name, kind, dims)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w"], ["product"]),
            onnx.helper.make_node("Add", ["product", "b"], ["y"]),
        ],
        "typed",
        [value("x", "n", 4)],
        [value("y", "n", 3)],
        [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(b, "b")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("kind", ["auto", "host", "graph"])
def test_float64_models_train(kind: str) -> None:
    artifacts = gradcut.compile(typed("float64"), "cross_entropy", optimizer=gradcut.SGD(lr=0.5, momentum=0.9))
    running = gradcut.TrainingSession(artifacts, threads=1, optimizer_backend=kind)
    layer = torch.nn.Linear(4, 3).double()
    start = running.parameters()
    layer.weight.data, layer.bias.data = torch.from_numpy(start["w"].T.copy()), torch.from_numpy(start["b"])
    peer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    for seed in range(5):
        given = feeds(seed=seed)
        given["x"] = given["x"].astype(np.float64)
        peer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(given["x"])), torch.from_numpy(given["labels"]))
        loss.backward()
        peer.step()
        assert running.step(given).loss == pytest.approx(loss.item(), rel=1e-9)
    np.testing.assert_allclose(running.parameters()["w"], layer.weight.detach().numpy().T, rtol=1e-9)


@pytest.mark.parametrize("optimizer", [gradcut.SGD(lr=0.5, momentum=0.9), gradcut.AdamW(lr=0.05)])
def test_float16_models_train_through_the_graph(optimizer: Any) -> None:
    artifacts = gradcut.compile(typed("float16"), "cross_entropy", optimizer=optimizer)
    running = gradcut.TrainingSession(artifacts, threads=1)
    assert running.optimizer_backend == "graph"
    given = feeds()
    given["x"] = given["x"].astype(np.float16)
    losses = [running.step(given).loss for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert running.parameters()["w"].dtype == np.float16
    with pytest.raises(SpecError, match="takes float32 and float64 parameters on the CPU; use 'graph'"):
        gradcut.TrainingSession(artifacts, optimizer_backend="host")


# --- data-free corners ---------------------------------------------------------------------------------------


def test_labels_that_are_all_ignored_are_not_finite_as_in_torch() -> None:
    running = session()
    before = state(running)
    given = {**feeds(), "labels": np.full(6, -100)}
    assert np.isnan(torch.nn.functional.cross_entropy(torch.zeros(6, 3), torch.full((6,), -100)).item())
    with pytest.raises(NotFiniteError, match="every label is -100, the ignore_index"):
        running.step(given)
    assert not any(gradient.any() for gradient in running.gradients(given).values())  # as torch's
    with pytest.raises(NotFiniteError, match="the feed 'x' is empty"):
        running.step({name: array[:0] for name, array in feeds().items()})
    assert state(running) == before


@pytest.mark.parametrize("kind", ["host", "graph"])
def test_weights_that_are_not_finite_are_written_nowhere(kind: str, tmp_path: Path) -> None:
    """sqrt at 0 has a finite value and an infinite derivative; 0 times it is NaN."""
    model = text("g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { m = Mul (x, w)  y = Sqrt (m) }")
    running = gradcut.TrainingSession(gradcut.compile(model, "mse"), optimizer_backend=kind, threads=1)
    given = {"x": np.ones((1, 2), np.float32), "labels": np.zeros((1, 2), np.float32)}
    running.step(given)
    running.save_checkpoint(tmp_path / "c")
    good = (tmp_path / "c").read_bytes()
    assert np.isfinite(running.step({**given, "x": np.zeros((1, 2), np.float32)}).loss)
    for write, name in ((running.save_checkpoint, "c"), (running.export, "t.onnx")):
        with pytest.raises(NotFiniteError, match=rf"'w' is not finite after step 2.*{name} was not written"):
            write(tmp_path / name)
    assert (tmp_path / "c").read_bytes() == good and [one.name for one in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf"), 1e300, "fast"])
def test_learning_rates_that_none_can_have(lr: Any) -> None:
    running = session()
    before = state(running)
    with pytest.raises(SpecError, match=r"lr (must be at|is a finite number)"):
        running.step(feeds(), lr=lr)
    with pytest.raises(SpecError, match=r"lr (must be at|is a finite number)"):
        gradcut.SGD(lr=lr)
    assert state(running) == before
    with pytest.raises(SpecError, match="threads is -3; it is at least 1"):
        gradcut.TrainingSession(compiled(), threads=-3)


def test_digits_train_from_the_shipped_file() -> None:
    with np.load(exported("digits").with_suffix(".npz")) as data:
        image, labels = data["image"][:256], data["labels"][:256]
    artifacts = gradcut.compile(exported("digits"), "cross_entropy", train=["head.*"], optimizer=gradcut.AdamW(lr=1e-2))
    running = gradcut.TrainingSession(artifacts, threads=1)
    first = running.evaluate({"image": image, "labels": labels}).loss
    for _ in range(15):
        running.step({"image": image, "labels": labels})
    assert running.evaluate({"image": image, "labels": labels}).loss < 0.3 * first


def small(source: str) -> gradcut.TrainingSession:
    """A session of a graph with a parameter `w`, trained to outputs `y` by mse with SGD."""
    return gradcut.TrainingSession(
        gradcut.compile(text(source), "mse:output=y", train=["w"], optimizer=gradcut.SGD(lr=0.1)), threads=1
    )


X = np.ones((3, 2), np.float32)
WEIGHT = "<float[2, 2] w = {1.0, 2.0, 3.0, 4.0}>"


@pytest.mark.parametrize(("name", "kind"), [("x", "float[n, 2]"), ("w", "float[2, 2]")])
def test_outputs_that_are_inputs_or_weights_keep_their_names(name: str, kind: str) -> None:
    running = small(f"g (float[n, 2] x) => (float[n, 2] y, {kind} {name}) {WEIGHT} {{ y = MatMul (x, w) }}")
    for call in (running.evaluate, running.step, running.evaluate):
        before = {"x": X, **running.parameters()}[name]
        outputs = call({"x": X, "labels": X}).outputs
        assert set(outputs) == {"y", name}
        np.testing.assert_array_equal(outputs[name], before)


def test_a_scalar_constant_trains_where_train_names_it(tmp_path: Path) -> None:
    source = """g (float[n, 2] x) => (float[n, 2] y)
    { w = Constant <value = float {2.0}> () h = Mul (x, w) y = Neg (h) }"""
    running = small(source)
    running.step({"x": X, "labels": X})  # y = -2; d loss / dw = 2 (y - 1) (-1) = 6
    assert running.parameters() == {"w": pytest.approx(1.4)}
    running.export(tmp_path / "tuned.onnx")
    (constant, *_) = onnx.load(tmp_path / "tuned.onnx").graph.node
    assert onnx.numpy_helper.to_array(constant.attribute[0].t) == pytest.approx(1.4)


def test_what_cannot_train() -> None:
    integer = text("g (float[n, 2] x) => (float[n, 2] y) <int64[1] i = {1}> { y = Unsqueeze (x, i) }")
    with pytest.raises(SpecError, match="train: 'i' is INT64; only floats carry a gradient"):
        gradcut.compile(integer, "mse", train=["i"])
    with pytest.raises(SpecError, match="nothing is left to train: the model has no parameter"):
        gradcut.compile(integer, "mse")
    with pytest.raises(SpecError, match=r"seed is an integer of 64 bits, not 2\.5"):
        compiled(seed=2.5)


@pytest.mark.parametrize("label", [2, -1])
def test_labels_are_checked_where_the_classes_are_a_symbol(label: int) -> None:
    model = text("g (float[n, c] x) => (float[n, c] y) <float[1] w = {1.0}> { y = Mul (x, w) }")
    running = gradcut.TrainingSession(gradcut.compile(model, "cross_entropy", train=["w"]), threads=1)
    assert running.step({"x": X, "labels": np.array([0, 1, -100])}).step == 1
    with pytest.raises(FeedError, match=f"holds label {label} at row 1; the model has 2 classes, 0 to 1"):
        running.step({"x": X, "labels": np.array([0, label, 1])})


def test_feeds_that_only_a_run_can_refuse_leave_the_state(capfd: pytest.CaptureFixture[str]) -> None:
    """A token beyond the table: one error, and nothing on the terminal from the runtime."""
    running = small(f"g (int64[n] i) => (float[n, 2] y) {WEIGHT} {{ y = Gather (w, i) }}")
    labels = X[:1]
    before = state(running)
    with pytest.raises(FeedError, match=r"onnxruntime could not run the graph on these feeds: .*indices"):
        running.step({"i": np.array([7]), "labels": labels})
    assert state(running) == before and capfd.readouterr() == ("", "")
    assert running.step({"i": np.array([1]), "labels": labels}).step == 1


@pytest.mark.parametrize(
    ("kind", "name"), [("string", "string"), ("bfloat16", "bfloat16")], ids=["strings", "bfloat16"]
)
def test_inputs_that_no_value_can_be_made_of(kind: str, name: str) -> None:
    source = f"""g (float[n, 2] x, {kind}[n] s) => (float[n, 2] y, {kind}[n] t) {WEIGHT}
    {{ y = MatMul (x, w) t = Identity (s) }}"""
    with pytest.raises(GradcutError, match=rf"input 's' is tensor\({name}\), which a session cannot bind"):
        small(source)


def test_feeds_and_artifacts_of_another_kind() -> None:
    with pytest.raises(FeedError, match=r"feeds are arrays by input name, such as {'x': array}"):
        session().step([X])
    with pytest.raises(SpecError, match="a session trains TrainingArtifacts or their directory, not None"):
        gradcut.TrainingSession(None)
