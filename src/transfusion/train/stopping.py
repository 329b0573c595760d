"""A run that is asked to stop, by SIGTERM or Ctrl-C, ends after the step that it is in, and is saved; asked twice, it ends at
once. What is interrupted at any place cannot always end: threads wait for each other."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run that was asked to stop, and is saved.

    Args:
        number: of the signal.
        step: at which it stopped.
    """

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}, which is saved: the same command goes on from there")


class _Now(BaseException):
    """Raised where a request ends a block at once."""


class StopRequest:
    """Whether a run was asked to stop: the number of the signal, 0 while it was not."""

    def __init__(self) -> None:
        self.number, self._immediate = 0, False

    def interruptible(self, function: Callable[[], T]) -> T | None:
        """What a function gives, which changes nothing of the run and is ended at once by a request: None then, and where one
        came before."""
        if self.number:
            return None
        try:
            self._immediate = True
            return function()
        except _Now:
            return None
        finally:
            self._immediate = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        if self._immediate:
            raise _Now


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Requests that come within the block; outside the main thread there are none, since signals go to that one."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
