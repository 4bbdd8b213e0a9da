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
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path

from cryoforum_plugin.errors import ProcessError
from cryoforum_plugin.launch.place import Devices, Meeting, Place, free_port
from cryoforum_plugin.launch.talk import hear, tell

START_S = 600.0  # until all must have called
ANSWER_S = 60.0  # for a caller to say who it is
KEY = "CRYOFORUM_LAUNCH_KEY"


def srun_here(devices: Devices, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether several machines are wanted, this is a SLURM job, and nobody started the command on each of them."""
    started = "NODE_RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    in_job = "SLURM_JOB_ID" in environment and shutil.which("srun") is not None
    return devices.nodes > 1 and in_job and not started


def start_by_srun(
    devices: Devices, environment: dict[str, str], stderr: Path
) -> tuple[subprocess.Popen[bytes], Meeting, tuple[Connection, ...]]:
    """Start a process for each of `devices`; return `srun` itself, the places of the processes, and connections to them.

    They meet at the first of them, on whichever machine that is. Raises ProcessError where not all call in time.
    """
    key = secrets.token_bytes(32)
    server = socket.create_server(("", 0), backlog=devices.world)
    server.settimeout(0.2)
    address = f"{socket.gethostname()}:{server.getsockname()[1]}"
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
    calls: queue.Queue[tuple[Place, int, Connection]] = queue.Queue()
    called: dict[int, tuple[Place, int, Connection]] = {}
    limit_s = time.monotonic() + START_S
    try:
        while len(called) < devices.world:
            if popen.poll() is not None or time.monotonic() > limit_s:
                raise ProcessError(
                    f"srun started {len(called)} of {devices.world} processes on {devices.nodes} machines: "
                    f"{last_line(stderr) or 'it said nothing'}"
                )
            with suppress(TimeoutError):
                caller = server.accept()[0]
                threading.Thread(target=_welcome, args=(caller, key, devices, calls), daemon=True).start()
            while not calls.empty():
                call = calls.get()
                called[call[0].rank] = call
    except BaseException:
        popen.terminate()
        raise
    finally:
        server.close()
    places, ports, connections = zip(*(called[rank] for rank in sorted(called)), strict=True)
    return popen, Meeting(places, places[0].host, ports[0]), connections


def _welcome(
    caller: socket.socket, key: bytes, devices: Devices, calls: queue.Queue[tuple[Place, int, Connection]]
) -> None:
    """Take in a caller who knows the key; others are left to themselves, silent ones for a while."""
    silent = threading.Timer(ANSWER_S, caller.shutdown, (socket.SHUT_RDWR,))
    silent.daemon = True
    connection = Connection(os.dup(caller.fileno()))
    with caller:
        silent.start()
        try:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
            node, local, host, port = hear(connection)
        except (AuthenticationError, EOFError, OSError):
            connection.close()
            return
        finally:
            silent.cancel()
    calls.put((Place(node * devices.count + local, devices.world, local, node, host), port, connection))


def call_back(address: str) -> Connection:
    """In a process that `srun` started: call the one that wants it, and say where the others could meet here."""
    host, _, port = address.rpartition(":")
    connection = Client((host, int(port)), authkey=bytes.fromhex(os.environ.pop(KEY)))
    node, local = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_LOCALID"])
    tell(connection, node, local, socket.gethostname(), free_port())
    return connection


def last_line(file: Path) -> str:
    """The last line with words in it, shortened."""
    lines = file.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:200]
