"""Batches prepared in a thread: the same items in the same order, errors passed on, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from gradcut.runtime.prefetch import DEPTH, Prefetch


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def test_the_items_in_their_order() -> None:
    with Prefetch(iter(range(1000))) as items:
        assert list(items) == list(range(1000))
        assert list(items) == []


def test_it_is_ahead_by_its_depth_and_no_more() -> None:
    made: list[int] = []

    def counting() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with Prefetch(counting()) as items:
        first = next(items)
        deadline = time.monotonic() + 5
        while len(made) < 2 + DEPTH and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert (first, len(made)) == (0, 2 + DEPTH)  # given away, ready, and one that waits for room


def test_whoever_waits_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an item or the end, not by the next look at an interrupt, which here is a minute away."""
    monkeypatch.setattr("gradcut.runtime.prefetch._LOOK", 60.0)

    def slow() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.02)
            yield number
        time.sleep(0.02)

    begun = time.monotonic()
    with Prefetch(slow()) as items:
        assert list(items) == list(range(5))
    assert time.monotonic() - begun < 30


def test_an_error_comes_behind_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    with Prefetch(failing()) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="the second"):
            next(items)


def test_leaving_early_ends_the_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with pytest.raises(RuntimeError, match="mine"), Prefetch(endless()) as items:
        next(items)
        raise RuntimeError("mine")
    assert closed.is_set()


def test_a_stop_does_not_wait_for_the_data() -> None:
    go = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        go.wait(30)
        yield 2

    begun, stop = time.monotonic(), threading.Event()
    with Prefetch(slow(), stop.is_set) as items:
        assert next(items) == 1
        threading.Timer(0.1, stop.set).start()
        assert list(items) == []
        go.set()
    assert time.monotonic() - begun < 10
