"""What a step must leave alone, and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gradcut
from gradcut.errors import (
    CheckpointError,
    NotFiniteError,
    NothingTrainsError,
    SpecError,
)

# One model with everything: a batch norm, a dropout, a weight that two layers read, and a frozen one.
from tests.runtime.stepping import MODEL, compiled, feeds, session, state

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
    with pytest.raises(NothingTrainsError, match=r"strict: some trainables do not reach the loss \(scale, bias: stop"):
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
