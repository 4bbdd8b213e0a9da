"""Progress on stderr: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, str], None]
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(title: str, total: int, quiet: bool = False) -> Iterator[Advance]:
    """Yield `advance(steps, note)`; `total` steps in all. Silent when `quiet`."""
    if quiet:
        yield _silent
    elif sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _lines(title, total)


def _silent(steps: int, note: str) -> None:
    """Show nothing."""


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


def _lines(title: str, total: int) -> Advance:
    """At most one line every ten seconds, and one at the end."""
    start = time.monotonic()
    state = {"done": 0, "last": start}

    def advance(steps: int, note: str = "") -> None:
        state["done"] += steps
        now = time.monotonic()
        finished = state["done"] >= total
        if finished or now - state["last"] >= SECONDS_BETWEEN_LINES:
            state["last"] = now
            left = (now - start) / max(state["done"], 1) * (total - state["done"])
            text = f"{title}: {state['done']}/{total}, {now - start:.0f} s"
            text += "" if finished else f", about {left:.0f} s left"
            print(f"{text}{', ' + note if note else ''}", file=sys.stderr, flush=True)

    return advance
