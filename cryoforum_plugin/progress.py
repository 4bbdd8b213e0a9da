"""Progress: a bar with the time left on a terminal, plain lines elsewhere, one line that renews itself in a host."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

Advance = Callable[[int, str], None]
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_RENEWALS = 2.0
SECONDS_BETWEEN_MESSAGES = 0.2  # to the process that shows the progress of this one


class ProgressLog(Protocol):
    """Where a host shows progress."""

    def line(self, text: str) -> None:
        """Show a text for good, in place of a renewed one."""

    def renew(self, text: str) -> None:
        """Show a text until the next one."""


@dataclass
class LiveLog:
    """A host's log file: whole lines, and a last line that is renewed by a carriage return.

    RELION's GUI shows of each line what follows its last carriage return.
    """

    stream: TextIO
    renewed: int = 0  # characters of the last line while it is still open

    def line(self, text: str) -> None:
        """Write a whole line, in place of a renewed one."""
        if self.renewed:
            self.renew(text)
            text = ""
        self.renewed = 0
        print(text, file=self.stream, flush=True)

    def renew(self, text: str) -> None:
        """Write `text` over the last line."""
        print(f"\r{text.ljust(self.renewed)}", end="", file=self.stream, flush=True)
        self.renewed = len(text)


_live_log: ProgressLog | None = None


def show_progress_in(log: ProgressLog | None) -> None:
    """Send all progress of this process to `log`; None: back to stderr."""
    global _live_log
    _live_log = log


_pass: Callable[..., None] | None = None


def pass_on(tell: Callable[..., None]) -> None:
    """Send all progress of this process elsewhere: ("begin", title, total), ("advance", steps, note), ("end",)."""
    global _pass
    _pass = tell


@contextmanager
def progress(title: str, total: int, quiet: bool = False) -> Iterator[Advance]:
    """Yield `advance(steps, note)`; `total` steps in all. Silent when `quiet`."""
    if quiet:
        yield _silent
        return
    if _pass is not None:
        shown = _passed_on(title, total, _pass)
    elif _live_log is not None:
        shown = _texts(title, total, SECONDS_BETWEEN_RENEWALS, _live_log.renew, _live_log.line)
    elif sys.stderr.isatty():
        shown = _bar(title, total)
    else:
        shown = _texts(title, total, SECONDS_BETWEEN_LINES, _print, _print)
    with shown as advance:
        yield advance


def _silent(steps: int, note: str) -> None:
    """Show nothing."""


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _passed_on(title: str, total: int, tell: Callable[..., None]) -> Iterator[Advance]:
    held, note_held, last = 0, "", time.monotonic()

    def advance(steps: int, note: str = "") -> None:
        nonlocal held, note_held, last
        held, note_held = held + steps, note or note_held
        if time.monotonic() - last >= SECONDS_BETWEEN_MESSAGES:
            tell("advance", held, note_held)
            held, note_held, last = 0, "", time.monotonic()

    tell("begin", title, total)
    yield advance
    tell("advance", held, note_held)
    tell("end")


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(steps: int, note: str = "") -> None:
            bar.advance(task, steps)
            if note:
                bar.update(task, note=note)

        yield advance


@contextmanager
def _texts(
    title: str, total: int, every_s: float, show: Callable[[str], None], finish: Callable[[str], None]
) -> Iterator[Advance]:
    """Call `show` with the state at most every `every_s` seconds, and `finish` with the last one."""
    start = time.monotonic()
    state = {"done": 0, "last": start}
    last_note = [""]

    def text(running: bool = True) -> str:
        elapsed_s = time.monotonic() - start
        left_s = elapsed_s / max(state["done"], 1) * (total - state["done"])
        left = f", about {left_s:.0f} s left" if running and state["done"] < total else ""
        return f"{title}: {state['done']}/{total}, {elapsed_s:.0f} s{left}{last_note[0]}"

    def advance(steps: int, note: str = "") -> None:
        state["done"] += steps
        last_note[0] = f", {note}" if note else last_note[0]
        if time.monotonic() - state["last"] >= every_s:
            state["last"] = time.monotonic()
            show(text())

    yield advance
    finish(text(running=False))
