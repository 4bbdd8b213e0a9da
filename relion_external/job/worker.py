"""The process that does the work of a job: `python -m relion_external.job.worker` with RELION's arguments."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from cryoforum_plugin.errors import CryoForumError, HostError
from cryoforum_plugin.progress import LiveLog, show_progress_in
from relion_external.job.command_line import job_folder, parse_job
from relion_external.job.parameters import Job
from relion_external.job.supervisor import FAILURE

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
    arguments = sys.argv[1:] if arguments is None else arguments
    _end_with_parent(arguments)
    LOG.addHandler(logging.NullHandler())  # no traceback on stderr
    try:
        _work(parse_job(arguments))
    except CryoForumError as error:
        return _failed(str(error))
    except Exception as error:
        LOG.exception("unexpected error", extra={"quiet": True})
        from cryoforum_plugin.network.memory import out_of_memory

        if out_of_memory(error):
            return _failed(_MEMORY)
        return _failed(f"unexpected {type(error).__name__}: {error} (details in log.txt)")
    return 0


_MEMORY = (
    "out of memory; use a GPU or a queue with more, or set training.batch_size lower with the parameter 'set' "
    "(for example training.batch_size=64)"
)


_GUI_WORDS = {  # of the `cryoforum` command: of RELION's GUI; whole phrases before single options
    "choose another output or pass --overwrite": "start a new job",
    "train again with --overwrite": "start a new job",
    "run train again with --resume": "press Continue",
    "resume with the same command": "set them back",
    "run `cryoforum predict` first": "run a predict job first",
    "pass --no-ctf": "set the parameter set to images.ctf=none",
    "a model with --no-ctf": "a model with the parameter set = images.ctf=none",
    "pass --invert-contrast": "set the parameter contrast to invert",
    "--ignore-contrast": "set it to ignore",
    "--cache-dir": "the parameter cache_dir",
    "--auto": "the parameter auto",
    "--no-refine": "the parameter refine = no",
    "give one with --reference": "give one under 'Input 3D reference', with the parameter model",
    "leave out --reference": "leave out 'Input 3D reference'",
    "(--refine does it all the same)": "(the parameter refine = yes does it all the same)",
    "run the job again, which goes on": "press Continue, which goes on",
    "--devices": "devices",
    "--num-nodes": "num_nodes",
    "--device": "device",
    "--half-sets": "training.half_sets=true in the parameter set",
    "train with --folds 2": "train with training.folds=2 in the parameter set",
    "--validation-fraction": "training.validation_fraction",
    "--diameter": "images.diameter_A in the parameter set",
    ", or set --data-root": "",
    "check the name and the current folder": "check the name and the project folder",
}


def _work(job: Job) -> None:
    os.environ["OMP_NUM_THREADS"] = str(job.j)  # before torch is imported
    if os.fstat(sys.stdout.fileno()).st_size:  # of a run before, which may have ended within a line
        print(flush=True)
    log = LiveLog(sys.stdout)
    show_progress_in(log)
    try:
        _open_logs(job, log)
    except OSError as error:
        raise HostError(
            f"cannot write {error.filename}: {error.strerror}; check its owner and permissions"
        ) from error
    import torch

    torch.set_num_threads(job.j)
    from relion_external.job.steps import run_job

    run_job(job)


def _open_logs(job: Job, log: LiveLog) -> None:
    """Messages go to run.out, warnings to run.err, everything to log.txt, which is continued."""
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
        message = message.replace(option, words)
    return message


def _failed(message: str) -> int:
    text = in_gui_words(" ".join(message.split()))
    LOG.error("%s", text, extra={"quiet": True})
    print(f"cryoforum: error: {text}", file=sys.stderr, flush=True)
    return 1


def _end_with_parent(arguments: Sequence[str]) -> None:
    """Stop on signals so that half-written files are removed, and when the supervisor is killed.

    A supervisor that was killed cannot leave a flag: then this process does.
    """
    parent, folder = os.getppid(), job_folder(arguments)

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if os.getppid() != parent and folder is not None:
            (folder / FAILURE).touch()
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
