"""Serve an instance with one refined project until Ctrl-C: `PYTHONPATH=tests python -m fake_cryosparc`."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
from pathlib import Path

from fake_cryosparc.server import FakeCryoSPARC
from fake_cryosparc.synthetic import add_refinement


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(prog="fake_cryosparc", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="base port; 0 takes a free one")
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--root", type=Path, help="where the projects lie (default: a temporary folder)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = options.root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(FakeCryoSPARC(root, port=options.port))
        add_refinement(server.state, options.particles)
        user = f"{server.state.email} / {server.state.password}"
        print(f"{server.url} ({user}): P1, W1, refined particles in J2; Ctrl-C stops", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
