"""Calls to the server that survive a hiccup, and say in one line what a person can do about the rest."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from cryoforum_plugin.errors import HostError
from cryosparc_job.job.client import answer, is_away, login_advice

LOG = logging.getLogger("cryoforum")
T = TypeVar("T")
WAITS_S = (1.0, 4.0, 15.0, 60.0)  # a restart of cryoSPARC takes about a minute
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def call(
    what: str,
    function: Callable[..., T],
    *arguments: Any,
    waits_s: tuple[float, ...] | None = None,
    **named: Any,
) -> T:
    """Call the client, again after a while where the server was busy or away.

    what : the call in a message, for example "reading J2.particles". The client itself tries three times at
    once, without waiting. Raises HostError with what to do, and lets those of `function` pass.
    """
    waits = WAITS_S if waits_s is None else waits_s
    for wait_s in (*waits, None):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "attempt 1/3 failed": told below
                return function(*arguments, **named)
        except HostError:
            raise
        except Exception as error:
            if wait_s is None or not _passing(error):
                raise explained(what, error) from error
            LOG.warning("cryoSPARC does not answer (%s); trying again in %.0f s", _short(error), wait_s)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def upload(what: str, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call the client with data to send, again from the start when sending was interrupted.

    The client's own second attempt sends only what had not gone yet, which the server refuses as damaged.
    """
    for last in (False, False, True):
        try:
            return call(what, function, *arguments, **named)
        except HostError as error:
            code, words = answer(error.__cause__)
            if last or code not in (400, 422) or "required fields" in words:
                raise
    raise AssertionError("unreachable")


def quietly(what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call the client for something that may fail (a log line, a plot): then warn, and return None."""
    try:
        return call(what, function, *arguments, waits_s=(), **named)
    except HostError as error:
        LOG.warning("%s", error)
        return None


def explained(what: str, error: BaseException) -> HostError:
    """The client's error in one line."""
    code, words = answer(error)
    if code == 401:
        return HostError(f"{what}: cryoSPARC does not know this login, or it has expired; {login_advice()}")
    if code == 404:
        return HostError(f"{what}: not there ({words}); check project, workspace, job and output")
    if is_away(error):
        return HostError(
            f"{what}: cryoSPARC does not answer ({_short(error)}); is it running, and is the address right?"
        )
    return HostError(f"{what}: {words or _short(error)}")


def _passing(error: BaseException) -> bool:
    return is_away(error) or answer(error)[0] in _PASSING or type(error).__name__ == "DatasetLoadError"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
