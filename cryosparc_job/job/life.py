"""The life of an external job: it ends as what it was, whatever ends it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from cryoforum_plugin.errors import CryoForumError, HostError
from cryosparc_job.job.calls import call, quietly
from cryosparc_job.job.client import stop

LOG = logging.getLogger("cryoforum")
LONGEST_ERROR = 1500  # it travels in a URL
LONGEST_LOG = 20_000
_ENDED = ("killed", "failed", "completed")


class StoppedError(HostError):
    """Someone killed or cleared the job in the interface."""


@contextmanager
def running(job: Any) -> Iterator[None]:
    """Run the block as `job`: completed at its end, failed on any error, Ctrl-C or SIGTERM.

    The client's own `job.run()` completes a job that was interrupted, sends whole tracebacks in a URL, and
    completes a job that was killed in the interface. Raises what the block raises, HostError when the job
    cannot be started or ended, StoppedError when it was killed or cleared meanwhile.
    """
    with _signals_end_it():
        call("starting the job", job.start, "running")
        try:
            yield
            check_alive(job)
        except StoppedError:
            raise
        except BaseException as error:
            fail(job, error)
            raise
        call("ending the job", stop, job)


def check_alive(job: Any) -> None:
    """Raise StoppedError if the job was killed or cleared in the interface; cryoSPARC cannot reach this process."""
    if quietly("asking for the job's status", lambda: (job.refresh(), True)) is None:
        return
    status = str(job.status)
    if status in (*_ENDED, "building"):
        raise StoppedError(
            f"{job.uid} was {'cleared' if status == 'building' else status} in cryoSPARC; nothing more is written"
        )


def fail(job: Any, error: BaseException) -> None:
    """Mark the job failed; the details go to its log, which takes more than the error line."""
    known = isinstance(error, CryoForumError)
    if not known:
        details = "".join(traceback.format_exception(error))[-LONGEST_LOG:]
        quietly("writing to the job's log", job.log, details, level="error")
    name = {KeyboardInterrupt: "interrupted", SystemExit: "stopped by a signal"}.get(
        type(error), f"{type(error).__name__}: {error}"
    )
    text = " ".join((str(error) if known else name).split())
    quietly("marking the job failed", stop, job, text[:LONGEST_ERROR])


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, where this is the main thread."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
