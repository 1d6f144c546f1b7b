"""What the zoo's models share: seeded building, and random inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

Inputs = dict[str, np.ndarray]
IGNORED = -100  # the label that torch's cross entropy, and ours, does not count


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build in eval mode with torch's generator at `seed`, and leave that generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def with_statistics(module: nn.Module) -> nn.Module:
    """The module with running statistics away from 0 and 1, as a trained one's are."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0.0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


def with_affine_norms(module: nn.Module) -> nn.Module:
    """The module with norms' scales and biases away from 1 and 0, where many mistakes do not show."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            centre = 0.0 if name.endswith("bias") else 1.0
            parameter.data.uniform_(centre - 0.3, centre + 0.3, generator=generator)
    return module


def float_inputs(batch: int, seed: int, shape: tuple[int, ...], low: float = 0.0, name: str = "image") -> Inputs:
    """Uniform values in [low, 1)."""
    values = np.random.default_rng(seed).uniform(low, 1.0, (batch, *shape))
    return {name: values.astype(np.float32)}


def token_inputs(batch: int, seed: int, vocabulary: int, length: int = 32) -> Inputs:
    """Random tokens; rows end at different lengths, so that the mask matters."""
    generator = np.random.default_rng(seed)
    ends = generator.integers(length // 2, length + 1, (batch, 1))
    mask = (np.arange(length) < ends).astype(np.int64)
    tokens = generator.integers(1, vocabulary, (batch, length), dtype=np.int64)
    return {"input_ids": tokens * mask, "attention_mask": mask}


def pair_inputs(batch: int, seed: int, vocabulary: int, length: int = 12, answer: int = 7) -> Inputs:
    """Tokens and mask for an encoder, and the tokens that a decoder has so far; it begins with 0."""
    inputs = token_inputs(batch, seed, vocabulary, length)
    tokens = np.random.default_rng(seed + 1000).integers(1, vocabulary, (batch, answer), dtype=np.int64)
    tokens[:, 0] = 0
    return {**inputs, "decoder_input_ids": tokens}


def class_labels(inputs: Inputs, seed: int, classes: int) -> np.ndarray:
    """Random class numbers, int64 [batch]."""
    batch = len(next(iter(inputs.values())))
    return np.random.default_rng(seed).integers(0, classes, batch, dtype=np.int64)


def next_tokens(inputs: Inputs, seed: int, classes: int) -> np.ndarray:
    """The token after each place of `input_ids`, int64 [batch, T]; a random one at the end, none behind the mask."""
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    last = np.random.default_rng(seed).integers(1, classes, (len(tokens), 1), dtype=np.int64)
    return np.where(mask == 1, np.concatenate([tokens[:, 1:], last], axis=1), IGNORED)


def answer_tokens(inputs: Inputs, seed: int, classes: int) -> np.ndarray:
    """The token after each place of `decoder_input_ids`; one row in three has no more than half of them."""
    tokens = inputs["decoder_input_ids"]
    last = np.random.default_rng(seed).integers(1, classes, (len(tokens), 1), dtype=np.int64)
    labels = np.concatenate([tokens[:, 1:], last], axis=1)
    labels[::3, tokens.shape[1] // 2 :] = IGNORED
    return labels


def pixel_labels(inputs: Inputs, seed: int, classes: int) -> np.ndarray:
    """A class for each pixel of `image` [N, C, H, W], int64 [N, H, W]; one in eight does not count."""
    batch, _, height, width = inputs["image"].shape
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, (batch, height, width), dtype=np.int64)
    return np.where(generator.random(labels.shape) < 1 / 8, IGNORED, labels)
