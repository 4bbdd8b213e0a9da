"""What is done of a prediction, on disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import OutputError
from cryoforum_plugin.particles import IntArray, ParticleSet

LOG = logging.getLogger("cryoforum")
Columns = dict[str, NDArray[np.float64]]
IDENTITY, ROW = "identity.json", "row"
LONGEST_DELAY_S = 90.0  # of a network file system, until a folder shows what another machine wrote


def journal_of(output: Path) -> Path:
    """The folder beside the table `output` in which its journal lies until that is written."""
    return output.with_name(f".{output.name}.journal")


def remove_journal(folder: Path) -> None:
    """Remove a journal, once the table is written."""
    shutil.rmtree(folder, ignore_errors=True)


def stack_states(particles: ParticleSet) -> str:
    """Checksum of the names, sizes and times of change of the stacks that `particles` lie in."""
    digest = hashlib.sha256()
    for stack in np.unique(particles.stack_index).tolist():
        path = particles.stacks[stack].absolute()
        state = path.stat() if path.exists() else None  # the reader refuses missing stacks, all at once
        size, changed = (0, 0) if state is None else (state.st_size, state.st_mtime_ns)
        digest.update(f"{path}\0{size}\0{changed}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


class Journal:
    """A folder with a file for each chunk of rows that is done: their numbers and, by column, what was found.

    Files appear whole; several processes may write different chunks. A journal of something else than
    `identity` (plain data) is begun anew.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, json.dumps(identity, sort_keys=True)
        if folder.exists() and _read(folder / IDENTITY) != self.identity:
            LOG.info("%s: of another prediction, begun anew", folder)
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:07d}.npz"

    def done(self, number: int) -> bool:
        """Whether chunk `number` is there and undamaged."""
        if not self._path(number).exists():
            return False
        try:
            self.read(number)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            LOG.warning("%s is damaged (%s); its particles are predicted again", self._path(number), error)
            self._path(number).unlink(missing_ok=True)
            return False
        return True

    def write(self, number: int, rows: IntArray, columns: Columns) -> None:
        """Keep what was found of `rows` `(n,)`: columns `(n, ...)` by name. Raises OutputError."""
        if not (self.folder / IDENTITY).exists():
            with atomic_file(self.folder / IDENTITY, overwrite=True) as temporary:
                temporary.write_text(self.identity)
        with atomic_file(self._path(number), overwrite=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{ROW: rows, **columns})  # type: ignore[arg-type]

    def read(self, number: int) -> tuple[IntArray, Columns]:
        """Rows and columns of chunk `number`; the checksums of a damaged file do not hold."""
        with np.load(self._path(number)) as content:
            columns = {name: content[name] for name in content.files}
        return columns.pop(ROW), columns

    def collected(self, count: int) -> Columns:
        """Columns `(count, ...)` of all rows, from chunks that hold each of them once. Raises OutputError."""
        found: Columns = {}
        filled, numbers, until = 0, set[int](), time.monotonic() + LONGEST_DELAY_S
        while filled < count:
            there = {int(path.stem) for path in self.folder.glob("*.npz")} - numbers
            if not there and time.monotonic() > until:
                raise OutputError(f"{self.folder} holds {filled} of {count} particles; start again as before")
            if not there:  # other machines wrote them, and a network file system may show them late
                time.sleep(1.0)
            for number in sorted(there):
                filled += self._collect(number, count, found)
            numbers |= there
        return found

    def _collect(self, number: int, count: int, found: Columns) -> int:
        """Put chunk `number` into the columns `found`; return how many rows it has."""
        rows, columns = self.read(number)
        for name, values in columns.items():
            if name not in found:
                found[name] = np.empty((count, *values.shape[1:]))
            found[name][rows] = values
        return len(rows)

    def drop_if_empty(self) -> None:
        """Remove a folder without any chunk."""
        if not any(self.folder.glob("*.npz")):
            remove_journal(self.folder)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
