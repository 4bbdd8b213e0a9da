"""The record of what a server was asked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Upload:
    """A dataset that came with save_output."""

    project: str
    job: str
    output: str
    rows: int
    fields: tuple[str, ...]
    num_bytes: int


@dataclass
class Request:
    """One request; `op` is the API's own name ("jobs.save_output"), status 0 if it got no answer."""

    op: str
    method: str
    path: str
    query: dict[str, list[str]] = field(default_factory=dict)
    chunked: bool = False
    user_agent: str = ""
    bytes_received: int = 0
    status: int = 0
    bytes_sent: int = 0
    duration_s: float = 0.0
    text: str = ""  # the start of a JSON or form body
    upload: Upload | None = None


class RequestLog:
    """Every request in the order of its answer."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._lock = threading.Lock()

    def append(self, request: Request) -> None:
        """Add one."""
        with self._lock:
            self._requests.append(request)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._requests.clear()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        with self._lock:
            return iter(list(self._requests))

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]

    def of(self, op: str = "", status: int | None = None) -> list[Request]:
        """Return the requests of one operation ("jobs." for a whole namespace), or with one status."""

        def wanted(request: Request) -> bool:
            same = request.op.startswith(op) if op.endswith(".") or not op else request.op == op
            return same and status in (None, request.status)

        return [request for request in self if wanted(request)]

    def count(self, op: str = "", status: int | None = None) -> int:
        """Return how many there were; see `of`."""
        return len(self.of(op, status))

    def bytes_received(self, op: str = "") -> int:
        """Return the bytes of the bodies, as they came."""
        return sum(request.bytes_received for request in self.of(op))

    def operations(self) -> Counter[str]:
        """Return how often each operation was asked for."""
        return Counter(request.op for request in self)

    def uploads(self, output: str = "") -> list[Upload]:
        """Return the datasets that save_output brought, of one output or all."""
        uploads = (request.upload for request in self)
        return [upload for upload in uploads if upload is not None and output in ("", upload.output)]
