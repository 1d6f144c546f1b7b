"""Actor-critic and TD learning: bootstrap target and baseline are constants of the gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax

import gradcut
from tests.uses.common import backward, close, export, normal, seeded, torch_gradients
from tests.written import parse

# --- TD(0): the random walk of Sutton and Barto, Reinforcement Learning, example 6.2 ---------------------------

#: Five states, a step left or right with equal chance, a reward of 1 beyond the right end: V(i) = (i + 1) / 6.
WALK = """g (int64[n] state, int64[n] after, float[n] goes_on, float[n] reward) => (float loss, float[n] target)
    <float[5] v = {0.1, 0.5, 0.2, 0.9, 0.4}> {
    now = Gather (v, state)
    later = Gather (v, after)
    bootstrap = %s (later)
    held = Mul (bootstrap, goes_on)
    target = Add (reward, held)
    error = Sub (now, target)
    square = Mul (error, error)
    loss = ReduceMean <keepdims = 0> (square)
}"""
STATE = np.repeat(np.arange(5), 2)
STEP = STATE + np.tile([-1, 1], 5)
EVERY_STEP = {
    "state": STATE,
    "after": np.clip(STEP, 0, 4),
    "goes_on": ((STEP >= 0) & (STEP < 5)).astype(np.float32),
    "reward": (STEP == 5).astype(np.float32),
}
TRUE = np.arange(1, 6) / 6


def walk(mark: str, **options: object) -> gradcut.TrainingSession:
    return gradcut.TrainingSession(gradcut.compile(parse(WALK % mark), train=["v"], **options))


def semi_gradient(v: np.ndarray) -> np.ndarray:
    """Of the mean of (V(s) - r - V(s'))^2 with the target held: 2 delta at s."""
    delta = v[STATE] - EVERY_STEP["reward"] - v[EVERY_STEP["after"]] * EVERY_STEP["goes_on"]
    return np.bincount(STATE, 2 * delta / len(STATE), 5)


def test_the_gradient_of_td_is_that_of_a_constant_target() -> None:
    session = walk("gradcut.StopGradient")
    expected = semi_gradient(session.parameters()["v"])
    close(session.gradients(EVERY_STEP), {"v": expected})
    residual = walk("Identity").gradients(EVERY_STEP)["v"]  # unmarked, the target moves as well
    assert np.abs(residual - expected).max() > 0.05


def test_td_finds_the_values_and_the_residual_gradient_does_not() -> None:
    """The residual gradient's fixpoint is another one where a state has several successors (Baird 1995)."""
    errors = {}
    for mark in ("gradcut.StopGradient", "Identity"):
        session = walk(mark, optimizer="sgd:lr=1")
        for _ in range(400):
            session.step(EVERY_STEP)
        errors[mark] = np.abs(session.parameters()["v"] - TRUE).max()
    assert errors["gradcut.StopGradient"] < 1e-4
    assert errors["Identity"] > 0.02


# --- actor and critic ------------------------------------------------------------------------------------------

GAMMA, LENGTH = 0.95, 7


class ActorCritic(nn.Module):
    """Two heads over one trunk; `stopped` tells whether target and advantage are detached."""

    def __init__(self, stopped: bool = True) -> None:
        super().__init__()
        self.stopped = stopped
        self.trunk = nn.Sequential(nn.Linear(LENGTH, 16), nn.Tanh())
        self.actor, self.critic = nn.Linear(16, 2), nn.Linear(16, 1)

    def forward(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        reward: torch.Tensor,
        after: torch.Tensor,
        goes_on: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """States [n,7] one-hot, actions [n] in {0, 1}: both losses [], the logits [n,2], the target [n]."""
        held = (lambda x: x.detach()) if self.stopped else (lambda x: x)
        h = self.trunk(state)
        logits, value = self.actor(h), self.critic(h)[:, 0]
        target = held(reward + GAMMA * goes_on * self.critic(self.trunk(after))[:, 0])
        advantage = held(target - value)
        chosen = log_softmax(logits, 1).gather(1, action[:, None])[:, 0]
        return -(chosen * advantage).mean(), (value - target).square().mean(), logits, target


OUTPUTS = ["policy_loss", "value_loss", "logits", "target"]


class Corridor:
    """Walkers in a corridor of seven cells, begun in the middle; the right end pays 1, the left end nothing."""

    def __init__(self, walkers: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.at = np.full(walkers, LENGTH // 2)

    def observe(self) -> np.ndarray:
        return np.eye(LENGTH, dtype=np.float32)[self.at]

    def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """What happened, as feeds; walkers at an end begin anew."""
        before, self.at = self.observe(), self.at + 2 * action - 1
        over = (self.at == 0) | (self.at == LENGTH - 1)
        feeds = {
            "state": before,
            "action": action,
            "reward": (self.at == LENGTH - 1).astype(np.float32),
            "after": self.observe(),
            "goes_on": (~over).astype(np.float32),
        }
        self.at = np.where(over, LENGTH // 2, self.at)
        return feeds


def batch(seed: int, n: int = 16) -> dict[str, np.ndarray]:
    corridor = Corridor(n, seed)
    for _ in range(3):
        feeds = corridor.step(corridor.rng.integers(0, 2, n))
    return {**feeds, "reward": feeds["reward"] + normal(seed, n)}  # rewards that leave no advantage at 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("actor")
    return {
        one: export(seeded(ActorCritic, one), batch(0), folder / f"actor_critic_{one}.onnx", OUTPUTS)
        for one in (True, False)
    }


BOTH = "policy_loss + 0.5*value_loss"


def compiled(file: Path, **options: object) -> gradcut.TrainingSession:
    return gradcut.TrainingSession(gradcut.compile(file, BOTH, **options))


def test_the_gradient_is_that_of_a_constant_target(files: dict[bool, Path]) -> None:
    """torch, with target and advantage as numbers that it is given."""
    feeds, module = batch(1), seeded(ActorCritic)
    tensors = {name: torch.tensor(array) for name, array in feeds.items()}
    logits = module.actor(module.trunk(tensors["state"]))
    value = module.critic(module.trunk(tensors["state"]))[:, 0]
    target = torch.tensor(module(**tensors)[3].detach().numpy())
    advantage = torch.tensor((target - value).detach().numpy())
    chosen = log_softmax(logits, 1)[torch.arange(len(value)), tensors["action"]]
    expected = torch_gradients(module, -(chosen * advantage).mean() + 0.5 * (value - target).square().mean())
    close(compiled(files[True]).gradients(feeds), expected)


def test_without_the_marks_it_is_another(files: dict[bool, Path]) -> None:
    feeds, module = batch(1), seeded(ActorCritic, False)
    policy, value, *_ = module(**{name: torch.tensor(array) for name, array in feeds.items()})
    expected = torch_gradients(module, policy + 0.5 * value)
    found = compiled(files[False]).gradients(feeds)
    close(found, expected)
    assert np.abs(found["critic.weight"] - compiled(files[True]).gradients(feeds)["critic.weight"]).max() > 1e-3


def test_the_target_has_no_backward(files: dict[bool, Path]) -> None:
    """Trunk and critic stand twice in the graph; of the copy that makes the target, nothing is differentiated."""
    layers = lambda one: {
        node for node in backward(compiled(files[one]).artifacts.training_model) if node.startswith("node_linear")
    }
    assert len(layers(True)) == 3
    assert len(layers(False)) == 5


def test_it_learns_to_walk_to_the_right(files: dict[bool, Path]) -> None:
    session = compiled(files[True], optimizer="adam:lr=1e-2")
    corridor = Corridor(32, seed=0)
    idle = {"reward": np.zeros(32, np.float32), "goes_on": np.ones(32, np.float32), "action": np.zeros(32, np.int64)}
    rights = []
    for _ in range(300):
        state = corridor.observe()
        logits = session.evaluate({**idle, "state": state, "after": state}).outputs["logits"]
        right = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        action = (corridor.rng.random(32) < right).astype(np.int64)
        rights.append(right.mean())
        session.step(corridor.step(action))
    assert 0.3 < rights[0] < 0.7
    assert np.mean(rights[-20:]) > 0.9
