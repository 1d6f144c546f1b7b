"""Views of images against torch's own sampling; diagnostics against scikit-learn and closed forms; the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from gradcut.errors import DataError, SpecError
from gradcut.recipes import views as module
from gradcut.recipes.diagnostics import gradient_norms, knn_accuracy, spread
from gradcut.recipes.fit import full_batches
from gradcut.recipes.views import Augmentation
from gradcut.view.curves import Line, Panel, curves

SEED = 81
IMAGES = np.random.default_rng(SEED).random((6, 3, 7, 9)).astype(np.float32)


def rng(seed: int = SEED) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- views ---------------------------------------------------------------------------------------------------


def test_nothing_is_the_identity() -> None:
    assert np.array_equal(Augmentation()(IMAGES, rng()), IMAGES)


def test_a_flip_mirrors_each_row() -> None:
    np.testing.assert_allclose(Augmentation(flip=1.0)(IMAGES, rng()), IMAGES[..., ::-1], atol=1e-6)
    half = Augmentation(flip=0.5)(np.repeat(IMAGES[:1], 400, 0), rng())
    flipped = np.isclose(half, IMAGES[:1, ..., ::-1], atol=1e-6).all((1, 2, 3))
    assert 0.4 < flipped.mean() < 0.6


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": 40.0},
        {"scale": 0.3},
        {"shift": 2.0},
        {"crop": 0.3},
        {"rotation": 25.0, "scale": 0.2, "shift": 1.5, "crop": 0.5, "flip": 0.5},
    ],
)
def test_moves_are_what_torch_samples(options: dict[str, float]) -> None:
    """grid_sample with the same matrices: bilinear, zeros outside, corners at the centres of corner pixels."""
    augmentation = Augmentation(**options)
    matrix, offset = augmentation._maps(len(IMAGES), IMAGES.shape[2:], rng())
    height, width = IMAGES.shape[2:]
    half = np.array([(height - 1) / 2, (width - 1) / 2])
    rows, columns = np.meshgrid(np.arange(height) - half[0], np.arange(width) - half[1], indexing="ij")
    places = np.stack([rows, columns], -1) @ matrix.transpose(0, 2, 1)[:, None] + offset[:, None, None]
    grid = torch.from_numpy((places / half)[..., ::-1].copy())
    wanted = F.grid_sample(torch.from_numpy(IMAGES).double(), grid, align_corners=True, padding_mode="zeros")
    np.testing.assert_allclose(augmentation(IMAGES, rng()), wanted.numpy(), atol=1e-6)


def test_a_crop_shows_nothing_from_outside() -> None:
    ones = np.ones_like(IMAGES)
    np.testing.assert_allclose(Augmentation(crop=0.2)(ones, rng()), ones, atol=1e-6)
    assert Augmentation(shift=3.0)(ones, rng()).min() < 0.5
    assert Augmentation(shift=3.0, fill=1.0)(ones, rng()).min() == pytest.approx(1.0)


def test_noise_and_brightness() -> None:
    many = np.full((200, 1, 10, 10), 0.5, np.float32)
    assert (Augmentation(noise=0.2)(many, rng()) - many).std() == pytest.approx(0.2, rel=0.02)
    factors = Augmentation(brightness=0.4)(many, rng())[:, 0, 0, 0] / 0.5
    assert factors.min() >= 0.6 - 1e-6 and factors.max() <= 1.4 + 1e-6 and factors.std() > 0.1


def test_views_come_from_their_seed_alone() -> None:
    augmentation = Augmentation(rotation=10, noise=0.1)
    first, second = augmentation.views(IMAGES, rng())
    again = augmentation.views(IMAGES, rng())
    assert np.array_equal(first, again[0]) and np.array_equal(second, again[1])
    assert not np.array_equal(first, second)
    assert first.dtype == np.float32 and augmentation(IMAGES.astype(np.float64), rng()).dtype == np.float64
    assert len(augmentation.views(IMAGES, rng(), 4)) == 4


def test_its_text_reads_back() -> None:
    augmentation = Augmentation(rotation=15, scale=0.25, flip=0.5)
    assert Augmentation.parse(augmentation.spec()) == augmentation
    assert Augmentation.parse("") == Augmentation() and Augmentation().spec() == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augmentation(crop=0.0), "crop is 0.0"),
        (lambda: Augmentation(noise=-1.0), "noise is -1.0"),
        (lambda: Augmentation.parse("rotation=much"), "rotation is a number, not 'much'"),
        (lambda: Augmentation.parse("rotate=3"), "'rotate' is no way to augment. Nearest: rotation."),
        (lambda: Augmentation(noise=1)(IMAGES[0], rng()), "images are floats"),
        (lambda: Augmentation(noise=1)(IMAGES.astype(np.uint8), rng()), "images are floats"),
    ],
)
def test_bad_augmentations(make: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert message in str(caught.value)


def test_a_planted_mistake_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with torch fails where sampling is off by half a pixel."""
    right = module._sampled
    monkeypatch.setattr(module, "_sampled", lambda images, m, o, fill: right(images, m, o + 0.5, fill))
    with pytest.raises(AssertionError):
        test_moves_are_what_torch_samples({"rotation": 40.0})


# --- diagnostics ---------------------------------------------------------------------------------------------


def test_spread_is_one_for_even_directions_and_zero_for_one() -> None:
    even = rng().normal(size=(20_000, 32))
    assert spread(even) == pytest.approx(1.0, abs=0.01)
    assert spread(even * rng(1).random((20_000, 1))) == pytest.approx(1.0, abs=0.01)  # lengths do not count
    assert spread(np.outer(np.arange(1, 9), np.ones(4))) == pytest.approx(0.0, abs=1e-9)
    two = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert spread(two) == pytest.approx(0.5 * np.sqrt(2))


@pytest.mark.parametrize("k", [1, 5])
def test_knn_is_scikit_learns(k: int) -> None:
    draw = rng()
    known, asked = draw.normal(size=(60, 8)), draw.normal(size=(200, 8))
    labels = draw.integers(0, 2, 60)
    expected = draw.integers(0, 2, 200)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(known, labels).score(asked, expected)
    assert knn_accuracy(known, labels, asked, expected, k) == pytest.approx(theirs)


def test_of_tied_classes_the_nearest_wins() -> None:
    known, labels = np.array([[1.0, 0.1], [1.0, 0.3], [1.0, 0.6]]), np.array([4, 7, 9])
    assert knn_accuracy(known, labels, np.array([[1.0, 0.28]]), np.array([7]), k=3) == 1.0


def test_gradient_norms_are_by_block() -> None:
    gradients = {"a.weight": np.array([3.0]), "a.bias": np.array([4.0]), "b.0.weight": np.array([2.0]), "w": np.ones(4)}
    assert gradient_norms(gradients) == {"a": 5.0, "b.0": 2.0, "w": 2.0}


def test_full_batches() -> None:
    assert full_batches(257, 128) == 2
    for count, size in ((127, 128), (5, 0)):
        with pytest.raises(DataError, match="images make no batch"):
            full_batches(count, size)


# --- the picture ---------------------------------------------------------------------------------------------


def drawn(panels: list[Panel]) -> ET.Element:
    return ET.fromstring(curves(panels, "a < b", "note & more"))


def test_a_line_is_where_its_values_are() -> None:
    points = [(0.0, 0.0), (50.0, 1.0), (100.0, 0.5)]
    picture = drawn([Panel("one", [Line("run", points)], [(0.25, "guide")])])
    (path,) = [one for one in picture.iter("{http://www.w3.org/2000/svg}path") if one.get("fill") == "none"]
    places = [tuple(map(float, pair.split())) for pair in (path.get("d") or "").removeprefix("M").split("L")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 < x1 < x2 and x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 < y2 < y0 and (y0 - y2) == pytest.approx(y2 - y1, abs=0.2)
    texts = [one.text for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "note & more", "run", "one", "guide", "0", "0.5", "1", "20", "100"} <= {*texts}


def test_kinds_differ_without_colour_and_odd_values_are_left_out() -> None:
    lines = [Line("a", [(0, 1.0), (1, float("nan")), (2, 1.0)]), Line("b", [(0, 1.0), (2, 1.0)])]
    picture = drawn([Panel("flat", lines)])
    paths = [one for one in picture.iter("{http://www.w3.org/2000/svg}path") if one.get("fill") == "none"]
    assert len({one.get("stroke-dasharray") for one in paths}) == 2
    assert all("nan" not in (one.get("d") or "") for one in paths)
