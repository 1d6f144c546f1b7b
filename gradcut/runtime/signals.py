"""Interrupts that wait for a step to end: state that is half updated is never saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Within ``with``, the first Ctrl-C (or SIGTERM) makes it true; the next one raises as usual.

    Outside the main thread, where Python hands out no signals, it stays false.
    """

    def __init__(self) -> None:
        self._set = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._set

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
