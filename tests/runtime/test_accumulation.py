"""Micro-batches: one update that equals the large batch's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import gradcut
from gradcut.errors import FeedError, NotFiniteError
from gradcut.runtime import accumulation
from gradcut.runtime.backend import Slot, to_device
from models import zoo
from tests.exported import exported, text
from tests.runtime.stepping import FED, MODEL, feeds, state, typed

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
both = pytest.mark.parametrize("kind", ["host", "graph"])


def session(model: Any, loss: str | None, kind: str = "auto", **options: Any) -> gradcut.TrainingSession:
    options = {"optimizer": gradcut.SGD(lr=0.1, momentum=0.9), "batch_norm": "eval", "dropout": "eval", **options}
    return gradcut.TrainingSession(gradcut.compile(model, loss, **options), threads=1, optimizer_backend=kind)


def split(given: Feeds, sizes: list[int]) -> list[Feeds]:
    bounds = np.cumsum([0, *sizes])
    assert bounds[-1] == len(next(iter(given.values())))
    return [{k: v[a:b] for k, v in given.items()} for a, b in pairwise(bounds)]


def assert_same(one: gradcut.TrainingSession, other: gradcut.TrainingSession, tolerance: float = 1e-5) -> None:
    for name, slot in one._slots.items():
        np.testing.assert_allclose(
            other._slots[name].numpy(), slot.numpy(), rtol=tolerance, atol=tolerance, err_msg=name
        )


@both
@pytest.mark.parametrize("sizes", [[12], [6, 6], [5, 5, 2], [1, 1, 10]], ids=str)
@pytest.mark.parametrize("name", ["mlp", "digits"])
def test_micro_batches_are_the_large_batch(name: str, sizes: list[int], kind: str) -> None:
    """An MLP and a convolutional network; some labels ignored, and not as many in each part."""
    optimizer = gradcut.SGD(lr=1e-3, momentum=0.9)
    whole, parts = (session(exported(name), "cross_entropy", kind, optimizer=optimizer) for _ in range(2))
    for seed in range(4):
        given = {**zoo.example_inputs(name, 12, seed), "labels": zoo.example_labels(name, 12, seed)}
        given["labels"][[0, 1, 7]] = -100
        expected, result = whole.step(given), parts.step(split(given, sizes))
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert result.step == expected.step == seed + 1
        for output, array in expected.outputs.items():
            np.testing.assert_allclose(result.outputs[output], array, rtol=1e-4, atol=1e-5)
    assert_same(whole, parts)


def test_it_is_what_torch_gets_from_the_large_batch() -> None:
    running = session(typed("float32"), "cross_entropy", optimizer=gradcut.AdamW(lr=0.05))
    layer = torch.nn.Linear(4, 3)
    start = running.parameters()
    layer.weight.data, layer.bias.data = torch.from_numpy(start["w"].T.copy()), torch.from_numpy(start["b"])
    peer = torch.optim.AdamW(layer.parameters(), lr=0.05)
    for seed in range(10):
        given = feeds(rows=7, seed=seed)
        given["labels"][2] = -100
        peer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(given["x"])), torch.from_numpy(given["labels"]))
        loss.backward()
        peer.step()
        assert running.step(split(given, [3, 3, 1])).loss == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(running.parameters()["w"], layer.weight.detach().numpy().T, rtol=1e-5, atol=1e-5)


@both
def test_clipping_and_averages_come_after_the_sum(kind: str) -> None:
    options = {"clip_norm": 0.3, "clip_value": 0.2, "ema": 0.9, "optimizer": gradcut.LAMB(lr=0.02)}
    whole, parts = (session(MODEL, "cross_entropy", kind, **options) for _ in range(2))
    for seed in range(5):
        given = feeds(rows=9, seed=seed)
        expected, result = whole.step(given), parts.step(split(given, [4, 4, 1]))
        assert result.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    assert_same(whole, parts)


@both
def test_means_over_elements_count_by_rows(kind: str) -> None:
    whole, parts = (session(typed("float64"), "mse", kind) for _ in range(2))
    random = np.random.default_rng(5)
    for _ in range(3):
        given = {"x": random.normal(size=(7, 4)), "labels": random.normal(size=(7, 3))}
        expected = whole.step(given)
        assert parts.step(split(given, [3, 3, 1])).loss == pytest.approx(expected.loss, rel=1e-12)
    assert_same(whole, parts, 1e-12)


@both
def test_fed_cotangents_add_up(kind: str) -> None:
    """Without a loss the objective is the sum of outputs times cotangents, so that gradients are summed."""
    running, once = (session(FED, None, kind, train=["a", "c", "e"], optimizer=gradcut.SGD(lr=0.5)) for _ in range(2))
    random = np.random.default_rng(6)
    shapes = {"x": (1, 8), "p_grad": (8,), "q_grad": (4, 8), "r_grad": (1, 8)}
    batches = [{k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(3)]
    running.step(batches)
    once.step({**batches[0], **{k: sum(batch[k] for batch in batches) for k in shapes if k != "x"}})
    assert_same(once, running)


@both
def test_one_micro_batch_is_a_plain_step_bit_for_bit(kind: str) -> None:
    plain, listed = (session(MODEL, "cross_entropy", kind, batch_norm="auto", dropout="auto") for _ in range(2))
    for seed in range(3):
        expected, result = plain.step(feeds(seed=seed)), listed.step((feeds(seed=seed),))
        assert result.loss == expected.loss
        np.testing.assert_array_equal(result.outputs["logits"], expected.outputs["logits"])
    assert state(plain) == state(listed)


def test_a_part_in_which_every_label_is_ignored_counts_nothing() -> None:
    """Its own loss is 0/0, and torch's of the large batch does not see it."""
    whole, parts = (session(MODEL, "cross_entropy") for _ in range(2))
    given = feeds(rows=9)
    given["labels"][3:6] = -100
    assert parts.step(split(given, [3, 3, 3])).loss == pytest.approx(whole.step(given).loss, rel=1e-6)
    assert_same(whole, parts)
    before = state(parts)
    given["labels"][:] = -100
    with pytest.raises(NotFiniteError, match=r"in micro-batch 1 of 3; .* every label is -100, the ignore_index"):
        parts.step(split(given, [3, 3, 3]))
    assert state(parts) == before


# --- draws and statistics --------------------------------------------------------------------------------------

NOISE = text(
    """
g (float[n, 64] x) => (float[n, 64] y) <float[64] w = {W}, float ratio = {0.5}, bool on = {1}>
{ h = Mul (x, w)  y = Dropout (h, ratio, on) }""".replace("W", ", ".join(["1.0"] * 64))
)


def test_each_micro_batch_has_draws_of_its_own() -> None:
    running, again = (session(NOISE, "mse", dropout="auto", seed=-(2**63)) for _ in range(2))
    given = {"x": np.ones((2, 64), np.float32), "labels": np.zeros((2, 64), np.float32)}
    first, second, third = np.split(running.step([given] * 3).outputs["y"] != 0, 3)
    for one, other in ((first, second), (first, third), (second, third)):
        assert 0.3 < (one == other).mean() < 0.7
    np.testing.assert_array_equal(again.step(given).outputs["y"] != 0, first)  # the first is a plain step's
    assert (
        len({accumulation.seed_of(seed, part) for seed in (-(2**63), -1, 0, 1, 2**63 - 1) for part in range(9)}) == 45
    )


@both
def test_a_resumed_run_repeats_draws_and_statistics(kind: str, tmp_path: Path) -> None:
    whole, first, resumed = (
        session(MODEL, "cross_entropy", kind, batch_norm="auto", dropout="auto", ema=0.9) for _ in range(3)
    )
    batches = [split(feeds(rows=7, seed=seed), [3, 3, 1]) for seed in range(8)]
    for parts in batches:
        whole.step(parts)
    for parts in batches[:4]:
        first.step(parts)
    first.save_checkpoint(tmp_path / "c")
    resumed.step(batches[7])
    resumed.load_checkpoint(tmp_path / "c")
    for parts in batches[4:]:
        resumed.step(parts)
    assert state(resumed) == state(whole)


def test_running_statistics_move_with_each_micro_batch() -> None:
    """As torch's module that is called once a part."""
    running = session(MODEL, "cross_entropy", batch_norm="auto", optimizer=gradcut.SGD(lr=0.0))
    norm = torch.nn.BatchNorm1d(4, eps=1e-5, momentum=0.1)
    tied = running.parameters()["tied"]
    for seed in range(3):
        parts = split(feeds(rows=9, seed=seed), [4, 3, 2])
        running.step(parts)
        for part in parts:
            norm(torch.from_numpy(part["x"] @ tied))
    np.testing.assert_allclose(running._slots["mean"].numpy(), norm.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(running._slots["var"].numpy(), norm.running_var.numpy(), rtol=1e-5, atol=1e-6)


# --- what is refused -------------------------------------------------------------------------------------------


@both
def test_what_is_wrong_in_one_micro_batch_moves_nothing(kind: str) -> None:
    running, witness = (session(MODEL, "cross_entropy", kind, batch_norm="auto") for _ in range(2))
    running.step(feeds()), witness.step(feeds())
    before = state(running)
    good, bad, misfit = feeds(seed=1), feeds(seed=2), feeds(seed=3)
    bad["x"][0, 0] = np.nan
    misfit["x"] = misfit["x"][:, :3]
    with pytest.raises(NotFiniteError, match=r"the loss is nan at step 2 \(learning rate 0\.1\) in micro-batch 2 of 3"):
        running.step([good, bad, good])
    assert state(running) == before
    with pytest.raises(FeedError, match=r"feed 'x' has shape \[6, 3\]"):
        running.step([good, good, misfit])
    with pytest.raises(FeedError, match="there is no micro-batch in the list"):
        running.step([])
    with pytest.raises(FeedError, match="feeds are arrays by input name"):
        running.step([good, None])  # type: ignore[list-item]
    assert state(running) == before
    running.step([good, good]), witness.step([good, good])
    assert state(running) == state(witness)


def test_outputs_that_do_not_lie_end_to_end_are_the_last_ones() -> None:
    parts = [{"rows": np.full((n, 2), n), "scalar": np.array(n), "ragged": np.zeros((1, n))} for n in (1, 2)]
    joined = accumulation.joined(parts)
    assert joined["rows"].tolist() == [[1, 1], [2, 2], [2, 2]]
    assert (joined["scalar"], joined["ragged"].shape) == (2, (1, 2))


def test_the_sum_needs_one_more_buffer_and_no_more() -> None:
    slot = Slot(np.zeros(1000, np.float32), "cpu")
    places = set()
    for number, share in enumerate((0.5, 0.25, 0.0, 0.25)):
        slot.array[...] = np.nan if share == 0 else number + 1
        accumulation.fold(slot, share, number == 0, number == 3)
        places |= {slot.array.ctypes.data, slot.other.ctypes.data}
    np.testing.assert_array_equal(slot.array, 0.5 * 1 + 0.25 * 2 + 0.25 * 4)
    assert slot.current.data_ptr() == slot.array.ctypes.data and len(places) == 2


def test_a_device_sums_through_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's buffer is read and, after the last, replaced; what it holds in between is not looked at again."""
    slot = Slot(np.zeros(5, np.float32), "cpu")
    slot.device = "cuda"
    monkeypatch.setattr(accumulation, "to_device", lambda array, device: to_device(array.copy(), "cpu"))
    for number, share in enumerate((0.5, 0.0, 0.25)):
        slot.current = to_device(np.full(5, np.nan if share == 0 else number + 1, np.float32), "cpu")
        accumulation.fold(slot, share, number == 0, number == 2)
    np.testing.assert_array_equal(slot.current.numpy(), 0.5 * 1 + 0.25 * 3)


TWO = text(
    """g (float[n, 4] x, float[4, 3] w, float[4, 2] v) => (float[n, 3] scores, float[n, 2] value)
    { scores = MatMul (x, w)  value = MatMul (x, v) }"""
)
for _name, _shape in (("w", (4, 3)), ("v", (4, 2))):
    _weights = np.random.default_rng(5).standard_normal(_shape).astype(np.float32)
    TWO.graph.initializer.append(onnx.numpy_helper.from_array(_weights, _name))
del TWO.graph.input[1:]


def two_feeds(ignored: list[int]) -> Feeds:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 6)
    labels[ignored] = -100
    values = {name: rng.standard_normal((6, width)).astype(np.float32) for name, width in (("x", 4), ("labels_2", 2))}
    return {**values, "labels": labels}


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy:output=scores + 0.5*mse:output=value",
        "cross_entropy:output=scores,reduction=sum + 0.5*l1:output=value,reduction=sum",
    ],
)
def test_several_losses_add_up(loss: str) -> None:
    """Each label counts once or the same share is ignored in every part, so all terms want the same factors."""
    whole, parts = session(TWO, loss), session(TWO, loss)
    given = two_feeds([])
    assert parts.step(split(given, [4, 2])).loss == pytest.approx(whole.step(given).loss, rel=1e-5)
    assert_same(whole, parts)


@pytest.mark.parametrize(
    ("loss", "ignored", "said"),
    [
        ("cross_entropy:output=scores + 0.5*mse:output=value", [0, 1], "not in proportion"),
        (
            "cross_entropy:output=scores,reduction=sum + mse:output=value",
            [],
            "a sum over the batch and another a mean",
        ),
    ],
)
def test_losses_that_want_different_factors_are_refused(loss: str, ignored: list[int], said: str) -> None:
    stepped = session(TWO, loss)
    before = state(stepped)
    with pytest.raises(FeedError, match=said):
        stepped.step(split(two_feeds(ignored), [4, 2]))
    assert state(stepped) == before
