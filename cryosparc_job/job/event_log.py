"""What a job shows in cryoSPARC while it runs. None of it can end the run, except that someone ends the job there."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.figure import Figure

from cryoforum_plugin.progress import show_progress_in
from cryosparc_job.job import client
from cryosparc_job.job.calls import quietly
from cryosparc_job.job.life import check_alive

LOG = logging.getLogger("cryoforum")
SECONDS_BETWEEN_CALLS = 10.0
SLOW_S, SILENCE_S = 10.0, 60.0


class EventLog(logging.Handler):
    """The event log of a job: log messages as lines, progress as one line that renews itself, plots.

    Every `SECONDS_BETWEEN_CALLS` of progress the job's status is asked for, so that a Kill or Clear in the
    interface ends the work (StoppedError).
    """

    def __init__(self, job: Any) -> None:
        super().__init__(logging.INFO)
        self.job = job
        self._busy = False
        self._last_call_s = time.monotonic()
        self._silent_until_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message of ours; what goes wrong in that is logged elsewhere only."""
        if self._busy:
            return
        self._busy = True
        try:
            level = "text" if record.levelno < logging.WARNING else "warning"
            self._tell("writing to the job's log", self.job.log, record.getMessage(), level=level)
        finally:
            self._busy = False

    def line(self, text: str) -> None:
        """Show how a piece of work ended."""
        self._show(text)

    def renew(self, text: str) -> None:
        """Show how far a piece of work is, now and then, and see whether the job still wants it."""
        if time.monotonic() - self._last_call_s >= SECONDS_BETWEEN_CALLS:
            self._show(text)
            check_alive(self.job)
            self._last_call_s = time.monotonic()

    def plot(self, name: str, make: Callable[..., Figure], *arguments: Any) -> Figure | None:
        """Make a figure and show it; `name` becomes part of a file name and an address, so keep it short."""
        figure: Figure | None = attempt(f"drawing the plot {name}", make, *arguments)
        if figure is not None:
            self._tell(f"showing the plot {name}", self.job.log_plot, figure, name, formats=["png", "pdf"],
                       savefig_kw=client.SAVE)  # fmt: skip
        return figure

    def thumbnail(self, output: str, figure: Figure | None) -> None:
        """Show a figure as the picture of an output."""
        if figure is not None:
            self._tell(f"showing the picture of {output}", client.set_images, self.job, output, figure)

    def tile(self, figure: Figure | None) -> None:
        """Show a figure on the job's card."""
        if figure is not None:
            self._tell("showing the job's picture", client.set_tile, self.job, figure)

    def checkpoint(self, stage: str) -> None:
        """Mark what is done; the next progress gets a line of its own."""
        self._tell("marking a checkpoint", self.job.log_checkpoint, {"stage": stage})

    def _show(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        name = text.partition(":")[0]
        self._tell("showing the progress", client.log_progress, self.job, text, name)

    def _tell(self, what: str, function: Any, *arguments: Any, **named: Any) -> None:
        """Call the client; after a call that hung, say nothing for a while, so that the work goes on."""
        began_s = time.monotonic()
        if began_s < self._silent_until_s:
            return
        quietly(what, function, *arguments, **named)
        if time.monotonic() - began_s > SLOW_S:
            self._silent_until_s = time.monotonic() + SILENCE_S


def attempt(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what only shows results: when it fails, warn, and return None."""
    try:
        return function(*arguments)
    except Exception as error:
        LOG.warning("%s: %s: %s", what, type(error).__name__, error)
        return None


@contextmanager
def shown(job: Any) -> Iterator[EventLog]:
    """Show messages and progress of the block in the job's event log."""
    events, level = EventLog(job), LOG.level
    LOG.addHandler(events)
    LOG.setLevel(min(logging.INFO, level or logging.INFO))
    show_progress_in(events)
    try:
        yield events
    finally:
        show_progress_in(None)
        LOG.setLevel(level)
        LOG.removeHandler(events)
