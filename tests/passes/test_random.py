"""Dropout: a pure function of (seed, step, node, element), and as good as independent draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradcut
from tests.exported import text

N = 1_000_000
#: Three standard deviations cover 99.7 %; five leave one false alarm in two million.
SIGMAS = 5.0

TWO_NODES = """
g (float[n, c] x) => (float[n, c] y, bool[n, c] mask, float[n, c] z, bool[n, c] other, float loss)
<float[1] w = {1.0}, bool on = {1}, float ratio = {RATIO}>
{
    y, mask = Dropout (x, ratio, on)
    z, other = Dropout (x, ratio, on)
    scaled = Mul (y, w)
    sum = Add (scaled, z)
    loss = ReduceMean <keepdims = 0> (sum)
}
"""


def session(ratio: float = 0.3, seed: int = 0, source: str = TWO_NODES, **options: str) -> gradcut.TrainingSession:
    model = text(source.replace("RATIO", str(ratio)))
    artifacts = gradcut.compile(model, train=["w"], optimizer=gradcut.SGD(lr=0.0), seed=seed, **options)
    return gradcut.TrainingSession(artifacts, threads=1)


def masks(*, steps: int = 1, seed: int = 0, ratio: float = 0.3, size: int = N) -> np.ndarray:
    """The masks of both nodes over some steps: bool [steps, 2, size]."""
    x = np.ones((1, size), np.float32)
    running = session(ratio, seed)
    results = [running.step({"x": x}).outputs for _ in range(steps)]
    return np.stack([[r["mask"].reshape(-1), r["other"].reshape(-1)] for r in results])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, times sqrt(n): a standard normal where there is none."""
    return float(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1] * np.sqrt(a.size))


def test_kept_elements_are_scaled_and_the_others_zero() -> None:
    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    outputs = session(0.25).step({"x": x}).outputs
    np.testing.assert_allclose(outputs["y"], np.where(outputs["mask"], x / 0.75, 0), rtol=1e-6)
    np.testing.assert_allclose(outputs["z"], np.where(outputs["other"], x / 0.75, 0), rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.9])
def test_the_rate_is_right(ratio: float) -> None:
    dropped = N - int(masks(ratio=ratio)[0, 0].sum())
    assert abs(dropped - N * ratio) < SIGMAS * np.sqrt(N * ratio * (1 - ratio))


def test_the_same_seed_and_step_draw_the_same() -> None:
    first, again = masks(steps=3, size=1000), masks(steps=3, size=1000)
    np.testing.assert_array_equal(first, again)


def test_seeds_steps_nodes_and_neighbours_are_independent() -> None:
    a, b = masks(steps=3), masks(steps=3, seed=1)
    pairs = {
        "nodes": (a[0, 0], a[0, 1]),
        "steps": (a[0, 0], a[1, 0]),
        "two steps apart": (a[0, 0], a[2, 0]),
        "seeds": (a[0, 0], b[0, 0]),
        "node 2 of a seed, node 1 of the next": (a[0, 1], b[0, 0]),
        "step 2 of a seed, step 1 of the next": (a[1, 0], b[0, 0]),
        "neighbours": (a[0, 0, 1:], a[0, 0, :-1]),
        "every 64th": (a[0, 0, 64:], a[0, 0, :-64]),
        "one node's shifted by one, in the next step": (a[0, 0, 1:], a[1, 0, :-1]),
    }
    for what, (left, right) in pairs.items():
        assert abs(correlation(left, right)) < SIGMAS, what


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**62])
def test_a_seed_counts_with_all_its_bits(seed: int) -> None:
    own = masks(seed=seed, size=4096)
    for other in {0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**62} - {seed}:
        assert abs(correlation(own, masks(seed=other, size=4096))) < SIGMAS


def test_runs_of_eight_are_uniform() -> None:
    """At ratio 1/2 each byte of eight neighbours is as likely as any other: chi-square on 255 degrees of freedom."""
    counts = np.bincount(np.packbits(masks(ratio=0.5).reshape(-1)), minlength=256)
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(chi_square - 255) < SIGMAS * np.sqrt(2 * 255)


def test_the_hash_is_uniform_at_every_scale() -> None:
    """The masks at ratios k/16 of one draw are nested: together they place each element in a sixteenth."""
    nested = np.stack([masks(ratio=k / 16)[0, 0] for k in range(1, 16)])
    assert all((nested[k] <= nested[k - 1]).all() for k in range(1, 15))
    counts = np.bincount(nested.sum(axis=0), minlength=16)
    chi_square = float(((counts - N / 16) ** 2 / (N / 16)).sum())
    assert abs(chi_square - 15) < SIGMAS * np.sqrt(2 * 15)


def test_a_resumed_session_goes_on_drawing(tmp_path: object) -> None:
    x = np.ones((1, 1000), np.float32)
    whole = session()
    through = [whole.step({"x": x}).outputs["mask"] for _ in range(4)]
    first = session()
    for _ in range(2):
        first.step({"x": x})
    first.save_checkpoint(f"{tmp_path}/c.safetensors")
    resumed = session(seed=5)  # the checkpoint's seed counts
    resumed.load_checkpoint(f"{tmp_path}/c.safetensors")
    for mask in through[2:]:
        np.testing.assert_array_equal(resumed.step({"x": x}).outputs["mask"], mask)


def test_evaluation_keeps_everything() -> None:
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    outputs = session().evaluate({"x": x}).outputs
    np.testing.assert_array_equal(outputs["y"], x)
    assert outputs["mask"].all()


ONE_NODE = """
g (float[n, c] x FEED) => (float[n, c] y, float loss) <float[1] w = {1.0}, bool on = {1}, float half = {0.5}>
{
    y = Dropout (x, RATIO, on)
    scaled = Mul (y, w)
    loss = ReduceMean <keepdims = 0> (scaled)
}
"""


def test_a_missing_ratio_is_one_half() -> None:
    x = np.ones((100, 100), np.float32)
    y = session(source=ONE_NODE.replace("RATIO", "").replace("FEED", "")).step({"x": x}).outputs["y"]
    assert set(np.unique(y)) == {0.0, 2.0}


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_ends_of_the_ratio(ratio: float, expected: float) -> None:
    """As torch: nothing is dropped, or everything, and no gradient is NaN."""
    x = np.ones((4, 5), np.float32)
    running = session(ratio)
    assert (running.step({"x": x}).outputs["y"] == expected).all()
    assert running.gradients({"x": x})["w"] == pytest.approx(expected)
    assert torch.dropout(torch.ones(3), ratio, True).tolist() == [expected] * 3


def test_the_mode_of_the_file_decides_and_the_option_overrides() -> None:
    x = np.ones((10, 10), np.float32)
    off = TWO_NODES.replace("on = {1}", "on = {0}")
    all_kept = lambda **kinds: bool(session(**kinds).step({"x": x}).outputs["mask"].all())
    assert not all_kept()
    assert all_kept(dropout="eval")
    assert all_kept(source=off)
    assert not all_kept(source=off, dropout="train")
    assert not all_kept(source=off.replace("ratio, on", "ratio"), dropout="train")


def test_a_mode_that_is_fed_decides_at_run_time() -> None:
    fed = ONE_NODE.replace("RATIO", "half").replace("FEED", ", bool on").replace("bool on = {1}, ", "")
    running = session(source=fed)
    x = np.ones((10, 10), np.float32)
    assert set(np.unique(running.step({"x": x, "on": np.array(True)}).outputs["y"])) == {0.0, 2.0}
    assert set(np.unique(running.step({"x": x, "on": np.array(False)}).outputs["y"])) == {1.0}


def test_forward_and_backward_share_one_draw() -> None:
    x = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    running = session()
    gradient = running.gradients({"x": x})["w"]
    y = running.step({"x": x}).outputs["y"]
    assert gradient == pytest.approx(y.mean(), rel=1e-5)


# --- generators ----------------------------------------------------------------------------------------------

NOISE = """
g (float[n, c] x) => (float[n, c] y, float loss) <float[1] w = {1.0}, float tenth = {0.1}>
{
    y = BODY
    noisy = Add (x, y)
    scaled = Mul (noisy, w)
    loss = ReduceMean <keepdims = 0> (scaled)
}
"""
GENERATED = {
    "RandomUniformLike (x)": (0.5, 1 / 12, 0.0, 1.0),
    "RandomUniformLike <low = -2.0, high = 4.0> (x)": (1.0, 3.0, -2.0, 4.0),
    "RandomUniform <shape = [1, 1000000]> ()": (0.5, 1 / 12, 0.0, 1.0),
    "RandomNormalLike (x)": (0.0, 1.0, -6.0, 6.0),
    "RandomNormalLike <mean = 3.0, scale = 2.0> (x)": (3.0, 4.0, -9.0, 15.0),
    "RandomNormal <shape = [1, 1000000]> ()": (0.0, 1.0, -6.0, 6.0),
    "Bernoulli (x)": (0.3, 0.21, 0.0, 1.0),
}


@pytest.mark.parametrize("body", GENERATED)
def test_generated_numbers_repeat_and_have_their_distribution(body: str) -> None:
    """Of a million: mean and variance within five standard errors; the same (seed, step) gives the same."""
    mean, variance, lowest, highest = GENERATED[body]
    x = np.full((1, N), 0.3, np.float32)
    first, again, other = (session(source=NOISE.replace("BODY", body), seed=seed) for seed in (0, 0, 1))
    drawn = first.step({"x": x}).outputs["y"].astype(np.float64)
    np.testing.assert_array_equal(drawn, again.step({"x": x}).outputs["y"])
    for later in (first.step({"x": x}).outputs["y"], other.step({"x": x}).outputs["y"]):
        assert abs(correlation(drawn, later)) < SIGMAS
    assert abs(drawn.mean() - mean) < SIGMAS * np.sqrt(variance / N)
    assert abs(drawn.var() / variance - 1) < SIGMAS * np.sqrt(2 / N) * 1.5
    assert lowest <= drawn.min() and drawn.max() <= highest


def test_normal_numbers_have_normal_tails() -> None:
    y = (
        session(source=NOISE.replace("BODY", "RandomNormalLike (x)"))
        .step({"x": np.zeros((1, N), np.float32)})
        .outputs["y"]
    )
    for sigmas, share in ((1, 0.317311), (2, 0.045500), (3, 0.002700), (4, 0.0000633)):
        beyond = int((np.abs(y) > sigmas).sum())
        assert abs(beyond - N * share) < SIGMAS * np.sqrt(N * share)
    assert abs(correlation(y[:, 1:], y[:, :-1])) < SIGMAS


def test_random_numbers_of_other_types_and_in_a_branch() -> None:
    model = """
    g (float[n, c] x, bool b) => (double[n, c] y, float loss) <float[1] w = {1.0}>
    {
        y = RandomNormalLike <dtype = 11> (x)
        z = If (b) <
            then_branch = t () => (float[n, c] p) { p = RandomUniformLike (x) },
            else_branch = e () => (float[n, c] q) { q = Identity (x) }
        >
        scaled = Mul (z, w)
        loss = ReduceMean <keepdims = 0> (scaled)
    }"""
    given = {"x": np.ones((10, 10), np.float32), "b": np.array(True)}
    left, right = (session(source=model).step(given) for _ in range(2))
    assert left.loss == right.loss != 1.0
    assert left.outputs["y"].dtype == np.float64
    np.testing.assert_array_equal(left.outputs["y"], right.outputs["y"])
