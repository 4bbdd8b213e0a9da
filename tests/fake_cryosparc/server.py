"""The v5 master: one port, an openapi.json, bearer tokens."""

from __future__ import annotations

import json
import threading
import urllib.parse
from pathlib import Path
from types import TracebackType
from typing import Self

from cryosparc.dataset import Dataset

from fake_cryosparc import job_operations, life_operations, openapi  # the first two register their operations
from fake_cryosparc.faults import Fault, HTTPError
from fake_cryosparc.operations import OPEN, OPERATIONS
from fake_cryosparc.requests import RequestLog
from fake_cryosparc.state import State
from fake_cryosparc.wire import Answer, Call, Service

__all__ = ["FakeCryoSPARC", "Restartable", "job_operations", "life_operations"]
PREFIX = "/api/cmd"


class Restartable:
    """Services that start, stop and come back on their ports; what they know stays."""

    services: list[Service]
    _timer: threading.Timer | None = None

    def start(self) -> Self:
        """Serve."""
        for service in self.services:
            service.start()
        return self

    def stop(self) -> None:
        """Close the ports and every connection, for good."""
        if self._timer is not None:
            self._timer.cancel()
        for service in self.services:
            service.stop()

    def restart(self) -> None:
        """Stop and start: running requests are lost, the state and the tokens are kept."""
        self.stop()
        self.start()

    def go_away(self, seconds: float) -> threading.Timer:
        """Stop now and come back after a time; `join` the timer that is returned to wait for it."""
        self.stop()
        self._timer = threading.Timer(seconds, self.start)
        self._timer.daemon = True
        self._timer.start()
        return self._timer

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class FakeCryoSPARC(Restartable):
    """A cryoSPARC master whose projects lie in `root`.

    stream_status : of answers with a dataset; the client streams them with 201, reads them whole with 200.
    file_status : of answers with a file; the client reads them whole with 200, and not at all with 201.
    """

    def __init__(
        self,
        root: Path,
        stream_status: int = 201,
        version: str = "v5.0.3",
        port: int = 0,
        file_status: int = 200,
    ) -> None:
        self.state = State(root, version)
        self.requests = RequestLog()
        self.faults: list[Fault] = []
        document, self._routes = openapi.build(version, stream_status, file_status)
        self._openapi = json.dumps(document).encode()
        self._service = Service(self._operation, self._answer, self.faults, self.requests, port)
        self.services = [self._service]

    @property
    def port(self) -> int:
        """Return the base port."""
        return self._service.port

    @property
    def url(self) -> str:
        """Return the address that users open in the browser and give to the client."""
        return f"http://127.0.0.1:{self.port}"

    def _operation(self, method: str, path: str, read: object) -> str:
        if path == f"{PREFIX}/openapi.json":
            return "openapi"
        for route in self._routes:
            if route.method == method and route.pattern.fullmatch(path.removeprefix(PREFIX)):
                return route.op
        return ""

    def _answer(self, call: Call) -> Answer:
        op = call.request.op
        if op == "openapi":
            return Answer(200, self._openapi)
        route = next((route for route in self._routes if route.op == op), None)
        if route is None:
            raise HTTPError(404, "Not Found")
        if op not in OPEN and call.authorization.removeprefix("Bearer ") not in self.state.tokens:
            raise HTTPError(401, "Could not validate credentials")
        if op not in OPERATIONS:
            raise HTTPError(501, f"the test server has no {op}")
        match = route.pattern.fullmatch(call.request.path.removeprefix(PREFIX))
        arguments = map(urllib.parse.unquote, match.groups() if match else ())
        with self.state.lock:
            result = OPERATIONS[op](self.state, call, *arguments)
            if isinstance(result, Dataset):
                return Answer(route.status, b"".join(result.stream()), openapi.STREAMS["Dataset"])
            if isinstance(result, bytes | Path):
                return Answer(route.status, result, openapi.STREAMS["Stream"])
            return Answer(route.status, json.dumps(result).encode())
