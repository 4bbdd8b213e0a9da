"""The contract with RELION: starts the worker, obeys an abort, and leaves exactly one flag in every ending.

The work runs in a process of its own, so that whatever ends it (a signal, the kernel's memory killer, a crash
in a library) still leaves a flag; RELION waits for ever for a job without one. Only when both processes are killed
at once, or the node is lost, nobody is left to write it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

SUCCESS, FAILURE, ABORTED = (f"RELION_JOB_EXIT_{word}" for word in ("SUCCESS", "FAILURE", "ABORTED"))
ABORT_NOW = "RELION_JOB_ABORT_NOW"
POLL_S = 0.5
GRACE_S = 10.0  # between asking the worker to stop and killing it; queues grant about 30
_STOPPING = [  # what people and queues send; the last four as warnings before a time limit
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGQUIT,
]  # fmt: skip


class Supervisor:
    """Runs one worker process for the job in `folder`."""

    def __init__(self, folder: Path, command: Sequence[str], environment: dict[str, str]) -> None:
        self.folder, self.command, self.environment = folder, list(command), environment
        self.signal: int | None = None

    def run(self) -> int:
        """Run the worker to its end; return the exit code and leave the flag that belongs to it."""
        before = {number: signal.getsignal(number) for number in _STOPPING}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # nohup, and sh for what it starts with &
                signal.signal(number, self._remember)
        flag, code, message = FAILURE, 1, ""
        try:
            for name in (SUCCESS, FAILURE, ABORTED):
                (self.folder / name).unlink(missing_ok=True)
            self._forget_old_abort()
            flag, code, message = self._run_worker()
        except OSError as error:
            message = f"{self.folder}: {error.strerror or error}"
        finally:  # before anything is said: stderr may be on a full disk
            (self.folder / flag).touch()
            for number, handler in before.items():
                signal.signal(number, handler)
        if message:
            try:
                print(f"cryoforum: error: {message}", file=sys.stderr, flush=True)
            except OSError:  # Python would try again at its end, and exit with 120
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        return code

    def _run_worker(self) -> tuple[str, int, str]:
        """Flag, exit code and message of the run."""
        worker = subprocess.Popen(self.command, env=self.environment, stdin=subprocess.DEVNULL)
        try:
            aborted = self._wait(worker)
        except BaseException:
            worker.kill()
            raise
        verdict = self._verdict(worker.returncode, aborted)
        if aborted:
            (self.folder / ABORT_NOW).unlink(missing_ok=True)
        return verdict

    def _forget_old_abort(self) -> None:
        """Remove an abort that was meant for an earlier run of this job.

        RELION writes note.txt when it submits the job: an abort after that, of a job that still stood in the
        queue, is obeyed.
        """
        abort, note = self.folder / ABORT_NOW, self.folder / "note.txt"
        if abort.exists() and not (note.exists() and abort.stat().st_mtime > note.stat().st_mtime):
            abort.unlink()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _wait(self, worker: subprocess.Popen[bytes]) -> bool:
        """Wait for the worker, and stop it when asked to; return whether RELION asked for an abort."""
        aborted, asked_s = False, None
        while True:
            try:
                worker.wait(POLL_S)
                return aborted
            except subprocess.TimeoutExpired:
                aborted = aborted or os.path.exists(self.folder / ABORT_NOW)  # False when a disk hangs
            if asked_s is None and (aborted or self.signal is not None):
                worker.terminate()
                asked_s = time.monotonic()
            elif asked_s is not None and time.monotonic() - asked_s > GRACE_S:
                worker.kill()

    def _verdict(self, code: int, aborted: bool) -> tuple[str, int, str]:
        """Flag, exit code and message for the worker's exit code (negative: the signal that ended it)."""
        if code == 0:  # it may have finished before an abort reached it
            return SUCCESS, 0, ""
        if aborted:
            return ABORTED, 1, "aborted from RELION; Continue goes on from the last checkpoint"
        if self.signal == signal.SIGINT:
            return ABORTED, 130, "interrupted"
        if self.signal is not None or code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            name = signal.Signals(self.signal or signal.SIGTERM).name
            return FAILURE, 1, (
                f"stopped by {name} (the time limit of a queue, or someone's kill); Continue goes on from the last "
                "checkpoint"
            )  # fmt: skip
        if code == -signal.SIGKILL:
            return FAILURE, 1, (
                "killed by the system, most likely for lack of memory: ask the queue for more, or set "
                "training.batch_size lower with the parameter 'set'"
            )  # fmt: skip
        if code < 0:
            return (
                FAILURE,
                1,
                f"the program crashed ({signal.strsignal(-code) or -code}); please report it with run.out",
            )
        return FAILURE, 1, ""  # the worker has said why


def supervise(folder: Path, arguments: Sequence[str]) -> int:
    """Run the job in `folder` with RELION's `arguments`; return the exit code (0, 1, or 130 on Ctrl-C)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        print(
            f"cryoforum: error: cannot write into the job folder {folder}; check its owner and permissions, and that "
            "the disk is not full or read-only",
            file=sys.stderr,
        )
        return 1
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "relion_external.job.worker", *arguments]
    return Supervisor(folder, command, environment).run()
