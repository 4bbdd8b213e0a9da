"""`watch`: look for new particles, predict those whose images are there, add them to the output, and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoforum_plugin import formats
from cryoforum_plugin.errors import (
    CryoForumError,
    DeviceError,
    OutputError,
    ParticleFileError,
    UnusableImagesError,
)
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.prediction.members import ready
from cryoforum_plugin.prediction.run import PredictOptions, predict_particles
from cryoforum_plugin.watching.images import Images, first_reason
from cryoforum_plugin.watching.known import Known
from cryoforum_plugin.watching.output import Output
from cryoforum_plugin.watching.problems import Problems
from cryoforum_plugin.watching.sources import Signature, Sources
from cryoforum_plugin.watching.stopping import Signals

AT_ONCE = 16_384  # particles predicted before anything is written
_SHORTEST_SLEEP_S = 0.05

Show = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class WatchOptions:
    """When to look and when to end.

    interval_s : between looks, and how long a table must have been the same. patience_s : how long particles or a table may
    be missing or unreadable without another warning. once : end when all that is there is done. until_idle_s : end when
    nothing new came for so long.
    """

    interval_s: float = 10.0
    patience_s: float = 600.0
    once: bool = False
    until_idle_s: float | None = None


@dataclass
class Watcher:
    """What a watch knows; `run` does the rest.

    show : called with the figures of each round that was written. waiting : by table, particles not predicted yet.
    """

    sources: Sources
    output: Output
    model: Model
    device: torch.device
    precision: Precision
    predicting: PredictOptions
    options: WatchOptions
    data_root: Path | None
    show: Show
    signals: Signals
    waiting: dict[Path, ParticleSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = Known(by_uid=self.output.path.suffix.lower() != ".star")
        if self.output.done is not None:
            self.known.add(self.output.done)
        self.images = Images()
        self._checked: set[Path] = set()  # tables whose contrast is known to be right
        self._without_image: dict[Path, int] = {}  # by table
        self._problems = Problems(self.options.patience_s)
        self._last_error: CryoForumError | None = None
        self._news_s = time.monotonic()

    def run(self) -> None:
        """Watch until told to end; what is predicted is written whatever ends it.

        Raises Stopped on a signal, and CryoForumError for what will not pass by waiting.
        """
        try:
            while not self._round():
                pass
        finally:
            self.signals.ending = True
            self._write()
        if not self.output.count and self._last_error is not None:
            raise self._last_error

    def _round(self) -> bool:
        """Look once, predict, write if it is time, and sleep. Return whether it is time to end."""
        start = time.monotonic()
        changing = self._look()
        for path in list(self.waiting):
            self._predict_ready(path)
        if self.output.is_due():
            self._write()
        self._tell_waiting()
        end = time.monotonic()
        if self.options.once and (not changing or end - self._news_s > self.options.patience_s):
            return True
        idle_s = self.options.until_idle_s
        if idle_s is not None and end - self._news_s >= idle_s:
            return True
        time.sleep(max(self.options.interval_s - (end - start), _SHORTEST_SLEEP_S))
        return False

    def _look(self) -> bool:
        """Read the tables that changed; return whether others are still changing."""
        found, changing = self.sources.look()
        if not self.sources.given.exists():
            self._missing()
        for path, signature in found:
            self._read(path, signature)
        return changing

    def _missing(self) -> None:
        error = ParticleFileError(
            f"{self.sources.given}: no such file or folder; check the name and the current folder"
        )
        if self.options.once:
            raise error
        self._last_error = error
        self._problems.tell(self.sources.given, "not there yet; waiting for it")

    def _read(self, path: Path, signature: Signature) -> None:
        """Take in the particles of a table that are not known; a table that cannot be read may be able later."""
        try:
            table = formats.read_particles(path, self.data_root)
        except (CryoForumError, OSError) as error:
            self._last_error = error if isinstance(error, CryoForumError) else None
            if self.options.once:
                if not self.sources.is_folder:
                    raise
                self.sources.taken(path, signature)
            self._problems.tell(path, f"{error}; {'left out' if self.options.once else 'tried again'}")
            return
        self.sources.taken(path, signature)
        self._last_error = None
        rows = self.known.new_rows(table)
        if len(rows):
            before = self.waiting.get(path)
            if before is None or len(before) != len(rows):
                self._news_s = time.monotonic()
            self.waiting[path] = table[rows]
        else:
            self.waiting.pop(path, None)
            self._problems.gone(path)

    def _predict_ready(self, path: Path) -> None:
        """Predict those particles of a table whose images are there."""
        table = self.waiting[path]
        table = table[self.known.new_rows(table)]  # another table may have brought some of them meanwhile
        there = self.images.ready(table) if len(table) else np.zeros(0, dtype=bool)
        if len(table) and not there.any() and self.output.path.suffix.lower() != ".star":
            self.sources.again(path)  # where cryoSPARC's paths start shows with the first image
        rows = np.flatnonzero(there)
        left = ~there
        self._without_image[path] = int(left.sum())
        for start in range(0, len(rows), AT_ONCE):
            chunk = rows[start : start + AT_ONCE]
            if not self._try(path, table[chunk]):
                left[rows[start:]] = path in self.waiting
                break
            if self.output.is_due():
                self._write()
        if path in self.waiting and left.any():
            self.waiting[path] = table[left]
        else:
            self.waiting.pop(path, None)

    def _try(self, path: Path, particles: ParticleSet) -> bool:
        """Predict and add particles; return whether that was done, having told why not."""
        try:
            self._predict(path, particles)
        except (CryoForumError, OSError) as error:
            self.images.forget(particles)
            if isinstance(error, DeviceError):
                self._last_error = error  # if it never passes
            if (
                isinstance(error, OSError | DeviceError)  # a GPU may be full of another program's data
                or isinstance(error.__cause__, OSError)
                or not self._all_there(particles)
            ):
                self._problems.tell(path, f"{error}; tried again")
            elif self.output.count and self.sources.is_folder:
                self._problems.tell(path, f"{error}; left out until it changes")
                self.waiting.pop(path)
            else:
                raise
            return False
        self._news_s = time.monotonic()
        self._problems.gone(path)
        return True

    def _all_there(self, particles: ParticleSet) -> bool:
        return bool(self.images.ready(particles).all())

    def _predict(self, path: Path, particles: ParticleSet) -> None:
        options = self.predicting
        contrast = options.contrast or self.model.settings.images.contrast
        if (
            path in self._checked and contrast != "invert"
        ):  # some hundred junk images must not end a night's watch
            options = replace(options, contrast="ignore")
        particles = self._with_half_sets(particles)
        try:
            prediction = predict_particles(self.model, particles, self.device, self.precision, options)[0]
        except UnusableImagesError:
            if self.output.done is None or self.output.done.prediction is None:
                raise
            prediction = _unknown(self.output.done.prediction, len(particles))
        self.output.add(particles, prediction)
        self.known.add(particles)
        self._checked.add(path)

    def _with_half_sets(self, particles: ParticleSet) -> ParticleSet:
        """Give half sets as `ready` does, the first to the half set that has fewer so far."""
        given = ready(self.model, particles)
        done = self.output.done
        if given is particles or done is None or (done.half_set == 1).sum() <= (done.half_set == 2).sum():
            return given
        return replace(given, half_set=3 - given.half_set)

    def _write(self) -> None:
        """Write what there is; what cannot be written (a full disk) is tried again, except at the end."""
        if not self.output.recent:
            return
        try:
            with self.signals.held():
                figures = self.output.write(self.options.interval_s)
                waiting = sum(self._without_image.values())
                self.show({"new": figures, "n": self.output.count, "waiting": waiting})
        except OutputError as error:
            if self.signals.ending or self.options.once:
                raise
            self._problems.tell(self.output.path, f"{error}; tried again")

    def _tell_waiting(self) -> None:
        """Warn of particles that wait for their images for long."""
        for path, particles in self.waiting.items():
            if self._problems.waits(path) or self.options.once:
                self._problems.tell(
                    path, f"{len(particles)} particles wait for their images: {first_reason(particles)}"
                )


def _unknown(like: Prediction, n: int) -> Prediction:
    """A prediction of n particles that could not be predicted, of the fields that another has."""
    known = {f.name: getattr(like, f.name) for f in fields(Prediction)}
    values: dict[str, Any] = {
        name: None if value is None else np.full((n, *value.shape[1:]), np.nan)
        for name, value in known.items()
    }
    return Prediction(**values)
