"""Run a function in several processes, and end them all when one is lost.

The process that the user or a host started only watches: it shows the log and the progress of the first process,
returns its result, and raises the error of whichever failed, so that callers see one run that succeeds or fails.
"""

from __future__ import annotations

import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from cryoforum_plugin.launch.by_srun import srun_here
from cryoforum_plugin.launch.place import Devices, Place, arrange
from cryoforum_plugin.launch.rank import resolve
from cryoforum_plugin.launch.watch import Watch


def check_started(devices: Devices) -> None:
    """Raise SettingsError where this command was started on other devices or machines than `devices`, as by `srun -n 4`."""
    if not srun_here(devices):
        arrange(devices)


def run_in_processes(
    function: str, arguments: Mapping[str, Any], devices: Devices, again: str = "run it again"
) -> Any:
    """Call `function`, "package.module:name", as `function(place, **arguments)` in a process for each device.

    Returns what the first process returned; None on the other machines, where the command was started on each. With one
    device the call is made here. The processes can meet through `launch.devices.make_fabric`. arguments : can be
    pickled. again : what to do after a loss, for the message.

    Raises SettingsError where processes and devices do not fit, what a process raised (once, whichever was
    first), or ProcessError where one was killed. All have ended by then, within seconds, and their temporary files
    are removed.
    """
    meeting = None if srun_here(devices) else arrange(devices)
    if devices.world == 1:
        return resolve(function)(Place(), **arguments)
    with ExitStack() as stack:
        stack.enter_context(_stopping_on_sigterm())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cryoforum-")))
        watch = Watch((function, pickle.dumps(dict(arguments))), folder, again)
        stack.callback(watch.end)
        if meeting is None:
            watch.start_everywhere(devices)
        else:
            for place in meeting.places:
                watch.start(place, meeting)
        return watch.until_done()


@contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM, where nothing else was made of it, into SystemExit, so that the processes are ended."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
