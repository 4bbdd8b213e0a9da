"""The output that grows: one table, replaced whole, which is also the memory of what was done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryoforum_plugin import formats
from cryoforum_plugin.errors import OutputError
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.particles.concatenation import joined_predictions
from cryoforum_plugin.prediction.figures import figures_of
from cryoforum_plugin.watching.claim import Claim, check_same, claimed

_REST = 2.0  # times as long as the last writing took no other begins: at most a third of the time goes there


class Output:
    """A table on disk and what is to be added to it.

    done : the particles of the table, predicted, and those to be added; None while there are none. recent : predictions
    of those to be added.
    """

    def __init__(self, path: Path, claim: Claim, identity: dict[str, Any], data_root: Path | None) -> None:
        self.path, self.data_root = path, data_root
        self.done: ParticleSet | None = None
        self.recent: list[Prediction] = []
        self._adapter = formats.adapter_for(path)
        self._claim, self._identity, self._begun = claim, identity, False
        self._next_s = time.monotonic()

    @property
    def count(self) -> int:
        """Number of particles that are in the table or will be."""
        return 0 if self.done is None else len(self.done)

    def go_on(self) -> None:
        """Read the table of an earlier run. Raises OutputError where it is of another model, options or command."""
        check_same(self.path, self._claim.read(), self._identity)
        done = formats.read_particles(formats.files_of(self.path)[-1], self.data_root)
        if done.prediction is None:
            raise OutputError(
                f"{self.path} holds no prediction; choose another output, or pass --overwrite to begin anew"
            )
        self.done, self._begun = done, True

    def add(self, particles: ParticleSet, prediction: Prediction) -> None:
        """Take in predicted particles. Raises ParticleFileError where they do not fit those before them."""
        new = self._adapter.predicted(particles, self.path, prediction, self.data_root)
        assert new.prediction is not None
        done = new if self.done is None else self._adapter.appended(self.done, new, particles.source)
        self.done, self.recent = done, [*self.recent, new.prediction]

    def is_due(self) -> bool:
        """Whether there is something to write, and writing has rested long enough."""
        return bool(self.recent) and time.monotonic() >= self._next_s

    def write(self, least_rest_s: float = 0.0) -> dict[str, Any]:
        """Replace the table by one with all that was added; return figures of that.

        The next writing is due after `least_rest_s` at the earliest. Raises OutputError; then nothing is lost.
        """
        assert self.done is not None
        start = time.monotonic()
        if not self._begun:  # the old table goes first, so that it never stands beside a claim of ours
            for file in formats.files_of(self.path):
                file.unlink(missing_ok=True)
            self._claim.write(self._identity)
            self._begun = True
        self._adapter.write_particles(self.done, self.path, None, overwrite=True, data_root=self.data_root)
        end = time.monotonic()
        self._next_s = end + max(_REST * (end - start), least_rest_s)
        figures = figures_of(joined_predictions(self.recent))
        self.recent = []
        return figures


@contextmanager
def opened(path: Path, identity: dict[str, Any], data_root: Path | None, overwrite: bool) -> Iterator[Output]:
    """Yield the output, locked, with what an earlier run left there unless `overwrite`."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; choose another output")
    with claimed(path) as claim:
        output = Output(path, claim, identity, data_root)
        if not overwrite and any(file.exists() for file in formats.files_of(path)):
            output.go_on()
        yield output
