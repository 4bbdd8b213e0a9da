"""log.txt of a training: messages are held until the checks are over and the folder may be written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

LOG = logging.getLogger("cryoforum")


@contextmanager
def held_log() -> Iterator[MemoryHandler]:
    """Collect log messages until `open_log` gives them a file."""
    handler = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    LOG.addHandler(handler)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        target = handler.target
        handler.close()
        if target is not None:
            target.close()


def open_log(handler: MemoryHandler, file: Path) -> None:
    """Write the messages held so far, and all that follow, to a file."""
    target = logging.FileHandler(file)
    target.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setTarget(target)
    handler.flush()
    handler.flushLevel = logging.INFO
