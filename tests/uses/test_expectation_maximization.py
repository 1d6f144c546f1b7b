"""EM for a Gaussian mixture: the responsibilities of the E-step are constants of the M-step."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import nn

import gradcut
from tests.uses.common import close, export

K, D = 3, 2
CENTRES = np.array([[-3, 0], [3, 1], [0, 4]], np.float32)


class Mixture(nn.Module):
    """Weights softmax(logits), means, and spherical deviations exp(log_std)."""

    def __init__(self, stopped: bool = True) -> None:
        super().__init__()
        self.stopped = stopped
        self.logits = nn.Parameter(torch.zeros(K))
        self.means = nn.Parameter(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 1.0]]))
        self.log_std = nn.Parameter(torch.zeros(K))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Minus the expected complete log-likelihood []; the responsibilities [n,k]; the mean log-likelihood []."""
        scaled = ((x[:, None] - self.means) * torch.exp(-self.log_std)[:, None]).square().sum(-1)
        density = -0.5 * scaled - D * self.log_std - 0.5 * D * math.log(2 * math.pi)
        joint = torch.log_softmax(self.logits, 0) + density
        responsibilities = torch.softmax(joint, 1)
        weights = responsibilities.detach() if self.stopped else responsibilities
        return -(weights * joint).sum(1).mean(), responsibilities, torch.logsumexp(joint, 1).mean()


def points(seed: int, n: int = 150) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (CENTRES[rng.integers(K, size=n)] + rng.normal(0, [[0.7]], (n, D))).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("em")
    names = ["objective", "responsibilities", "likelihood"]
    return {one: export(Mixture(one), {"x": points(0)}, folder / f"mixture_{one}.onnx", names) for one in (True, False)}


def closed_form(x: np.ndarray, r: np.ndarray, logits: np.ndarray, means: np.ndarray, log_std: np.ndarray) -> dict:
    """The gradient of Q / n in float64 (Bishop, Pattern Recognition and Machine Learning, 9.2), by its parameters."""
    n, r = len(x), r.astype(np.float64)
    weights = np.exp(logits) / np.exp(logits).sum()
    away = x[:, None].astype(np.float64) - means
    precision = np.exp(-2.0 * log_std)
    return {
        "logits": weights - r.mean(0),
        "means": -np.einsum("nk,nkd->kd", r, away) * precision[:, None] / n,
        "log_std": -(r * (np.square(away).sum(-1) * precision - D)).mean(0),
    }


def moved(file: Path, x: np.ndarray, steps: int) -> gradcut.TrainingSession:
    session = gradcut.TrainingSession(gradcut.compile(file, loss="objective", optimizer="sgd:lr=.2"))
    for _ in range(steps):
        session.step({"x": x})
    return session


@pytest.mark.parametrize("steps", [0, 25])
def test_the_gradient_of_the_m_step_equals_the_closed_form(steps: int, files: dict[bool, Path]) -> None:
    x = points(1)
    session = moved(files[True], x, steps)
    r = session.evaluate({"x": x}).outputs["responsibilities"]
    close(session.gradients({"x": x}), closed_form(x, r, **session.parameters()), rtol=1e-4, atol=2e-6)


def test_it_is_that_of_the_likelihood_and_without_the_mark_it_is_not(files: dict[bool, Path]) -> None:
    """Fisher's identity: with the responsibilities held, the gradient is that of minus the log-likelihood."""
    x, module = points(2), Mixture()
    (-module(torch.tensor(x))[2]).backward()
    likelihood = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    close(moved(files[True], x, 0).gradients({"x": x}), likelihood, rtol=1e-4, atol=2e-6)
    unmarked = moved(files[False], x, 0).gradients({"x": x})
    assert np.abs(unmarked["means"] - likelihood["means"]).max() > 0.01


def test_each_step_raises_the_likelihood_up_to_that_of_em(files: dict[bool, Path]) -> None:
    """The end is that of scikit-learn's EM from the same start."""
    x = points(3)
    session = gradcut.TrainingSession(gradcut.compile(files[True], loss="objective", optimizer="sgd:lr=.2"))
    start = session.parameters()
    likelihoods = [float(session.step({"x": x}).outputs["likelihood"]) for _ in range(400)]
    assert np.all(np.diff(likelihoods) > -1e-6)
    assert likelihoods[-1] > likelihoods[0] + 0.5
    judge = GaussianMixture(
        K,
        covariance_type="spherical",
        means_init=start["means"],
        weights_init=np.full(K, 1 / K),
        precisions_init=np.ones(K),
        max_iter=1000,
        tol=1e-9,
        reg_covar=0,
    ).fit(x)
    assert abs(likelihoods[-1] - judge.score(x)) < 2e-3
