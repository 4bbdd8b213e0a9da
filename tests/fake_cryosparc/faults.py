"""What can go wrong on the way to the master.

A fault is any callable that takes a `Request` (before it is answered: `op`, `method`, `path`, `query`) and
returns what happens to it: HTTPError, Drop, Cut, Delay, or None for nothing. The helpers make the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fake_cryosparc.requests import Request


class HTTPError(Exception):
    """An error answer, `{"detail": ...}`; `data` travels only in the 4.7 protocol."""

    def __init__(self, code: int, detail: Any, data: Any = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.data = code, detail, data


@dataclass(frozen=True)
class Drop:
    """Reset the connection after `after_bytes` of the body, or with the work done and no answer sent."""

    after_bytes: int = 0
    at_answer: bool = False


@dataclass(frozen=True)
class Cut:
    """Close the connection when `after_bytes` of the answer have gone."""

    after_bytes: int


@dataclass(frozen=True)
class Delay:
    """Answer `seconds` later."""

    seconds: float


Effect = HTTPError | Drop | Cut | Delay | None
Fault = Callable[[Request], Effect]


@dataclass
class On:
    """The fault that gives `effect` to operation `op` ("" for all): `times` times, after `skip` requests."""

    op: str
    effect: Effect
    times: int | None = 1
    skip: int = 0
    hits: int = field(default=0, init=False)

    def __call__(self, request: Request) -> Effect:
        if self.op not in ("", request.op):
            return None
        if self.skip > 0:
            self.skip -= 1
            return None
        if self.times is not None and self.hits >= self.times:
            return None
        self.hits += 1
        return self.effect


def expired_token(op: str, times: int | None = 1) -> On:
    """Refuse the login token of `op` (401)."""
    return On(op, HTTPError(401, "Could not validate credentials"), times)


def missing_fields(*fields: str, op: str = "jobs.save_output", times: int | None = 1) -> On:
    """Refuse a dataset for fields it lacks (422)."""
    names = dict.fromkeys(fields or ("ctf/type",), "f4")
    return On(op, HTTPError(422, f"Invalid dataset; missing the following required fields: {names}"), times)


def dropped_upload(op: str = "jobs.save_output", after_bytes: int = 2000, times: int | None = 1) -> On:
    """Close the connection when `after_bytes` of the body have come."""
    return On(op, Drop(after_bytes), times)


def dropped_download(
    op: str = "projects.download_file", after_bytes: int = 2000, times: int | None = 1
) -> On:
    """Close the connection when `after_bytes` of the answer have gone."""
    return On(op, Cut(after_bytes), times)


def lost_answer(op: str, times: int | None = 1) -> On:
    """Do what `op` asks, then close the connection without an answer."""
    return On(op, Drop(at_answer=True), times)


def slow(seconds: float, op: str = "", times: int | None = None) -> On:
    """Answer late."""
    return On(op, Delay(seconds), times)


def unavailable(op: str = "", times: int | None = 1) -> On:
    """Answer as a proxy does while its master restarts (503)."""
    return On(op, HTTPError(503, "Service Unavailable"), times)
