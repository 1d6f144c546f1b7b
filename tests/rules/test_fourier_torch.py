"""Fourier transforms and sampled volumes against torch's autograd in float64; seeds in the names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gradcut
from gradcut.runtime.widen import runtime
from tests.rules.sample import Array, Sample, build, sample


def compare(case: Sample, y: torch.Tensor, tensors: dict[str, torch.Tensor], seed: int) -> None:
    """Output and gradients in ONNX Runtime for a random cotangent."""
    built = build(case, ("static", "dynamic")[seed % 2])
    proto = gradcut.vjp(built.model, list(tensors), ["y0"])
    cotangent = np.random.default_rng(seed).standard_normal(tuple(y.shape)).astype(np.float32)
    expected = torch.autograd.grad(y, list(tensors.values()), torch.tensor(cotangent, dtype=torch.float64))
    for mine, theirs in zip(runtime(proto)({**built.feeds, "y0_grad": cotangent}), [y, *expected], strict=True):
        np.testing.assert_allclose(
            mine, theirs.detach().numpy(), atol=2e-5 * max(1.0, float(theirs.detach().abs().max()))
        )


def wide(array: Array) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("seed", range(12))
def test_stft(seed: int, onesided: int) -> None:
    """Every third signal without an axis of one channel, as torch's exporter writes it."""
    draw = np.random.default_rng(seed)
    length, step = int(draw.integers(3, 9)), int(draw.integers(1, 5))
    signal = draw.standard_normal((2, length + int(draw.integers(0, 12)), 1)).astype(np.float32)
    window = draw.standard_normal(length).astype(np.float32)
    x, w = wide(signal), wide(window)
    signal, x = (signal[..., 0], x.detach()[..., 0].requires_grad_()) if seed % 3 == 0 else (signal, x)
    frames = torch.stft(
        x.reshape(2, -1), length, step, length, w, center=False, onesided=bool(onesided), return_complex=True
    )
    y = torch.view_as_real(frames.transpose(1, 2))
    case = sample("STFT", "torch", signal, np.array(step), window, np.array(length), onesided=onesided)
    compare(case, y, {"signal": x, "window": w}, seed)


@pytest.mark.parametrize("form", ["forward", "inverse", "onesided"])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("size", [1, 3, 5, 6, 9])
def test_dft_of_any_size(size: int, length: int, form: str) -> None:
    """The signal is cut or lengthened to the length of the transform."""
    draw = np.random.default_rng(size * 10 + length)
    signal = draw.standard_normal((2, size, 1 if form == "onesided" else 2)).astype(np.float32)
    x = wide(signal)
    complex_x = x[..., 0] if form == "onesided" else torch.view_as_complex(x)
    transform = {"forward": torch.fft.fft, "inverse": torch.fft.ifft, "onesided": torch.fft.rfft}[form]
    y = torch.view_as_real(transform(complex_x, length, dim=1))
    case = sample("DFT", "torch", signal, np.array(length), np.array(1), **{form: 1} if form != "forward" else {})
    compare(case, y, {"input": x}, size + length)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("seed", range(2))
def test_grid_sample_of_volumes(seed: int, padding: str, align: int) -> None:
    """Numbers of the grid within and beyond the volume, none on an element, where slopes jump."""
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((2, 3, 3, 2, 4)).astype(np.float32)
    grid = draw.uniform(-1.4, 1.4, (2, 2, 3, 4, 3)).astype(np.float32)
    x, g = wide(X), wide(grid)
    y = F.grid_sample(x, g, "bilinear", padding, align_corners=bool(align))
    compare(sample("GridSample", "volume", X, grid, mode="linear", padding_mode=padding, align_corners=align), y,
            {"X": x, "grid": g}, seed)  # fmt: skip
