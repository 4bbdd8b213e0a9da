"""The record of a job's runs (job.json): what was done, on what, with which warnings."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from cryoforum_plugin.atomic import atomic_file

RECORD, SELECTION = "job.json", "selection.json"
_KEPT = ("train", "predict")  # what a later run does not do again when it is finished


class _Warnings(logging.Handler):
    """Collects warnings for the record."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self.messages.append(record.getMessage())


class JobRecord:
    """A run in `folder`. values : by step; those of an earlier run's training and prediction are there."""

    def __init__(self, folder: Path, parameters: dict[str, Any]) -> None:
        self.folder = folder
        shown = {k: str(v) for k, v in parameters.items() if v not in (None, False, "", ())}
        self.values: dict[str, Any] = {"parameters": shown}
        known = read_record(folder)
        self.values |= {step: known[step] for step in _KEPT if isinstance(known.get(step), dict)}
        self._warnings = _Warnings()
        logging.getLogger("cryoforum").addHandler(self._warnings)

    def close(self) -> None:
        """Collect no more warnings."""
        logging.getLogger("cryoforum").removeHandler(self._warnings)

    def note(self, step: str, values: dict[str, Any]) -> None:
        """Record a step and the warnings since the last one, at once."""
        found, self._warnings.messages = self._warnings.messages, []
        self.values[step] = values | ({"warnings": found} if found else {})
        with atomic_file(self.folder / RECORD, overwrite=True) as temporary:
            temporary.write_text(json.dumps(self.values, indent=2) + "\n")

    def note_selection(self, figures: dict[str, Any]) -> None:
        """Record a selection, what it weighed in selection.json only, as `select --json` writes it."""
        with atomic_file(self.folder / SELECTION, overwrite=True) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")
        self.note("select", {name: value for name, value in figures.items() if name != "auto"})

    def forget_selection(self) -> None:
        """Remove what an earlier run's selection weighed."""
        (self.folder / SELECTION).unlink(missing_ok=True)

    def finished(self, step: str, identity: dict[str, Any], output: Path) -> bool:
        """Tell whether an earlier run has done this very step."""
        known = self.values.get(step, {})
        return output.exists() and known.get("finished") is True and same(known.get("identity", {}), identity)


def same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Tell whether nothing that was recorded has changed; later versions may record more."""
    return bool(before) and all(
        same(value, now[key])
        if isinstance(value, dict) and isinstance(now.get(key), dict)
        else now.get(key) == value
        for key, value in before.items()
    )


def read_record(folder: Path) -> dict[str, Any]:
    """Content of job.json in `folder`; {} where there is none, or something else of that name."""
    try:
        content = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
