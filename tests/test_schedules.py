"""Schedules against torch's, over whole runs."""

from __future__ import annotations

import math

import pytest
import torch

from gradcut.errors import SpecError
from gradcut.schedules import SCHEDULES, Constant, Cosine, Linear, Step, parse_schedule

LR, RUN, WARM = 0.3, 50, 7


def torch_rates(after: str) -> list[float]:
    """The rates of a warm-up followed by one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    lib = torch.optim.lr_scheduler
    warm = lib.LinearLR(optimizer, 1 / WARM, 1.0, WARM - 1)
    rest = {
        "constant": lambda: lib.ConstantLR(optimizer, 1.0),
        "linear": lambda: lib.LinearLR(optimizer, 1.0, 0.1, RUN - WARM),
        "cosine": lambda: lib.CosineAnnealingLR(optimizer, RUN - WARM, 0.1 * LR),
        "step": lambda: lib.StepLR(optimizer, 10, 0.5),
    }[after]()
    schedule = lib.SequentialLR(optimizer, [warm, rest], [WARM])
    rates = []
    for _ in range(RUN):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    "schedule",
    [Constant(WARM), Linear(WARM, final=0.1), Cosine(WARM, final=0.1), Step(WARM, every=10, gamma=0.5)],
    ids=lambda schedule: schedule.name,
)
def test_rates_equal_torchs(schedule: Constant) -> None:
    rate = schedule.over(RUN, LR)
    assert [rate(step) for step in range(RUN)] == pytest.approx(torch_rates(schedule.name), rel=1e-9)
    assert parse_schedule(schedule.spec()) == schedule


def test_shares_are_of_the_run() -> None:
    assert Cosine(0.1).over(200)(19) == Cosine(20).over(200)(19) == 1.0
    rate = Step(every=0.25, gamma=0.5).over(100)
    assert [rate(t) for t in (0, 24, 25, 99)] == [1, 1, 0.5, 0.125]


def test_the_end_is_reached_and_kept() -> None:
    rate = Cosine(steps=10, final=0.2).over(30)
    assert math.isclose(rate(10), 0.2) and math.isclose(rate(29), 0.2)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [(Cosine(warmup=31), "warmup of 31 steps"), (Linear(steps=40), "steps"), (Step(every=31), "every of 31 steps")],
)
def test_longer_than_the_run_is_refused(schedule: Constant, said: str) -> None:
    with pytest.raises(SpecError, match=f"longer than the run: .*{said}.*the run has 30"):
        schedule.over(30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cosin", "Nearest: cosine"),
        ("cosine:warm=3", "Nearest: warmup"),
        ("cosine:warmup=-1", "at least 0"),
        ("cosine:final=x", "at least 0"),
        ("step", "step:every="),
    ],
)
def test_bad_texts_are_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_schedule(text)


def test_every_schedule_is_listed() -> None:
    assert sorted(SCHEDULES) == ["constant", "cosine", "linear", "step"]
