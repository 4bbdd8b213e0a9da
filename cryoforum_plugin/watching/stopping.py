"""SIGTERM, SIGHUP and Ctrl-C: end what can be ended at once, but never a writing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked for the end; not an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turns signals into `Stopped`, those that come while they are `held` at the end of the block."""

    def __init__(self) -> None:
        self.ending = False  # signals are of no use any more
        self._came: int | None = None
        self._held = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise Stopped, or remember to."""
        if self.ending:
            return
        self._came = number
        if not self._held:
            raise Stopped(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no signal disturb the block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came is not None:
            raise Stopped(self._came)


@contextmanager
def signals() -> Iterator[Signals]:
    """Handle signals during the block, where this is the main thread; those that are ignored (nohup) stay so."""
    handling = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield handling
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handling.handle)
    try:
        yield handling
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
