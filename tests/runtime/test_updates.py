"""Groups, clipping and running averages: the session, both backends, against torch; and the step model alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gradcut
from gradcut.errors import NotFiniteError, PatternError, SpecError
from gradcut.optimizers import Optimizer
from tests.exported import text
from tests.runtime.stepping import FED, MODEL, feeds, state, typed
from tests.test_optimizers import lamb_formula, lars_formula

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
NAMES = {"a": "p_grad", "c": "q_grad", "e": "r_grad"}
ZERO = {"x": np.zeros((1, 8), np.float32)}
STEPS = 50

OPTIMIZERS = {
    "sgd": gradcut.SGD(lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": gradcut.AdamW(lr=0.01, weight_decay=0.1),
    "adam": gradcut.Adam(lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": gradcut.RMSprop(lr=0.01, weight_decay=0.1, momentum=0.5, centered=True),
    "adagrad": gradcut.Adagrad(lr=0.1, lr_decay=0.01, weight_decay=0.1, initial_accumulator_value=0.1),
    "lars": gradcut.LARS(lr=1.0, weight_decay=0.1),
    "lamb": gradcut.LAMB(lr=0.02),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
both = pytest.mark.parametrize("kind", ["host", "graph"])
GROUPS: dict[str, dict[str, Any]] = {"a": {"lr": 0.2, "weight_decay": 0.0}, "c": {"weight_decay": 0.5}}
CLIPS = [{"clip_norm": 2.0}, {"clip_value": 0.5}, {"clip_norm": 1.5, "clip_value": 0.7}, {"clip_norm": 1e6}]


def session(optimizer: Any, kind: str, **options: Any) -> gradcut.TrainingSession:
    artifacts = gradcut.compile(FED, train=["a", "c", "e"], optimizer=optimizer, **options)
    return gradcut.TrainingSession(artifacts, threads=1, optimizer_backend=kind)


def fed_gradients(steps: int = STEPS) -> Iterator[tuple[float, Arrays]]:
    """A factor on the rate, and gradients of many sizes."""
    generator = np.random.default_rng(3)
    shapes = {"a": (8,), "c": (4, 8), "e": (1, 8)}
    for step in range(steps):
        size = 2.0 * 0.95**step
        yield 1 / (1 + 0.1 * step), {k: (size * generator.normal(size=s)).astype(np.float32) for k, s in shapes.items()}


class Peer:
    """What others make of it: torch.optim with its parameter groups, or the paper's formula tensor by tensor."""

    def __init__(self, optimizer: Optimizer, start: Arrays, groups: dict[str, dict[str, Any]]) -> None:
        self.own = {name: dataclasses.replace(optimizer, **groups.get(name, {})) for name in start}
        self.tensors = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in start.items()}
        self.slots: dict[str, Arrays] = {}
        self.steps = 0
        if not isinstance(optimizer, (gradcut.LARS, gradcut.LAMB)):
            kind = getattr(torch.optim, type(optimizer).__name__)
            listed = [{"params": [t], **dataclasses.asdict(self.own[name])} for name, t in self.tensors.items()]
            self.torch = kind(listed, **dataclasses.asdict(optimizer))
            self.schedule = torch.optim.lr_scheduler.LambdaLR(self.torch, lambda step: 1 / (1 + 0.1 * step))

    def step(
        self, factor: float, fed: Arrays, clip_norm: float | None = None, clip_value: float | None = None
    ) -> float:
        """One update; the norm before clipping by it."""
        for name, tensor in self.tensors.items():
            tensor.grad = torch.tensor(fed[name])
        if clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.tensors.values(), clip_value)
        norm = 0.0
        if clip_norm is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(self.tensors.values(), clip_norm))
        self.steps += 1
        if hasattr(self, "torch"):
            self.torch.step()
            self.schedule.step()
        else:
            self._formula(factor)
        return norm

    def _formula(self, factor: float) -> None:
        for name, tensor in self.tensors.items():
            optimizer, w = self.own[name], tensor.detach().numpy().astype(np.float64)
            formula: Callable[..., Any] = lars_formula if isinstance(optimizer, gradcut.LARS) else lamb_formula
            held = self.slots.get(name, {slot: np.zeros_like(w) for slot in optimizer.slots})
            g = tensor.grad.numpy().astype(np.float64)
            after, self.slots[name] = formula(optimizer, w, g, held, optimizer.lr * factor, self.steps)
            tensor.data = torch.tensor(after.astype(np.float32))


def fed(gradients: Arrays) -> Arrays:
    return {**ZERO, **{NAMES[name]: array for name, array in gradients.items()}}


def assert_equal(running: gradcut.TrainingSession, peer: Peer, tolerance: float = 1e-5) -> None:
    for name, array in running.parameters().items():
        np.testing.assert_allclose(
            array, peer.tensors[name].detach().numpy(), rtol=tolerance, atol=tolerance, err_msg=name
        )


# --- groups --------------------------------------------------------------------------------------------------


@both
@every_optimizer
def test_groups_are_torchs(name: str, kind: str) -> None:
    """Under a schedule, whose factor scales every group's rate as LambdaLR does."""
    optimizer = OPTIMIZERS[name]
    running = session(optimizer, kind, groups=GROUPS)
    peer = Peer(optimizer, running.parameters(), GROUPS)
    for factor, gradients in fed_gradients():
        running.step(fed(gradients), lr=optimizer.lr * factor)
        peer.step(factor, gradients)
    assert_equal(running, peer)


def test_groups_may_differ_in_any_option(tmp_path: Path) -> None:
    """In state too: one has a momentum buffer, one has none."""
    groups = {"a": {"momentum": 0.9, "nesterov": True}, "e": {"maximize": True, "lr": 0.0}}
    for kind in ("host", "graph"):
        running = session(gradcut.SGD(lr=0.1), kind, groups=groups)
        assert {one["name"]: list(one["slots"]) for one in running.manifest["trainable"]} == {
            "a": ["momentum_buffer"],
            "c": [],
            "e": [],
        }
        peer = Peer(gradcut.SGD(lr=0.1), running.parameters(), groups)
        before = running.parameters()["e"]
        for factor, gradients in fed_gradients():
            running.step(fed(gradients), lr=0.1 * factor)
            peer.step(factor, gradients)
        assert_equal(running, peer)
        np.testing.assert_array_equal(running.parameters()["e"], before)


@pytest.mark.parametrize(
    "groups",
    [
        {"?": {"lr": 0.5, "beta1": 0.5}, "a": {"betas": (0.8, 0.9)}, "c*": {"lr": np.float32(0.25)}},
        ["?:lr=0.5,beta1=0.5", "a:beta1=0.8,beta2=0.9", "c*:lr=0.25"],
    ],
    ids=["mapping", "texts"],
)
def test_options_of_several_groups_add_up_and_the_later_wins(groups: Any) -> None:
    manifest = gradcut.compile(FED, train=["a", "c", "e"], optimizer="adam:lr=1.0", groups=groups).manifest
    assert {one["name"]: (one["optimizer"], one["groups"]) for one in manifest["trainable"]} == {
        "a": ("adam:lr=0.5,beta1=0.8,beta2=0.9", [0, 1]),
        "c": ("adam:lr=0.25,beta1=0.5", [0, 2]),
        "e": ("adam:lr=0.5,beta1=0.5", [0]),
    }
    assert manifest["optimizer"]["spec"] == "adam:lr=1.0"
    assert [group["pattern"] for group in manifest["optimizer"]["groups"]] == ["?", "a", "c*"]
    assert manifest["optimizer"]["groups"][0]["options"] == {"lr": 0.5, "beta1": 0.5}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": {"tide": {"lr": 1.0}}}, PatternError, r"'tide' matches no parameter that trains .*Nearest: tied"),
        ({"groups": {"frozen": {"lr": 1.0}}}, PatternError, "'frozen' matches no parameter that trains"),
        ({"groups": {"b": {"lrr": 1.0}}}, SpecError, "group 'b': 'lrr' is no option of adamw. Nearest: lr."),
        ({"groups": {"b": {"lr": -1}}}, SpecError, "group 'b': adamw: lr must be at least 0, and is -1.0"),
        ({"groups": {"b": {"lr": "fast"}}}, SpecError, "group 'b': adamw: lr is a finite number, not 'fast'"),
        ({"groups": {"b": {"betas": (0.9,)}}}, SpecError, "group 'b': adamw: betas is 2 numbers"),
        ({"groups": {"b": {}}}, SpecError, "a group is a pattern and its options, such as"),
        ({"groups": {"": {"lr": 1.0}}}, SpecError, "a group is a pattern and its options, such as"),
        ({"groups": {"b": 0.1}}, SpecError, "a group is a pattern and its options, such as"),
        ({"groups": ["b"]}, SpecError, "'b' is not a group; write PATTERN:option=value"),
        ({"groups": ["b:"]}, SpecError, "'b:' is not a group; write PATTERN:option=value"),
        ({"groups": [":lr=1"]}, SpecError, "':lr=1' is not a group; write PATTERN:option=value"),
        ({"groups": ["b:lr"]}, SpecError, "'lr' in ':lr' is not an option; write key=value"),
        ({"groups": 3}, SpecError, "groups are options by pattern, such as"),
        (
            {"groups": {"b": {"lr": 1.0}}, "optimizer": gradcut.SGD(lr=0)},
            SpecError,
            "a group has lr=1 and the optimizer lr=0: groups are multiples of the base rate",
        ),
        ({"no_decay": "yes"}, SpecError, "no_decay is True or False, not 'yes'"),
        ({"clip_norm": 0}, SpecError, "clip_norm must be above 0, or left out, and is 0.0"),
        ({"clip_norm": float("inf")}, SpecError, "clip_norm is a finite number, not inf"),
        ({"clip_value": -1}, SpecError, "clip_value must be above 0, or left out, and is -1.0"),
        ({"clip_value": True}, SpecError, "clip_value is a finite number, not True"),
        ({"ema": 1}, SpecError, "ema must be from 0 to below 1, such as 0.999, and is 1.0"),
        ({"ema": "0.9"}, SpecError, "ema is a finite number, not '0.9'"),
    ],
)
def test_what_cannot_be_asked_of_an_optimizer(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        gradcut.compile(MODEL, "cross_entropy", freeze=["frozen"], **options)
    assert "\n" not in str(caught.value)


# --- no decay ------------------------------------------------------------------------------------------------

LAYERS = text(
    """
g (float[n, 4, 6, 6] x) => (float[n, 2] y)
<float[3, 4, 1, 1] kernel = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] kernel_bias = {1, 2, 3},
 float[1, 3, 1, 1] shift = {1, 2, 3}, float[6, 6] gain = {GAIN}, float[6, 6] offset = {GAIN},
 float[108, 1] column = {COLUMN}, float[1, 2] row = {1, 2}, float[1, 2] row_bias = {0.5, 1.5}, 
 float[2, 2] last = {1, 2, 3, 4}, float[2] last_bias = {1, 2}>
{
    h = Conv (x, kernel, kernel_bias)
    shifted = Add (h, shift)
    normal = LayerNormalization <axis = 2> (shifted, gain, offset)
    flat = Flatten (normal)
    one = MatMul (flat, column)
    two = Gemm (one, row, row_bias)
    y = Gemm (two, last, last_bias)
}""".replace("GAIN", ", ".join(["1.5"] * 36)).replace("COLUMN", ", ".join(["0.01"] * 108))
)


def test_no_decay_spares_biases_and_norms_and_no_matrix() -> None:
    """A LayerNormalization over two axes has scales of rank 2; a matrix of one row is no bias."""
    artifacts = gradcut.compile(LAYERS, "mse", optimizer="adamw:weight_decay=0.1", no_decay=True)
    spared = ["kernel_bias", "shift", "gain", "offset", "row_bias", "last_bias"]
    assert artifacts.manifest["optimizer"]["no_decay"] == spared
    decay = {one["name"]: "weight_decay=0.1" in one["optimizer"] for one in artifacts.manifest["trainable"]}
    assert decay == {**dict.fromkeys(spared, False), "kernel": True, "column": True, "row": True, "last": True}


@both
def test_no_decay_is_a_group_of_torchs(kind: str) -> None:
    optimizer = OPTIMIZERS["adamw"]
    running = session(optimizer, kind, no_decay=True)
    spared = {"a": {"weight_decay": 0.0}, "e": {"weight_decay": 0.0}}  # [8] and [1, 8], of Adds
    peer = Peer(optimizer, running.parameters(), spared)
    for factor, gradients in fed_gradients():
        running.step(fed(gradients), lr=optimizer.lr * factor)
        peer.step(factor, gradients)
    assert_equal(running, peer)


def test_a_group_that_says_weight_decay_has_its_way() -> None:
    artifacts = gradcut.compile(FED, train=["a", "c", "e"], no_decay=True, groups={"a": {"weight_decay": 0.3}})
    said = {one["name"]: one["optimizer"] for one in artifacts.manifest["trainable"]}
    assert said == {"a": "adamw:weight_decay=0.3", "c": "adamw", "e": "adamw:weight_decay=0.0"}


# --- clipping ------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: " ".join(clip))
@every_optimizer
def test_clipping_is_torchs(name: str, clip: dict[str, float], kind: str) -> None:
    """With groups: the norm is of all parameters together."""
    optimizer = OPTIMIZERS[name]
    running = session(optimizer, kind, groups=GROUPS, **clip)
    peer = Peer(optimizer, running.parameters(), GROUPS)
    for factor, gradients in fed_gradients():
        result = running.step(fed(gradients), lr=optimizer.lr * factor)
        norm = peer.step(factor, gradients, **clip)
        assert result.gradient_norm == (pytest.approx(norm, rel=1e-5) if "clip_norm" in clip else None)
    assert_equal(running, peer)


@both
@pytest.mark.parametrize("clip", [{"clip_norm": 0.5}, {"clip_norm": 0.5, "clip_value": 0.1}], ids=["norm", "both"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_changes_nothing(poison: float, clip: dict[str, float], kind: str) -> None:
    running, witness = (session(gradcut.AdamW(), kind, ema=0.9, **clip) for _ in range(2))
    (_, good), (_, bad), (_, last) = fed_gradients(3)
    running.step(fed(good)), witness.step(fed(good))
    before = state(running)
    bad["c"][1, 2] = poison
    if poison == np.inf and "clip_value" in clip:  # bounded before the norm is taken
        running.step(fed(bad))
        assert all(np.isfinite(array).all() for array in running.parameters().values())
        return
    with pytest.raises(NotFiniteError, match=rf"the norm of the gradients is {poison} at step 2, .* was not taken"):
        running.step(fed(bad))
    assert state(running) == before
    running.step(fed(last)), witness.step(fed(last))
    assert state(running) == state(witness)


# A finite loss whose gradient is NaN at x = 0, where the root's derivative is infinite; and statistics that move.
ROOT = text("""
g (float[n, 2] x) => (float[n, 2] y)
<float[2] w = {1, 2}, float[2] scale = {1, 1}, float[2] bias = {0, 0}, float[2] mean = {3, 3}, float[2] var = {1, 1}>
{
    normal, rm, rv = BatchNormalization <training_mode = 1> (x, scale, bias, mean, var)
    product = Mul (x, w)
    root = Sqrt (product)
    y = Add (normal, root)
}""")


@both
@pytest.mark.parametrize("parts", [1, 3])
def test_statistics_stay_where_a_norm_is_not_finite(parts: int, kind: str) -> None:
    artifacts = gradcut.compile(ROOT, "mse", optimizer=gradcut.SGD(lr=0.1), clip_norm=1.0)
    running = gradcut.TrainingSession(artifacts, threads=1, optimizer_backend=kind)
    before = state(running)
    bad = {"x": np.zeros((2, 2), np.float32), "labels": np.ones((2, 2), np.float32)}
    with pytest.raises(NotFiniteError, match="the norm of the gradients is nan at step 1, though the loss was finite"):
        running.step([bad] * parts if parts > 1 else bad)
    assert state(running) == before
    running.step({**bad, "x": np.array([[1, 2], [3, 4]], np.float32)})
    assert state(running) != before


# --- running averages ----------------------------------------------------------------------------------------


class Holder(torch.nn.Module):
    def __init__(self, tensors: dict[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self.held = torch.nn.ParameterDict(tensors)


@both
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_averages_are_torchs(decay: float, kind: str) -> None:
    """AveragedModel copies at its first update, which is therefore made before the first step."""
    optimizer = gradcut.SGD(lr=0.1)
    running = session(optimizer, kind, ema=decay)
    start = running.parameters()
    for name, array in running.parameters(ema=True).items():
        np.testing.assert_array_equal(array, start[name])
    peer = Peer(optimizer, start, {})
    module = Holder(peer.tensors)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averaged.update_parameters(module)
    for factor, gradients in fed_gradients():
        running.step(fed(gradients), lr=0.1 * factor)
        peer.step(factor, gradients)
        averaged.update_parameters(module)
    assert_equal(running, peer)
    for name, array in running.parameters(ema=True).items():
        theirs = averaged.module.held[name].detach().numpy()
        np.testing.assert_allclose(array, theirs, rtol=1e-5, atol=1e-6, err_msg=name)


@both
def test_averages_can_be_evaluated_and_exported(kind: str, tmp_path: Path) -> None:
    artifacts = gradcut.compile(MODEL, "cross_entropy", freeze=["frozen"], optimizer="sgd:lr=0.5", ema=0.8)
    running = gradcut.TrainingSession(artifacts, threads=1, optimizer_backend=kind)
    for seed in range(4):
        running.step(feeds(seed=seed))
    before = state(running)
    plain, averaged = running.evaluate(feeds()), running.evaluate(feeds(), ema=True)
    running.export(tmp_path / "plain.onnx")
    running.export(tmp_path / "ema.onnx", ema=True)
    assert state(running) == before and plain.loss != averaged.loss
    assert running.evaluate(feeds()).loss == plain.loss
    given = gradcut.compile(tmp_path / "ema.onnx", "cross_entropy", batch_norm="eval", dropout="eval")
    fresh = gradcut.TrainingSession(given, threads=1)
    assert fresh.evaluate(feeds()).loss == pytest.approx(averaged.loss, rel=1e-6)
    for name, array in running.parameters(ema=True).items():
        np.testing.assert_array_equal(fresh.parameters()[name], array)
    np.testing.assert_array_equal(running.parameters(ema=True)["frozen"], running.parameters()["frozen"])


def test_averages_that_are_not_kept(tmp_path: Path) -> None:
    running = session(gradcut.SGD(), "host")
    calls: list[Callable[[], Any]] = [
        lambda: running.parameters(ema=True),
        lambda: running.evaluate(ZERO, ema=True),
        lambda: running.export(tmp_path / "e.onnx", ema=True),
    ]
    for call in calls:
        with pytest.raises(SpecError, match=r"there are no running averages; compile with --ema 0\.999"):
            call()
    assert not list(tmp_path.iterdir())


# --- in half precision, alone, and resumed ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_float16_models_keep_their_state_in_single_precision(name: str) -> None:
    artifacts = gradcut.compile(
        typed("float16"), "cross_entropy", optimizer=OPTIMIZERS[name], clip_norm=1.0, clip_value=0.5, ema=0.5
    )
    slots = [slot for one in artifacts.manifest["trainable"] for slot in one["slots"].values()]
    assert {artifacts.tensors[slot].dtype for slot in slots} == {np.dtype(np.float32)}
    running = gradcut.TrainingSession(artifacts, threads=1)
    given = feeds()
    given["x"] = given["x"].astype(np.float16)
    losses = [running.step(given).loss for _ in range(20)]
    assert losses[-1] < losses[0]
    assert {array.dtype for array in running.parameters(ema=True).values()} == {np.dtype(np.float16)}
    averaged = running.evaluate(given, ema=True).loss
    assert losses[-1] - 0.1 < averaged < losses[0]


ALL = {"groups": {"b": {"lr": 0.1}}, "no_decay": True, "clip_norm": 0.5, "clip_value": 0.3, "ema": 0.9}


def everything(name: str) -> gradcut.TrainingArtifacts:
    return gradcut.compile(MODEL, "cross_entropy", freeze=["frozen"], optimizer=OPTIMIZERS[name], **ALL)


@every_optimizer
def test_the_step_model_alone_does_all_of_it(name: str, tmp_path: Path) -> None:
    """Plain onnxruntime, the manifest, and `<name>_next` fed back as `<name>`: what a session does."""
    everything(name).save(tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    step = ort.InferenceSession(str(tmp_path / "d" / "step_model.onnx"), providers=["CPUExecutionProvider"])
    running = gradcut.TrainingSession(tmp_path / "d", threads=1, optimizer_backend="graph")
    names = manifest["names"]
    moving = {key: slot.numpy() for key, slot in running._slots.items()} | {names["step"]: np.asarray(0, np.int64)}
    fixed = {
        names["learning_rate"]: np.asarray(manifest["optimizer"]["lr"], np.float32),
        names["seed"]: np.asarray(manifest["seed"], np.int64),
    }
    outputs = [value.name for value in step.get_outputs()]
    for seed in range(5):
        results = dict(zip(outputs, step.run(None, {**feeds(seed=seed), **fixed, **moving}), strict=True))
        result = running.step(feeds(seed=seed))
        assert results[manifest["loss"]["loss"]] == pytest.approx(result.loss, rel=1e-6)
        assert results[names["gradient_norm"]] == pytest.approx(result.gradient_norm, rel=1e-5)
        moving = {key: results[f"{key}_next"] for key in moving}
    for key, slot in running._slots.items():
        np.testing.assert_allclose(moving[key], slot.numpy(), rtol=1e-5, atol=1e-6, err_msg=key)


@both
@every_optimizer
def test_saved_and_resumed_is_the_same_run(name: str, kind: str, tmp_path: Path) -> None:
    whole, first, resumed = (
        gradcut.TrainingSession(everything(name), threads=1, optimizer_backend=kind) for _ in range(3)
    )
    for seed in range(12):
        whole.step(feeds(seed=seed))
    for seed in range(6):
        first.step(feeds(seed=seed))
    first.save_checkpoint(tmp_path / "c")
    resumed.load_checkpoint(tmp_path / "c")
    for seed in range(6, 12):
        resumed.step(feeds(seed=seed))
    assert state(resumed) == state(whole)


@both
@every_optimizer
def test_a_rate_of_zero_moves_no_parameter(name: str, kind: str) -> None:
    running = session(dataclasses.replace(OPTIMIZERS[name], lr=0.0), kind, clip_norm=1.0)
    before = running.parameters()
    for _, gradients in fed_gradients(3):
        running.step(fed(gradients))
    for key, array in running.parameters().items():
        np.testing.assert_array_equal(array, before[key])


def test_equal_requests_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        everything("lamb").save(tmp_path / folder)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_artifacts_that_say_nothing_of_it_train_as_they_did() -> None:
    """A manifest from before there were groups, clipping and averages."""
    artifacts = gradcut.compile(FED, train=["a", "c", "e"], optimizer=OPTIMIZERS["adamw"])
    manifest = json.loads(json.dumps(artifacts.manifest))
    manifest["optimizer"] = {key: manifest["optimizer"][key] for key in ("spec", "name", "lr")}
    del manifest["names"]["gradient_norm"]
    for one in manifest["trainable"]:
        del one["optimizer"], one["groups"]
    for kind in ("host", "graph"):
        now = gradcut.TrainingSession(artifacts, threads=1, optimizer_backend=kind)
        then = gradcut.TrainingSession(
            dataclasses.replace(artifacts, manifest=manifest), threads=1, optimizer_backend=kind
        )
        for _, gradients in fed_gradients(3):
            now.step(fed(gradients)), then.step(fed(gradients))
        assert state(now) == state(then)


@every_optimizer
def test_the_host_and_the_graph_do_the_same_to_a_model(name: str) -> None:
    host, graph = (
        gradcut.TrainingSession(everything(name), threads=1, optimizer_backend=kind) for kind in ("host", "graph")
    )
    for seed in range(10):
        parts = [feeds(seed=seed), feeds(rows=2, seed=50 + seed)]
        one, other = host.step(parts), graph.step(parts)
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
    for key, slot in host._slots.items():
        np.testing.assert_allclose(graph._slots[key].numpy(), slot.numpy(), rtol=1e-4, atol=1e-5, err_msg=key)
