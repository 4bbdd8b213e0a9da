"""One process of several: `python -m cryoforum_plugin.launch.rank FD FD`, which `launch.run` starts and watches.

It hears what to do through a socket, the first FD, and tells through it: log, progress, temporary files, the outcome.
What libraries print goes nowhere; the second FD is the parent's stderr, for when there is no parent any more. A process
that `srun` started has HOST:PORT of the parent instead.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NoReturn

from cryoforum_plugin import atomic, progress
from cryoforum_plugin.errors import CryoForumError
from cryoforum_plugin.launch.by_srun import call_back
from cryoforum_plugin.launch.talk import hear, tell

LOG = logging.getLogger("cryoforum")
STOP_S = 4.0  # between asking this process to stop, when its parent is gone, and ending it
# what gloo, NCCL and the store behind them say when another process has gone
_LOST = ("gloo", "nccl", "peer", "broken pipe", "connection refused", "timed out", "socket")


class _Parent:
    """The parent at the other end of the socket; `last_words` are printed where it is killed.

    One process of a machine has last words; it also removes the temporary folder of all.
    """

    def __init__(self, address: str, stderr: str = "2") -> None:
        self.connection = Connection(int(address)) if address.isdecimal() else call_back(address)
        self.stderr, self.lock = int(stderr), threading.Lock()
        self.last_words, self.gone = "", False

    def tell(self, kind: str, *values: Any) -> None:
        """Send what happened; nobody may be left to hear it."""
        with self.lock, suppress(OSError):
            tell(self.connection, kind, *values)

    def outlive(self) -> None:
        """Wait for the parent's end; then stop so that temporary files are removed, or, where nothing answers, just end."""
        with suppress(EOFError, OSError):
            hear(self.connection)
        self.gone = True
        if self.last_words:
            with suppress(OSError):
                os.write(self.stderr, f"cryoforum: error: {self.last_words}\n".encode())
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(STOP_S)
        self.leave(1)

    def leave(self, code: int) -> NoReturn:
        """End without the clean-up of libraries, which can wait for processes that are gone."""
        if self.gone and self.last_words:
            shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
        os._exit(code)


class _ToldLog(logging.Handler):
    """Passes log messages on to the parent, whose log shows them."""

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self.parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        self.parent.tell("log", record.levelno, record.getMessage())


def resolve(function: str) -> Any:
    """What "package.module:name" names."""
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)


def lost_connection(error: BaseException) -> bool:
    """Whether an error only says that another process has gone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"DistNetworkError", "DistBackendError", "DistStoreError"}:
        return True
    return type(error) is RuntimeError and any(word in str(error).lower() for word in _LOST)


def _portable(error: Exception) -> Exception:
    """`error`, or what it says, as something that can be sent; with its traceback as a note."""
    try:
        pickle.loads(pickle.dumps(error))
        sent = error
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(traceback.format_exc())
    return sent


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Do what the parent says, and tell it how that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    signal.signal(signal.SIGTERM, _stop)
    parent = _Parent(*sys.argv[1:])
    place, (address, port), level, parent.last_words, function, arguments = hear(parent.connection)
    os.environ |= {"LOCAL_RANK": str(place.local_rank), "NODE_RANK": str(place.node)}  # for Fabric
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    if address == "127.0.0.1" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # host names do not always resolve
    threading.Thread(target=parent.outlive, daemon=True).start()
    first = place.rank == 0  # speaks for all
    LOG.setLevel(level)
    LOG.propagate = False
    LOG.addHandler(_ToldLog(parent) if first else logging.NullHandler())
    progress.pass_on(lambda *event: parent.tell("progress", *event) if first else None)
    atomic.announce(lambda path: parent.tell("temporary", path))
    code = 1
    try:
        result = resolve(function)(place, **pickle.loads(arguments))
        parent.tell("done", result if first else None)
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except CryoForumError as error:
        parent.tell("failed", _portable(error))
    except Exception as error:
        parent.tell("lost" if lost_connection(error) else "failed", _portable(error))
    finally:
        parent.leave(code)


if __name__ == "__main__":
    main()
