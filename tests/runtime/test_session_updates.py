"""What a step moves: updates against torch, and memory that no run both reads and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gradcut
from gradcut.errors import (
    SpecError,
)
from gradcut.runtime import backend
from gradcut.runtime.host_optimizer import HostOptimizer

# One model with everything: a batch norm, a dropout, a weight that two layers read, and a frozen one.
from tests.runtime.stepping import FED, compiled, feeds, session

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

        def run(runner: Any, inputs: Any, outputs: Any, kept: Any = ()) -> Any:
            address = lambda values: {name: value.data_ptr() for name, value in values.items()}
            read = {name: inputs[name] for name in runner.inputs}
            self.runs.append((address(read), address(outputs)))
            return original(runner, inputs, outputs, kept)

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
    assert isinstance(running.program().updater._kernel, HostOptimizer)


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
