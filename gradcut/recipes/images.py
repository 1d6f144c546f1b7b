"""Images from a file: which rows train, which are held out, and what k-NN is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcut.errors import DataError, SpecError
from gradcut.recipes.fit import Probe
from gradcut.recipes.views import Augmentation
from gradcut.runtime.data import load_npz, split_indices
from gradcut.text import join_names

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Images:
    """Images [N, C, H, W] and, where there are any, their classes [N]; split into rows that train and rows that do not.

    The labels serve k-NN alone: nothing here trains on them.
    """

    image: Array
    labels: Array | None
    training: Array
    held: Array

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str, held_out: float = 0.25) -> Images:
        """From an npz file.

        Args:
            name: the encoder's input, which is the key of the images if there is one; else the only floats of rank 4.
            held_out: the share of rows that do not train.

        Raises:
            DataError: no images in the file, or several arrays that may be. SpecError: no such share.
        """
        if not 0 <= held_out < 1:
            raise SpecError(f"the share of images that are held out is {held_out:g}; it is from 0 to below 1")
        data = load_npz(path)
        found = [key for key, array in data.items() if array.ndim == 4 and array.dtype.kind == "f"]
        chosen = [name] if name in found else found
        if len(chosen) != 1:
            listed = join_names(chosen) or "none"
            raise DataError(f"{path}: images are floats [N, C, H, W], called {name!r} or alone; here are {listed}")
        labels = data.get("labels")
        labels = labels if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" else None
        training, held = split_indices(len(data[chosen[0]]), held_out, 0)
        return cls(data[chosen[0]], labels, training, held)

    def probe(self, augmentation: Augmentation, seed: int, known: int = 50) -> Probe | None:
        """1-NN from clean images that train to augmented ones that are held out; None without labels."""
        if self.labels is None or not len(self.held) or len(self.training) < known:
            return None
        rng = np.random.default_rng([seed % 2**64, 1])
        rows = rng.permutation(self.training)[:known]
        asked = augmentation(self.image[self.held], rng)
        return Probe(self.image[rows], self.labels[rows], asked, self.labels[self.held])
