"""What is done of a prediction, on disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import OutputError
from cryoforum_plugin.particles import IntArray, ParticleSet

LOG = logging.getLogger("cryoforum")
Columns = dict[str, NDArray[np.float64]]
LOCK, ROW = "lock", "row"
LONGEST_DELAY_S = 90.0  # of a network file system, until a folder shows what another machine wrote


def journal_of(output: Path) -> Path:
    """The folder beside the table `output` in which its journal lies until that is written."""
    return output.with_name(f".{output.name}.journal")


def stack_states(particles: ParticleSet) -> str:
    """Checksum of the names, sizes and times of change of the stacks that `particles` lie in."""
    digest = hashlib.sha256()
    for stack in np.unique(particles.stack_index).tolist():
        path = particles.stacks[stack].absolute()
        state = path.stat() if path.exists() else None  # the reader refuses missing stacks, all at once
        size, changed = (0, 0) if state is None else (state.st_size, state.st_mtime_ns)
        digest.update(f"{path}\0{size}\0{changed}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def row_states(particles: ParticleSet) -> str:
    """Checksum of what a prediction depends on in the rows of `particles`, wherever it was read from."""
    digest = hashlib.sha256(str(len(particles)).encode())
    columns = [particles.stack_index, particles.slice_index, particles.pixel_size_A, particles.contrast_sign]
    columns += [particles.half_set, particles.optics_group]
    columns += [] if particles.ctf is None else list(vars(particles.ctf).values())
    for values in columns:
        digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()


class Journal:
    """A folder with a file for each chunk of rows that is done: their numbers and, by column, what was found.

    Files appear whole, and carry in their names what they are of (`identity`, plain data), so that those of another
    prediction are never taken for ones of this. Several processes may write different chunks.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:07d}-{self.key}.npz"

    def chunks(self) -> set[int]:
        """Numbers of the chunks that are there."""
        return {int(path.name[:7]) for path in self.folder.glob(f"[0-9]*-{self.key}.npz")}

    def done(self, number: int) -> bool:
        """Whether chunk `number` is there and undamaged."""
        path = self._path(number)
        if not path.exists():
            return False
        try:
            self.read(number)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            LOG.warning("%s is damaged (%s); its particles are predicted again", path, error)
            return False
        return True

    def write(self, number: int, rows: IntArray, columns: Columns) -> None:
        """Keep what was found of `rows` `(n,)`: columns `(n, ...)` by name. Raises OutputError."""
        # not brought to the disk at once: a chunk that a power cut damages is done again
        with (
            atomic_file(self._path(number), overwrite=True, sync=False) as temporary,
            open(temporary, "wb") as file,
        ):
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
            there = self.chunks() - numbers
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
        if not found:
            found |= {name: np.full((count, *values.shape[1:]), np.nan) for name, values in columns.items()}
        if found.keys() != columns.keys():
            raise OutputError(f"{self._path(number)} holds other columns than the rest; remove {self.folder}")
        for name, values in columns.items():
            found[name][rows] = values
        return len(rows)

    def drop_if_empty(self) -> None:
        """Remove a folder without any chunk."""
        if not self.chunks():
            remove_journal(self.folder)


@contextmanager
def opened(journal: Journal) -> Iterator[None]:
    """Let nobody else write into a journal's folder, and remove what is in it of other predictions.

    Raises OutputError where another run is at work there, or the folder cannot be written. An empty one is removed.
    """
    folder = journal.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another run writes the journal {folder}; wait for its end, or choose another output"
            ) from error
        except OSError as error:  # a file system without locks
            LOG.warning("%s cannot be locked (%s); let only one run write this output", folder, error)
        kept = {journal._path(number).name for number in journal.chunks()} | {LOCK}
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)
        try:
            yield
        finally:
            journal.drop_if_empty()


def remove_journal(folder: Path) -> None:
    """Remove a journal, once the table is written."""
    shutil.rmtree(folder, ignore_errors=True)
