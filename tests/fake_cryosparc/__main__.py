"""Serve an instance with one refined project until Ctrl-C: `PYTHONPATH=tests python -m fake_cryosparc`."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fake_cryosparc.requests import RequestLog
from fake_cryosparc.server import FakeCryoSPARC
from fake_cryosparc.synthetic import add_refinement, add_refinement_without_images


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(prog="fake_cryosparc", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="base port; 0 takes a free one")
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument(
        "--no-images", action="store_true", help="leave the stacks empty, for very many particles"
    )
    parser.add_argument(
        "--stream-status", type=int, default=201, help="of datasets: 201 is streamed, 200 is not"
    )
    parser.add_argument("--root", type=Path, help="where the projects lie (default: a temporary folder)")
    parser.add_argument("--report", type=Path, help="where to write at the end what was asked (JSON)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        root = options.root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = FakeCryoSPARC(root, stream_status=options.stream_status, port=options.port)
        stack.enter_context(server)
        (add_refinement_without_images if options.no_images else add_refinement)(
            server.state, options.particles
        )
        user = f"{server.state.email} / {server.state.password}"
        print(f"{server.url} ({user}): P1, W1, refined particles in J2; Ctrl-C stops", flush=True)
        started_cpu_s = time.process_time()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        if options.report is not None:
            cpu_s = time.process_time() - started_cpu_s
            options.report.write_text(json.dumps(report(server.requests, cpu_s)))


def report(requests: RequestLog, cpu_s: float) -> dict[str, Any]:
    """Return how many requests there were, by operation, the bytes and uploads, and what it took the server."""
    return {
        "requests": len(requests),
        "operations": dict(requests.operations().most_common()),
        "bytes_downloaded": sum(request.bytes_sent for request in requests.of("jobs.load_output")),
        "uploads": [asdict(upload) for upload in requests.uploads()],
        "cpu_s": cpu_s,
    }


if __name__ == "__main__":
    main()
