"""Views of images: random crops, flips, turns, scalings, shifts and noise, in numpy.

Every draw comes from the generator that a call is given, so that a batch's views are told by its seed alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcut.errors import SpecError
from gradcut.text import format_spec, parse_spec, unknown

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to an image [C, H, W]; by default nothing.

    Attributes:
        crop: the least share of the area that a random crop keeps; it is brought back to full size. 1: no crop.
        flip: how likely it is that left and right change places.
        rotation: the largest turn either way, in degrees.
        scale: the largest change of size either way, as a share: 0.1 is 0.9 to 1.1 times.
        shift: the largest shift along each axis either way, in pixels.
        noise: std of Gaussian noise added to each pixel, in the image's own units.
        brightness: the largest change either way of a factor on all pixels.
        fill: the value of what comes in from outside.
    """

    crop: float = 1.0
    flip: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    noise: float = 0.0
    brightness: float = 0.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        limits = {"crop": (1e-6, 1.0), "flip": (0.0, 1.0), "scale": (0.0, 0.99), "brightness": (0.0, 1.0)}
        for name in ("crop", "flip", "rotation", "scale", "shift", "noise", "brightness"):
            low, high = limits.get(name, (0.0, np.inf))
            if not low <= getattr(self, name) <= high:
                raise SpecError(f"augmentation: {name} is {getattr(self, name)}; it is from {low:g} to {high:g}")

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """From ``rotation=15,noise=0.1``.

        Raises:
            SpecError: no such option, or a value that it does not take.
        """
        _, options = parse_spec(f"augmentation:{text}")
        known = [one.name for one in dataclasses.fields(cls)]
        for name, value in options.items():
            if name not in known:
                raise SpecError(unknown("way to augment", name, known))
            if isinstance(value, (bool, str)):
                raise SpecError(f"augmentation: {name} is a number, not {value!r}")
        return cls(**options)  # type: ignore[arg-type]

    def spec(self) -> str:
        """Text that `parse` reads back; only what differs from the defaults."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        changed = {one.name: values[one.name] for one in dataclasses.fields(self) if values[one.name] != one.default}
        return format_spec("", changed).removeprefix(":")

    def __call__(self, images: Array, rng: np.random.Generator) -> Array:
        """One view [N, C, H, W] of each image, in the images' dtype."""
        if images.ndim != 4 or images.dtype.kind != "f":
            raise SpecError(f"images are floats [N, C, H, W], not {images.dtype}{list(images.shape)}")
        view = images
        if self._moves:
            view = _sampled(view, *self._maps(len(images), images.shape[2:], rng), fill=self.fill)
        if self.brightness:
            view = view * (1 + rng.uniform(-self.brightness, self.brightness, (len(images), 1, 1, 1)))
        if self.noise:
            view = view + rng.normal(0.0, self.noise, images.shape)
        return np.ascontiguousarray(view, dtype=images.dtype)

    def views(self, images: Array, rng: np.random.Generator, count: int = 2) -> tuple[Array, ...]:
        """So many views of each image, each drawn anew."""
        return tuple(self(images, rng) for _ in range(count))

    @property
    def _moves(self) -> bool:
        return self.crop < 1 or any((self.flip, self.rotation, self.scale, self.shift))

    def _maps(self, count: int, size: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, Array]:
        """For each image a matrix [2, 2] and an offset [2], (row, column), from a place in the view to one in it."""
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation, count))
        zoom = 1 / rng.uniform(1 - self.scale, 1 + self.scale, count)
        side = np.sqrt(rng.uniform(self.crop, 1.0, count))
        mirror = np.where(rng.random(count) < self.flip, -1.0, 1.0)
        room = (1 - side)[:, None] * (np.asarray(size) - 1) / 2
        offset = rng.uniform(-1.0, 1.0, (count, 2)) * room + rng.uniform(-self.shift, self.shift, (count, 2))
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.stack([np.stack([cos, -sin * mirror], 1), np.stack([sin, cos * mirror], 1)], 1)
        return matrix * (zoom * side)[:, None, None], offset


def _sampled(images: Array, matrix: Array, offset: Array, fill: float) -> Array:
    """Each image at the places of its map around its centre, bilinearly; `fill` outside."""
    count, _, height, width = images.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1) - centre
    places = np.einsum("nij,hwj->nhwi", matrix, grid) + offset[:, None, None] + centre
    low = np.floor(places).astype(int)
    part = places - low
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=fill)
    result = np.zeros(images.shape, np.float64)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rows = np.clip(low[..., 0] + down + 1, 0, height + 1)
        columns = np.clip(low[..., 1] + right + 1, 0, width + 1)
        weight = np.abs(1 - down - part[..., 0]) * np.abs(1 - right - part[..., 1])
        picked = padded[np.arange(count)[:, None, None], :, rows, columns]
        result += (weight[..., None] * picked).transpose(0, 3, 1, 2)
    return result
