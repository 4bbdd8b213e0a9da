"""What does not go on for now: told at once, and again only after a while."""

from __future__ import annotations

import logging
import time
from pathlib import Path

LOG = logging.getLogger("cryoforum.watch")  # of its own: `told_once` does not hold these back


class Problems:
    """Warns of troubles by the file they are about; the same one again after `patience_s`."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self._told: dict[Path, tuple[float, str]] = {}
        self._waiting_s: dict[Path, float] = {}  # since when

    def tell(self, path: Path, text: str) -> None:
        """Warn."""
        now, (told_s, told) = time.monotonic(), self._told.get(path, (0.0, ""))
        if told != text or now - told_s >= self.patience_s:
            LOG.warning("%s", text if str(path) in text else f"{path}: {text}")
            self._told[path] = (now, text)

    def waits(self, path: Path) -> bool:
        """Note that a file has something to wait for; return whether it does so for `patience_s`."""
        since_s = self._waiting_s.setdefault(path, time.monotonic())
        return time.monotonic() - since_s >= self.patience_s

    def gone(self, path: Path) -> None:
        """Note that it goes on."""
        self._told.pop(path, None)
        self._waiting_s.pop(path, None)
