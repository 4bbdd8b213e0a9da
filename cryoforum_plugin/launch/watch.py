"""The processes that were started from here: told what to do, listened to, and ended together."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from cryoforum_plugin.errors import ProcessError
from cryoforum_plugin.launch.by_srun import last_line, start_by_srun
from cryoforum_plugin.launch.place import Devices, Meeting, Place
from cryoforum_plugin.launch.talk import hear, tell
from cryoforum_plugin.progress import Advance, progress

LOG = logging.getLogger("cryoforum")
SETTLE_S = 1.5  # after the first failure: others follow from it, and its cause may be told later
GRACE_S = 4.0  # between asking processes to stop and killing them


@dataclass
class _Process:
    """A process, what is left of the conversation with it, and how it ended."""

    place: Place
    popen: subprocess.Popen[bytes]
    connection: Connection
    stderr: Path
    done: bool = False
    failed: bool = False
    temporary: set[Path] = field(default_factory=set)

    @property
    def open(self) -> bool:
        """Whether it is still at work."""
        return not (self.done or self.failed)


class Watch:
    """The processes that were started from here, and what they are to do."""

    def __init__(self, request: tuple[str, bytes], folder: Path, again: str) -> None:
        self.request, self.folder, self.again = request, folder, again
        self.processes: list[_Process] = []
        self.shown = ExitStack()
        self.advance: Advance | None = None
        self.result: Any = None
        self.causes: list[Exception] = []  # of failures, in the order in which they were noticed
        self.consequences: list[Exception] = []

    def start(self, place: Place, meeting: Meeting) -> None:
        """Start a process on this machine."""
        ours, theirs = Pipe()
        stderr = self.folder / f"stderr-{place.rank}"
        with theirs, open(stderr, "wb") as file, open(os.dup(2), "wb") as shown:
            passed = (theirs.fileno(), shown.fileno())
            popen = subprocess.Popen(
                [sys.executable, "-m", "cryoforum_plugin.launch.rank", *map(str, passed)],
                env=_environment(len(meeting.places)) | {"TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                pass_fds=passed,
            )
        words = f"the program that started this run was killed on {place.host}; {self.again}"
        self._tell(_Process(place, popen, ours, stderr), meeting, "" if self.processes else words)

    def start_everywhere(self, devices: Devices) -> None:
        """Start all processes, on the machines of this SLURM job."""
        stderr = self.folder / "stderr"
        popen, meeting, connections = start_by_srun(devices, _environment(devices.count), stderr)
        for place, connection in zip(meeting.places, connections, strict=True):
            self._tell(_Process(place, popen, connection, stderr), meeting, "")

    def _tell(self, process: _Process, meeting: Meeting, last_words: str) -> None:
        """Say where to meet the others, and what to do."""
        where = (meeting.address, meeting.port)
        self.processes.append(process)
        with suppress(OSError):  # it ended at once, which is noticed later
            tell(process.connection, process.place, where, LOG.getEffectiveLevel(), last_words, *self.request)

    def until_done(self) -> Any:
        """Listen until all are done, and return the result; or raise what ended one."""
        failed_s: float | None = None
        while any(process.open for process in self.processes):
            if failed_s is not None and time.monotonic() - failed_s > SETTLE_S:
                break
            at_work = [process for process in self.processes if process.open]
            ready = wait([process.connection for process in at_work], 0.2)
            for process in at_work:
                if process.connection in ready:
                    self._hear(process)
            if failed_s is None and any(process.failed for process in self.processes):
                failed_s = time.monotonic()
        for error in (*self.causes, *self.consequences):
            raise error
        return self.result

    def _hear(self, process: _Process) -> None:
        try:
            kind, *values = hear(process.connection)
        except (EOFError, OSError):
            process.failed = True
            self.causes.append(self._loss(process))
            return
        if kind == "log":
            LOG.log(values[0], "%s", values[1])
        elif kind == "progress":
            self._show(*values)
        elif kind == "temporary":
            process.temporary.add(values[0])
        elif kind == "failed":
            process.failed = True
            self.causes.append(values[0])
        elif kind == "lost":
            process.failed = True
            text = (
                f"{process.place} lost its connection to the others, whose own messages say why; {self.again}"
            )
            lost = ProcessError(text)
            lost.__cause__ = values[0]  # for --debug
            self.consequences.append(lost)
        elif kind == "done":
            process.done, self.result = True, values[0] if process.place.rank == 0 else self.result

    def _show(self, event: str, *values: Any) -> None:
        if event == "begin":
            self.shown.close()
            self.advance = self.shown.enter_context(progress(*values))
        elif event == "advance" and self.advance is not None:
            self.advance(*values)
        elif event == "end":
            self.shown.close()
            self.advance = None

    def _loss(self, process: _Process) -> Exception:
        """The error for a process that ended without a word."""
        try:
            code = process.popen.wait(GRACE_S)
        except subprocess.TimeoutExpired:  # srun, which waits for the others
            code = 1
        if code == -signal.SIGKILL:
            text = (
                "was killed (SIGKILL), most likely for lack of memory: use fewer devices, a smaller batch or a machine "
                "with more memory"
            )
        elif code < 0:
            text = f"was ended by {signal.Signals(-code).name}"
        else:
            text = f"ended with code {code}"
        words = last_line(process.stderr)
        said = f" (its last words: {words})" if words and code != -signal.SIGKILL else ""
        return ProcessError(f"{process.place} {text}{said}; {self.again}")

    def end(self) -> None:
        """End what still runs, and remove what it left behind."""
        self.shown.close()
        running = [process for process in self.processes if process.popen.poll() is None]
        unfinished = [process for process in running if not process.done]
        try:
            for process in unfinished:
                process.popen.terminate()
            limit_s = time.monotonic() + GRACE_S
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.popen.wait(max(0.0, limit_s - time.monotonic()))
        finally:
            for process in self.processes:
                process.popen.kill()
                process.popen.wait()
                self._tidy(process)

    def _tidy(self, process: _Process) -> None:
        """Remove temporary files of a process that has ended, of which it may have told last."""
        with suppress(EOFError, OSError):
            while process.connection.poll():
                kind, *values = hear(process.connection)
                if kind == "temporary":
                    process.temporary.add(values[0])
        process.connection.close()
        for path in process.temporary:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _environment(sharing: int) -> dict[str, str]:
    """Environment of a process: its part of the threads that so many share, and modules as they are found here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", str(cores)).split(",")[0]) // sharing
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, threads)),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
