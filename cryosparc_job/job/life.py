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
FAILING_WAITS_S = (1.0, 4.0, 15.0)
_ENDED = ("killed", "failed", "completed")
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class StoppedError(HostError):
    """Someone killed or cleared the job in the interface."""


@contextmanager
def ending(job: Any) -> Iterator[None]:
    """Complete `job` at the end of the block; fail it on any error, Ctrl-C, SIGTERM or SIGHUP.

    The block starts the job (`start`) when its inputs and outputs are declared. The client's own `job.run()`
    completes a job that was interrupted, sends whole tracebacks in a URL, and completes a job that was killed
    in the interface. Raises what the block raises, HostError when the job cannot be ended, StoppedError when
    it was killed or cleared meanwhile.
    """
    with _signals_raise():
        try:
            yield
            check_alive(job)
            _complete(job)
        except BaseException as error:
            with _undisturbed():
                if isinstance(error, StoppedError):
                    raise
                if str(job.status) in ("running", "waiting"):
                    check_alive(job, error)
                fail(job, error)
            raise


def start(job: Any) -> None:
    """Start an external job whose inputs and outputs are declared."""
    call("starting the job", job.start, "running")


@contextmanager
def running(job: Any) -> Iterator[None]:
    """Start `job`, run the block, and end it as `ending` does."""
    with ending(job):
        start(job)
        yield


def _complete(job: Any) -> None:
    try:
        call("ending the job", stop, job)
    except HostError:
        if _status(job) != "completed":  # the answer to an earlier attempt was lost
            raise


def check_alive(job: Any, cause: BaseException | None = None) -> None:
    """Raise StoppedError if the job was killed or cleared in the interface; cryoSPARC cannot reach this process."""
    status = _status(job)
    if status in (*_ENDED, "building"):
        raise StoppedError(
            f"{job.uid} was {'cleared' if status == 'building' else status} in cryoSPARC; nothing more is written"
        ) from cause


def _status(job: Any) -> str:
    """What the job is, "" where cryoSPARC does not say."""
    known = quietly("asking for the job's status", lambda: (job.refresh(), True))
    return "" if known is None else str(job.status)


def fail(job: Any, error: BaseException) -> None:
    """Mark the job failed, then write the details to its log, which takes more than the error line."""
    known = isinstance(error, CryoForumError)
    name = {KeyboardInterrupt: "interrupted", SystemExit: "stopped by a signal"}.get(
        type(error), f"{type(error).__name__}: {error}"
    )
    text = " ".join((str(error) if known else name).split())[:LONGEST_ERROR]
    if str(job.status) == "building":  # only a job that was started can fail
        quietly("starting the job", job.start, "running")
    try:
        call("marking the job failed", stop, job, text, waits_s=FAILING_WAITS_S)
    except HostError as refused:
        LOG.warning("%s; clear or kill %s in cryoSPARC, where it may seem to run on", refused, job.uid)
    if not known:
        details = "".join(traceback.format_exception(error))[-LONGEST_LOG:]
        quietly("writing to the job's log", job.log, details, level="error")


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, where this is the main thread; `nohup` keeps SIGHUP ignored."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl-C or signal cut the marking of a failure short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, *_SIGNALS)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
