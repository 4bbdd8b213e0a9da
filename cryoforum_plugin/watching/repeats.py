"""Warnings that each round would repeat are shown once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

LOG = logging.getLogger("cryoforum")


@contextmanager
def told_once() -> Iterator[None]:
    """Hold back warnings of this package that differ from an earlier one in numbers only."""
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = re.sub(r"\d+", "", record.getMessage())
        new = text not in told
        told.add(text)
        return new

    LOG.addFilter(is_new)
    try:
        yield
    finally:
        LOG.removeFilter(is_new)
