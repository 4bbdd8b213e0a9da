"""`OUT.watch.json`: which model and options a growing output is of, and the lock that lets one process write it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cryoforum_plugin import __version__
from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.errors import OutputError
from cryoforum_plugin.prediction.run import PredictOptions

LOG = logging.getLogger("cryoforum")


def identity_of(model_dir: Path, options: PredictOptions) -> dict[str, Any]:
    """Return what an output of this model with these options is told by; what only changes the speed is left out."""
    reference = None if options.reference is None else checksum(options.reference)
    return {
        "cryoforum_version": __version__,
        "model_dir": str(model_dir),
        "model": checksum(model_dir / "model.pt"),
        "options": {
            "views": options.views,
            "refine": options.refine,
            "reference": reference,
            "contrast": options.contrast,
        },
    }


def claim_path(output: Path) -> Path:
    """Return where the side file of an output lies."""
    return output.with_name(f"{output.name}.watch.json")


@dataclass
class Claim:
    """The locked side file. It is never replaced, for the lock is on this very file."""

    path: Path
    file: TextIO

    def read(self) -> dict[str, Any] | None:
        """Return what the output is of, None where that is not written (whole) yet."""
        self.file.seek(0)
        try:
            content = json.loads(self.file.read())
        except ValueError:
            return None
        return content if isinstance(content, dict) else None

    def write(self, identity: dict[str, Any]) -> None:
        """Write what the output is of."""
        try:
            self.file.seek(0)
            self.file.truncate()
            self.file.write(json.dumps(identity, indent=2) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error


@contextmanager
def claimed(output: Path) -> Iterator[Claim]:
    """Yield the side file of `output`, locked. Raises OutputError if another process holds it, or it cannot be made."""
    path = claim_path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another `cryoforum watch` writes {output}; wait for its end, or choose another output"
            ) from error
        except OSError as error:  # a file system without locks
            LOG.warning(
                "%s cannot be locked (%s); let only one `cryoforum watch` write %s", path, error, output
            )
        yield Claim(path, file)


def check_same(output: Path, known: dict[str, Any] | None, identity: dict[str, Any]) -> None:
    """Raise OutputError unless an existing output is of the same model and options."""
    advice = "choose another output, or pass --overwrite to begin anew"
    if known is None:
        raise OutputError(f"{output} exists already and is not of `cryoforum watch`; {advice}")
    if known.get("model") != identity["model"]:
        raise OutputError(f"{output} is of another model ({known.get('model_dir')}); {advice}")
    if known.get("options") != identity["options"]:
        before, now = known.get("options") or {}, identity["options"]
        differing = [
            f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]
        ]
        raise OutputError(f"{output} was begun with other options ({'; '.join(differing)}); {advice}")
