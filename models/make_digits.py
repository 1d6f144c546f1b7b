"""Write `models/digits.npz` and `models/digits.onnx`: `python models/make_digits.py`.

The data are the 1,797 images of 8x8 pixels that scikit-learn ships (`load_digits`): the test part of *Optical
Recognition of Handwritten Digits*, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, licensed CC BY 4.0. Changed here: pixels 0..16 become float32 in 0..1.

`digits.npz` holds `image` [1797, 1, 8, 8] and `labels` [1797], in scikit-learn's order.

`digits.onnx` is a small convolutional network (`zoo.Digits`): an encoder and a head of ten classes, trained
on the digits 0 to 4 of the training part alone, so that it names no 5 to 9 until it is fine-tuned. The
training part is that of `gradcut train --eval-split 0.2 --seed 0`; no held-out row is seen here.

One thread and fixed seeds: on one machine the files come out the same each time. Another processor may round
differently and give slightly different weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# Run as a file, Python looks for modules beside it and not in the repository's root.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from gradcut.runtime.data import split_indices
from models import zoo

FRACTION = 0.2
SEED = 0
PRETRAINING_CLASSES = 5
EPOCHS = 15
BATCH = 32
LEARNING_RATE = 1e-3


def load() -> dict[str, np.ndarray]:
    """The data set: `image` float32 [1797, 1, 8, 8] in 0..1 and `labels` int64 [1797]."""
    raw = load_digits()
    image = (raw.images / 16).astype(np.float32)[:, np.newaxis]
    return {"image": image, "labels": raw.target.astype(np.int64)}


def split() -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) rows of the data set."""
    return split_indices(len(load()["labels"]), FRACTION, SEED)


def pretraining_indices() -> np.ndarray:
    """The rows that the shipped model has seen: the digits 0 to 4 of the training part."""
    training, _ = split()
    return training[load()["labels"][training] < PRETRAINING_CLASSES]


def accuracy(module: nn.Module, image: Tensor, labels: Tensor) -> float:
    """The share of rows that the module, in eval mode, names rightly."""
    module.eval()
    with torch.no_grad():
        return (module(image).argmax(dim=1) == labels).float().mean().item()


def fit(module: nn.Module, image: Tensor, labels: Tensor) -> None:
    """Train every parameter with AdamW and leave the module in eval mode."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    module.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(module(image[rows]), labels[rows]).backward()
            optimizer.step()
    module.eval()


def main() -> None:
    """Write both files and say what the model knows."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load()
    image, labels = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])
    module = zoo.seeded(zoo.Digits, SEED)
    seen = pretraining_indices()
    fit(module, image[seen], labels[seen])
    np.savez_compressed(zoo.MODELS / "digits.npz", **data)
    zoo.export("digits", zoo.MODELS / "digits.onnx", module=module)
    _, held = split()
    known = held[data["labels"][held] < PRETRAINING_CLASSES]
    print(f"trained on {len(seen)} images of the digits 0 to 4")
    print(f"held-out accuracy, digits 0 to 4: {accuracy(module, image[known], labels[known]):.3f}")
    print(f"held-out accuracy, all digits:    {accuracy(module, image[held], labels[held]):.3f}")


if __name__ == "__main__":
    main()
