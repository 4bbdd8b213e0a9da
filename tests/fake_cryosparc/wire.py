"""One HTTP service on 127.0.0.1: requests in, faults, answers, the log; the content comes from outside."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import struct
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fake_cryosparc.faults import Cut, Delay, Drop, Fault, HTTPError
from fake_cryosparc.requests import Request, RequestLog

JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    """A status and a body, or a file that is sent in pieces; `most` bytes of it, then the connection is cut."""

    status: int
    data: bytes | Path
    content_type: str = JSON
    most: int | None = None

    @property
    def num_bytes(self) -> int:
        """Return the length of the body."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size

    def write(self, stream: Any) -> None:
        """Send the body."""
        if self.most is not None:
            data = self.data if isinstance(self.data, bytes) else self.data.read_bytes()
            stream.write(data[: self.most])
        elif isinstance(self.data, bytes):
            stream.write(self.data)
        else:
            with open(self.data, "rb") as file:
                shutil.copyfileobj(file, stream, 1 << 20)


@dataclass
class Call:
    """A request as the services see it: the log's record of it, its authorization (v5, 4.7) and its body."""

    request: Request
    authorization: str
    license: str | None
    body: bytes

    def text(self, name: str, default: str = "") -> str:
        """Return a query parameter."""
        return self.request.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        """Return a query parameter that is true or false."""
        return self.text(name).lower() == "true"

    def json(self) -> Any:
        """Return the body."""
        return json.loads(self.body) if self.body else {}


class _Server(ThreadingHTTPServer):
    """A server whose open connections can be closed: clients keep theirs alive."""

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.open: dict[socket.socket, threading.Thread] = {}
        super().__init__(("127.0.0.1", port), handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self.open[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away."""

    def close_connections(self) -> None:
        """End every connection at once, also in the middle of a request."""
        for connection, thread in list(self.open.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            if thread is not threading.current_thread():
                thread.join(timeout=2)


class Service:
    """A port, a name for every request, an answer to it; stopped and started again on the same port."""

    def __init__(
        self,
        operation: Callable[[str, str, Callable[[], bytes]], str],
        answer: Callable[[Call], Answer],
        faults: list[Fault],
        log: RequestLog,
        port: int = 0,
    ) -> None:
        """Bind; `operation(method, path, read_body)` names a request, `answer` may raise HTTPError."""
        self.operation, self.answer, self.faults, self.log = operation, answer, faults, log
        self._stopping = threading.Event()
        self._server: _Server | None = self._bind(port)
        self.port = int(self._server.server_address[1])
        self._running = False

    def _bind(self, port: int) -> _Server:
        return _Server(port, type("Handler", (_Handler,), {"service": self}))

    def start(self) -> None:
        """Serve; nothing to do if it does."""
        if self._running:
            return
        self._stopping.clear()
        self._server = self._server or self._bind(self.port)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self._running = True

    def stop(self) -> None:
        """Close the port and every connection."""
        self._stopping.set()
        server, self._server = self._server, None
        if server is None:
            return
        if self._running:
            server.shutdown()
        self._running = False
        server.server_close()
        server.close_connections()

    def wait(self, seconds: float) -> None:
        """Sleep, but not longer than the service lives."""
        self._stopping.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every small answer costs a delayed ACK of 40 ms
    wbufsize = -1  # headers and body in one write

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: `RequestLog` has it all."""

    def handle_any(self) -> None:
        """Answer one request, unless a fault has it otherwise."""
        began = time.monotonic()
        self._body: bytes | None = None
        self._received = 0
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        agent = self.headers.get("User-Agent", "")
        request = Request("", self.command, url.path, query, chunked, agent)
        answer: Answer | None = None
        try:
            answer = self._answer(request)
        except ConnectionError:
            self.close_connection = True
        request.bytes_received = self._received
        request.duration_s = time.monotonic() - began
        if answer is not None:
            request.status, request.bytes_sent = answer.status, answer.num_bytes
        self.service.log.append(request)
        if answer is None:
            self._cut()
        else:
            self._send(answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    def _answer(self, request: Request) -> Answer | None:
        """Return the answer, or None if the connection is to be cut."""
        try:
            request.op = self.service.operation(request.method, request.path, self._read)
            cut_after, most = False, None
            for fault in self.service.faults:
                match fault(request):
                    case Delay(seconds):
                        self.service.wait(seconds)
                    case Cut(after_bytes):
                        most = after_bytes
                    case Drop(at_answer=True):
                        cut_after = True
                    case Drop(after_bytes):
                        self._read(after_bytes)
                        return None
                    case HTTPError() as error:
                        self._read()
                        raise error
            body = self._read()
            if self.headers.get("Content-Type", "").startswith((JSON, "application/x-www")):
                request.text = body[:2000].decode(errors="replace")
            token, license_id = self.headers.get("Authorization", ""), self.headers.get("License-ID")
            answer = self.service.answer(Call(request, token, license_id, body))
        except HTTPError as error:
            self._read()
            return Answer(error.code, json.dumps({"detail": error.detail}).encode())
        except ConnectionError:
            raise
        except Exception as error:  # a mistake of ours: show it to the test
            traceback.print_exc()
            return Answer(500, json.dumps({"detail": repr(error)}).encode())
        return None if cut_after else replace(answer, most=most)

    def _read(self, limit: int | None = None) -> bytes:
        """Return the body, or about `limit` bytes of it; ConnectionError if the client goes away."""
        if self._body is not None:
            return self._body
        parts = []
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while (limit is None or self._received < limit) and (size := self._chunk_size()):
                parts.append(self._exactly(size))
                self.rfile.readline()
            if limit is None:
                self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            parts.append(self._exactly(length if limit is None else min(limit, length)))
        body = b"".join(parts)
        if limit is None:
            self._body = body
        return body

    def _chunk_size(self) -> int:
        line = self.rfile.readline()
        if not line:
            raise ConnectionResetError("the client went away")
        return int(line.split(b";")[0], 16)

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        self._received += len(data)
        if len(data) < size:
            raise ConnectionResetError("the client went away")
        return data

    def _send(self, answer: Answer) -> None:
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            if answer.status != 204:
                self.send_header("Content-Length", str(answer.num_bytes))
            self.end_headers()
            if answer.status != 204:
                answer.write(self.wfile)
            self.wfile.flush()
            if answer.most is not None:
                self._cut()
        except OSError:  # the client does not wait, or the service was stopped
            self.close_connection = True

    def _cut(self) -> None:
        """Close with a reset, as a crashed proxy does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
