"""The job folder, and the record of what was done in it (job.json)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import CryoForumError, HostError
from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.particles import ParticleSet
from relion_external.job.command_line import parameter
from relion_external.job.parameters import Job

RECORD = "job.json"
_KEPT = ("train", "predict")  # what Continue does not do again when it is finished


class _Warnings(logging.Handler):
    """Collects warnings for the record."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self.messages.append(record.getMessage())


class Workspace:
    """A run of `job` in its folder.

    record : what was asked for and done, by step. made : names of the outputs for RELION, in order.
    tables : particles by file name, for the report.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        known = read_record(job.o)
        self.record: dict[str, Any] = {
            "parameters": {k: str(v) for k, v in vars(job).items() if v not in (None, False, "", ())}
        }
        self.record |= {step: known[step] for step in _KEPT if isinstance(known.get(step), dict)}
        self.made: list[str] = []
        self.tables: dict[str, ParticleSet] = {}
        self._warnings = _Warnings()
        logging.getLogger("cryoforum").addHandler(self._warnings)

    def path(self, name: str) -> Path:
        """Path of an output."""
        return self.job.o / name

    def note(self, step: str, values: dict[str, Any]) -> None:
        """Record a step and the warnings since the last one, at once."""
        found, self._warnings.messages = self._warnings.messages, []
        self.record[step] = values | ({"warnings": found} if found else {})
        with atomic_file(self.path(RECORD), overwrite=True) as temporary:
            temporary.write_text(json.dumps(self.record, indent=2) + "\n")

    def finished(self, step: str, identity: dict[str, Any], output: Path) -> bool:
        """Tell whether an earlier run of this job has done this very step."""
        known = self.record.get(step, {})
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


def read_here(path: Path) -> ParticleSet:
    """Read particles of this project. Raises HostError where their image stacks are not in it."""
    particles = read_particles(path)
    missing = [stack for stack in particles.stacks if not stack.is_file()]
    if missing:
        raise HostError(
            f"{path}: {len(missing)} of {len(particles.stacks)} image stacks are missing, {missing[0]} first; image "
            "names start from the project folder, so for particles of another project link its folders into this "
            "one, or Import them here"
        )
    return particles


def describe(path: Path, particles: ParticleSet) -> dict[str, Any]:
    """What a table holds, in a few figures."""
    sizes = sorted({f"{size:g}" for size in np.unique(particles.pixel_size_A)})
    halves = {half: int((particles.half_set == half).sum()) for half in (1, 2)}
    return {
        "input": str(path),
        "particles": len(particles),
        "image stacks": len(particles.stacks),
        "pixel size (A)": ", ".join(sizes),
        "optics groups": len(np.unique(particles.optics_group)),
        "micrographs": int(particles.micrograph.max()) + 1,
        "half sets": f"{halves[1]} + {halves[2]}" if any(halves.values()) else "none",
        "orientations": "yes" if particles.rotation is not None else "no",
        "CTF": "yes" if particles.ctf is not None else "no",
    }


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say in errors which parameter they come from."""
    try:
        yield
    except CryoForumError as error:
        raise HostError(f"{parameter(name)}: {error}") from error
