"""Processes on the several machines of a SLURM job, started from its first one by one `srun`.

So a run that nobody started with `srun`, as a job of RELION, has them too. They call back, over the network and with
a key, to be told what to do.
"""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from cryoforum_plugin.errors import ProcessError
from cryoforum_plugin.launch.place import Devices, Place
from cryoforum_plugin.launch.talk import hear, tell

START_S = 600.0  # until all must have called
KEY = "CRYOFORUM_LAUNCH_KEY"


def srun_here(devices: Devices, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether several machines are wanted, this is a SLURM job, and nobody started the command on each of them."""
    started = "NODE_RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    in_job = "SLURM_JOB_ID" in environment and shutil.which("srun") is not None
    return devices.nodes > 1 and in_job and not started


def start_by_srun(
    devices: Devices, environment: dict[str, str], stderr: Path
) -> tuple[subprocess.Popen[bytes], list[tuple[Place, Connection]]]:
    """Start a process for each of `devices`; return `srun` itself and those that called, by rank.

    Raises ProcessError where not all call in time.
    """
    key = secrets.token_bytes(32)
    listener = Listener(("", 0), authkey=key)
    address = f"{socket.gethostname()}:{listener.address[1]}"
    cpus = int(environment.get("SLURM_CPUS_ON_NODE", 0)) // devices.count
    options = [
        f"--nodes={devices.nodes}",
        f"--ntasks={devices.world}",
        f"--ntasks-per-node={devices.count}",
        *([f"--cpus-per-task={cpus}"] if cpus else []),  # or srun takes one for each, or all for the first
        "--kill-on-bad-exit=1",
        "--export=ALL",
    ]
    with open(stderr, "wb") as file:
        popen = subprocess.Popen(
            ["srun", *options, sys.executable, "-m", "cryoforum_plugin.launch.rank", address],
            env=environment | {KEY: key.hex()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    calls: queue.Queue[Connection] = queue.Queue()

    def listen() -> None:
        for _ in range(devices.world):
            with suppress(AuthenticationError, EOFError, OSError):
                calls.put(listener.accept())

    threading.Thread(target=listen, daemon=True).start()
    called: dict[int, tuple[Place, Connection]] = {}
    limit_s = time.monotonic() + START_S
    try:
        while len(called) < devices.world:
            if popen.poll() is not None or time.monotonic() > limit_s:
                raise ProcessError(
                    f"srun started {len(called)} of {devices.world} processes on {devices.nodes} machines: "
                    f"{last_line(stderr) or 'it said nothing'}"
                )
            with suppress(queue.Empty):
                connection = calls.get(timeout=0.2)
                node, local, host = hear(connection)
                place = Place(node * devices.count + local, devices.world, local, node, host)
                called[place.rank] = (place, connection)
    except BaseException:
        popen.terminate()
        raise
    finally:
        listener.close()
    return popen, [called[rank] for rank in sorted(called)]


def call_back(address: str) -> Connection:
    """In a process that `srun` started: call the one that wants it."""
    host, _, port = address.rpartition(":")
    connection = Client((host, int(port)), authkey=bytes.fromhex(os.environ.pop(KEY)))
    tell(connection, int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_LOCALID"]), socket.gethostname())
    return connection


def last_line(file: Path) -> str:
    """The last line with words in it, shortened."""
    lines = file.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:200]
