"""Which particle tables of a file or folder changed, and are no longer being written. Looks at names and times only."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryoforum_plugin import formats
from cryoforum_plugin.errors import CryoForumError

Signature = tuple[tuple[int, int, int], ...]  # of each file: mtime in ns, size, inode
_RECENT_S = 60.0  # a folder that changed this lately is listed again: its time may be too coarse to show the next change
_CUT_SHORT = 6  # so many times as long a table must be the same that ends within a line


@dataclass
class Sources:
    """The tables to watch, and what was seen of them.

    given : a table, which need not be there yet, or a folder that is searched with all below it.
    suffixes : of the tables to find in a folder; those that match `pattern` only, if there is one. own : files never to
    read. interval_s : how long a table must have been the same before it is read.
    """

    given: Path
    suffixes: tuple[str, ...]
    own: Collection[Path]
    interval_s: float
    pattern: str | None = None
    _seen: dict[Path, tuple[Signature, float]] = field(default_factory=dict)
    _taken: dict[Path, Signature] = field(default_factory=dict)
    _listings: dict[Path, tuple[int, list[Path], list[Path]]] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        """Whether a folder is watched: what is not there yet is one if its suffix is of no table."""
        return self.given.is_dir() or not formats.is_table(self.given)

    def look(self) -> tuple[list[tuple[Path, Signature]], bool]:
        """Return the tables that changed since they were `taken`, oldest first, and whether others still change."""
        ready, changing = list[tuple[Path, Signature]](), False
        for path in self._paths():
            signature = _signature(path)
            if signature is None:
                self._seen.pop(path, None)
            elif self._taken.get(path) != signature:
                if self._settled(path, signature):
                    ready.append((path, signature))
                else:
                    changing = True
        ready.sort(key=lambda found: (found[1][0][0], found[0]))
        return [found for found in ready if self._holds_particles(*found)], changing

    def taken(self, path: Path, signature: Signature) -> None:
        """Note that a table was read, or is to be left alone, as it is now."""
        self._taken[path] = signature

    def again(self, path: Path) -> None:
        """Have a table read again although it did not change."""
        self._taken.pop(path, None)

    def _settled(self, path: Path, signature: Signature) -> bool:
        now = time.monotonic()
        known = self._seen.get(path)
        if known is None or known[0] != signature:
            # at first sight, as after a restart, an old table has been the same for long
            age_s = time.time() - max(part[0] for part in signature) / 1e9 if known is None else 0.0
            self._seen[path] = (signature, now - max(age_s, 0.0))
        same_s = now - self._seen[path][1]
        if same_s < self.interval_s:
            return False
        return same_s >= _CUT_SHORT * self.interval_s or not formats.seems_cut_short(path)

    def _holds_particles(self, path: Path, signature: Signature) -> bool:
        """Whether to read a table; a folder holds others too."""
        if not self.is_folder:
            return True
        try:
            if formats.adapter_for(path).looks_like_particles(path):
                return True
        except (OSError, CryoForumError):  # gone again, or not readable for a moment
            return False
        self.taken(path, signature)
        return False

    def _paths(self) -> Iterator[Path]:
        if not self.is_folder:
            yield self.given
            return
        for path in self._below(self.given):
            matches = self.pattern is None or path.relative_to(self.given).match(self.pattern)
            if matches and Path(os.path.realpath(path)) not in self.own:
                yield path

    def _below(self, folder: Path) -> Iterator[Path]:
        """Tables in a folder and all below it; a folder that did not change is not listed again."""
        try:
            changed_ns = folder.stat().st_mtime_ns
            known = self._listings.get(folder)
            if known is None or known[0] != changed_ns:
                known = (changed_ns, *self._listed(folder))
                if time.time() - changed_ns / 1e9 > _RECENT_S:
                    self._listings[folder] = known
        except OSError:  # not there yet, or gone, or of a file server that is away
            return
        yield from known[1]
        for below in known[2]:
            yield from self._below(below)

    def _listed(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Tables and folders in a folder, hidden ones left out: those are being written."""
        tables, folders = list[Path](), list[Path]()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.name.lower().endswith(self.suffixes):
                    tables.append(Path(entry.path))
        return sorted(tables), sorted(folders)


def _signature(path: Path) -> Signature | None:
    """What tells a table from one that was written to; None where it is not there."""
    try:
        stats = [part.stat() for part in formats.parts_of(path)]
    except OSError:
        return None
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)
