"""The process that does the work of a job: `python -m relion_external.job.worker` with RELION's arguments."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from cryoforum_plugin.errors import CryoForumError
from cryoforum_plugin.progress import LiveLog, show_progress_in
from relion_external.job.parameters import Job, parse_job

LOG = logging.getLogger("cryoforum")
_PR_SET_PDEATHSIG = 1


class _LogLines(logging.Handler):
    """Shows log messages in run.out, between the renewed lines of the progress."""

    def __init__(self, log: LiveLog) -> None:
        super().__init__(logging.INFO)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            self.log.line(record.getMessage())


class _InGuiWords(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return in_gui_words(super().format(record))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job; return 0, or 1 after one plain line on stderr."""
    _end_with_parent()
    signal.signal(signal.SIGTERM, _stop)
    LOG.addHandler(logging.NullHandler())  # no traceback on stderr
    try:
        job = parse_job(sys.argv[1:] if arguments is None else arguments)
        _work(job)
    except CryoForumError as error:
        return _failed(str(error))
    except Exception as error:
        LOG.exception("unexpected error", extra={"quiet": True})
        if _out_of_memory(error):
            return _failed(_MEMORY)
        return _failed(f"unexpected {type(error).__name__}: {error} (details in log.txt)")
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Tell whether Python, a GPU (`torch.OutOfMemoryError`) or torch's CPU allocator ran out of memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


_MEMORY = (
    "out of memory; use a GPU or a queue with more, or set training.batch_size lower with the parameter 'set' "
    "(for example training.batch_size=64)"
)


_GUI_WORDS = {
    "--auto": "parameter auto",
    "--no-ctf": "parameter set: images.ctf=none",
    "--invert-contrast": "parameter contrast: invert",
    "--ignore-contrast": "parameter contrast: ignore",
    "--validation-fraction": "training.validation_fraction",
    "--diameter": "images.diameter_A in the parameter set",
    "--overwrite": "a new job",
    "--resume": "RELION's Continue",
}


def _work(job: Job) -> None:
    os.environ["OMP_NUM_THREADS"] = str(job.j)  # before torch is imported
    log = LiveLog(sys.stdout)
    show_progress_in(log)
    _open_logs(job, log)
    import torch

    torch.set_num_threads(job.j)
    from relion_external.job.steps import run_job

    run_job(job, log)


def _open_logs(job: Job, log: LiveLog) -> None:
    """Messages go to run.out, warnings to run.err, everything to log.txt."""
    warnings = logging.StreamHandler(sys.stderr)
    warnings.setLevel(logging.WARNING)
    warnings.setFormatter(_InGuiWords("cryoforum: warning: %(message)s"))
    warnings.addFilter(lambda record: not getattr(record, "quiet", False))
    file = logging.FileHandler(job.o / "log.txt")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in (_LogLines(log), warnings, file):
        LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    logging.captureWarnings(True)  # of libraries: for us, not for users
    logging.getLogger("py.warnings").addHandler(file)
    logging.getLogger("py.warnings").propagate = False


def in_gui_words(message: str) -> str:
    """Replace options of the `cryoforum` command by what does the same in RELION's GUI."""
    for option, words in _GUI_WORDS.items():
        message = re.sub(rf"{option}\b", words, message)
    return message


def _failed(message: str) -> int:
    text = in_gui_words(" ".join(message.split()))
    print(f"cryoforum: error: {text}", file=sys.stderr, flush=True)
    return 1


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind, so that half-written files are removed."""
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """Ask Linux to stop this process when the supervisor is killed: nobody would look after it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
