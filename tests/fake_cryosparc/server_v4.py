"""The cryoSPARC 4.7 master: JSON-RPC on base_port + 2 (core), + 3 (vis) and + 5 (rtp), web pages on base_port.

The state behind it is the same as of v5. Operations in the request log and for faults have the names of v5
("jobs.save_output") where it has the same, else those of 4.7 ("core.get_workspace").

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

SERVICES = {"core": 2, "vis": 3, "rtp": 5, "app": 0}
PATHS = {
    "vis.get_project_file": r"/get_project_file",
    "vis.get_job_file": r"/get_job_file",
    "vis.load_job_input": r"/load_job_input",
    "vis.save_output": r"/external/projects/(\w+)/jobs/(\w+)/outputs/(\w+)/dataset",
    "vis.upload_asset": r"/projects/(\w+)/jobs/(\w+)/files",
    "vis.upload_file": r"/projects/(\w+)/files",
}
NAMES_IN_V5 = {
    "core.system.describe": "openapi",
    "core.get_id_by_email_password": "login",
    "core.get_running_version": "config.get_version",
    "core.get_project": "projects.find_one",
    "core.get_project_dir_abs": "projects.get_directory",
    "core.get_job": "jobs.find_one",
    "core.make_job": "jobs.create",
    "core.job_connected_group_clear": "jobs.disconnect",
    "core.enqueue_job": "jobs.enqueue",
    "core.run_external_job": "jobs.mark_running",
    "core.job_send_streamlog": "jobs.add_event_log",
    "core.job_checkpoint_streamlog": "jobs.add_checkpoint",
    "vis.create_external_job": "jobs.create",
    "vis.add_external_job_input": "jobs.add_external_input",
    "vis.add_external_job_output": "jobs.add_external_output",
    "vis.connect_external_job": "jobs.connect",
    "vis.load_job_input": "jobs.load_input",
    "vis.save_output": "jobs.save_output",
    "vis.upload_asset": "assets.upload",
    "vis.upload_file": "projects.upload_file",
}
PAGE = b"<!DOCTYPE html><html><body>CryoSPARC</body></html>"


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

    @property
    def url(self) -> str:
        """Return the address that users open in the browser."""
        return f"http://127.0.0.1:{self.base_port}"

    def _operation(self, service: str, method: str, path: str, read: Callable[[], bytes]) -> str:
        op = self._own_operation(service, method, path, read)
        if op == "vis.get_project_file":  # a dataset is a file like any other
            return "jobs.load_output" if _asked_file(read()).endswith(".cs") else "projects.download_file"
        if op == "core.set_job_status":
            return (
                "jobs.mark_completed" if "completed" in json.loads(read())["params"] else "jobs.mark_failed"
            )
        return NAMES_IN_V5.get(op, op)

    def _own_operation(self, service: str, method: str, path: str, read: Callable[[], bytes]) -> str:
        if path == "/api" and service != "app":
            return f"{service}.{json.loads(read())['method']}"
        if method == "GET" and path in ("", "/"):
            return f"{service}.hello"
        return next((op for op, pattern in PATHS.items() if re.fullmatch(pattern, path)), "")

    def _answer(self, service: str, call: Call) -> Answer:
        request = call.request
        if service == "app":
            return Answer(200, PAGE, "text/html")
        if call.license != self.license and request.op != "openapi":
            raise HTTPError(401, "License ID mismatch")
        with self.state.lock:
            if request.path == "/api":
                return self._rpc(service, call)
            if request.path in ("", "/"):
                return Answer(200, b"Hello", "text/plain")
            op = self._own_operation(service, request.method, request.path, lambda: call.body)
            if op not in PATHS:
                raise HTTPError(404, "Not Found")
            if op == "vis.get_project_file":
                request.query["path"] = [_asked_file(call.body)]  # where v5 has it
            match = re.fullmatch(PATHS[op], request.path)
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


def _asked_file(body: bytes) -> str:
    return str(json.loads(body)["path"])
