"""Batches prepared in a thread while the step before them runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

DEPTH = 2
_LOOK = 0.05  # seconds between two looks at an interrupt while nothing is ready
_LEAVE = 1.0  # seconds that an end waits for the thread, which may be held up in a user's function


class Prefetch(Generic[T]):
    """Iterates over `items` in their order, up to `DEPTH` ahead; used within ``with``, which ends the thread.

    What `items` raises is raised here, behind the items before it. While nothing is ready, a true `stop` ends the
    iteration: an interrupt does not wait for the data.
    """

    def __init__(self, items: Iterator[T], stop: Callable[[], object] = lambda: False) -> None:
        self._items, self._stop = items, stop
        self._ready: deque[T] = deque()
        self._state = threading.Condition()
        self._done = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="gradcut-prefetch", daemon=True)

    def __enter__(self) -> Prefetch[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._thread.join(_LEAVE)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._state:
            while not self._ready and not self._done:
                if self._stop():
                    raise StopIteration
                self._state.wait(_LOOK)
            if self._ready:
                item = self._ready.popleft()
                self._state.notify_all()
                return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as error:
            self._error = error
        finally:
            getattr(self._items, "close", lambda: None)()
            with self._state:
                self._done = True
                self._state.notify_all()

    def _put(self, item: T) -> bool:
        """Wait for room; whether anyone still wants items."""
        with self._state:
            self._state.wait_for(lambda: self._closed or len(self._ready) < DEPTH)
            self._ready.append(item)
            self._state.notify_all()
            return not self._closed
