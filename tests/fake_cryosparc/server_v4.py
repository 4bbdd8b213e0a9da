"""The cryoSPARC 4.7 master: JSON-RPC on base_port + 2 (core), + 3 (vis) and + 5 (rtp).

The state behind it is the same as of v5. Operations in the request log and for faults are "core.get_job",
"vis.save_output" and so on. cryosparc-tools 4.7 needs an environment of its own (see `check_v4`):

    CryoSPARC(server.license, "127.0.0.1", server.base_port, server.state.email, server.state.password)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fake_cryosparc import operations_v4, vis_v4
from fake_cryosparc.faults import Fault, HTTPError
from fake_cryosparc.requests import RequestLog
from fake_cryosparc.server import Restartable
from fake_cryosparc.state import State
from fake_cryosparc.wire import Answer, Call, Service

SERVICES = {"core": 2, "vis": 3, "rtp": 5}
PATHS = {
    "vis.get_project_file": r"/get_project_file",
    "vis.get_job_file": r"/get_job_file",
    "vis.load_job_input": r"/load_job_input",
    "vis.save_output": r"/external/projects/(\w+)/jobs/(\w+)/outputs/(\w+)/dataset",
    "vis.upload_asset": r"/projects/(\w+)/jobs/(\w+)/files",
    "vis.upload_file": r"/projects/(\w+)/files",
}


class FakeCryoSPARC4(Restartable):
    """A cryoSPARC 4.7 master whose projects lie in `root`."""

    license = "00000000-0000-0000-0000-000000000000"

    def __init__(self, root: Path, version: str = "v4.7.1") -> None:
        self.state = State(root, version)
        self.requests = RequestLog()
        self.faults: list[Fault] = []
        self.services = self._bind()
        self.base_port = self.services[0].port - SERVICES["core"]

    def _bind(self) -> list[Service]:
        """Find three free ports at the distances that the client expects."""
        for _ in range(100):
            services: list[Service] = []
            try:
                for name, offset in SERVICES.items():
                    port = services[0].port - SERVICES["core"] + offset if services else 0
                    named, answer = partial(self._operation, name), partial(self._answer, name)
                    services.append(Service(named, answer, self.faults, self.requests, port))
                return services
            except (OSError, OverflowError):
                for service in services:
                    service.stop()
        raise OSError("no three free ports")

    def _operation(self, service: str, method: str, path: str, read: Callable[[], bytes]) -> str:
        if path == "/api":
            return f"{service}.{json.loads(read())['method']}"
        if method == "GET" and path in ("", "/"):
            return f"{service}.hello"
        return next((op for op, pattern in PATHS.items() if re.fullmatch(pattern, path)), "")

    def _answer(self, service: str, call: Call) -> Answer:
        op, path = call.request.op, call.request.path
        with self.state.lock:
            if path == "/api":
                return self._rpc(service, call)
            if op.endswith(".hello"):
                return Answer(200, b"Hello", "text/plain")
            if op not in PATHS:
                raise HTTPError(404, "Not Found")
            match = re.fullmatch(PATHS[op], path)
            answer: Answer = vis_v4.FILES[op](self.state, call, *(match.groups() if match else ()))
            return answer

    def _rpc(self, service: str, call: Call) -> Answer:
        message = call.json()
        head = {"jsonrpc": "2.0", "id": message["id"]}
        try:
            body: dict[str, Any] = {"result": self._result(service, message["method"], message["params"])}
        except HTTPError as error:
            body = {
                "error": {"name": "Error", "code": error.code, "message": error.detail, "data": error.data}
            }
        return Answer(200, json.dumps(head | body).encode())

    def _result(self, service: str, method: str, params: Any) -> Any:
        if method == "system.describe":
            names = [name.split(".")[1] for name in operations_v4.RPC if name.startswith(f"{service}.")]
            return {"procs": [{"name": name} for name in names]}
        function = operations_v4.RPC[f"{service}.{method}"]
        return function(self.state, **params) if isinstance(params, dict) else function(self.state, *params)
