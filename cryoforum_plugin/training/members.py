"""The models of one training: one of all particles, or one for each half set and fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryoforum_plugin.errors import ParticleFileError, SettingsError
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.settings import TrainingSettings

ENOUGH = 5000  # particles in each half set, from which on each gets a model of its own by default
FEWEST = 200  # below, a half set cannot train a model


@dataclass(frozen=True)
class Member:
    """A model to train: its folder's name ("" = the model folder itself), rows to learn from, half set or 0."""

    name: str
    rows: IntArray
    half_set: int


def plan_members(
    particles: ParticleSet, settings: TrainingSettings, map_alone: bool = False
) -> tuple[list[Member], str]:
    """Decide which models are trained on which rows, and say it in a line.

    map_alone : nothing is learned from the particles. Raises ParticleFileError where half sets are asked for and
    not there, or too small, SettingsError where there are no particles to divide.
    """
    if map_alone:
        if settings.half_sets or settings.folds > 1:
            raise SettingsError("half sets and folds divide refined particles; a map alone has none")
        return [Member("", np.arange(len(particles)), 0)], "one model, of a map"
    halves, note = _halves(particles, settings.half_sets)
    members = []
    for half, rows in halves:
        for fold in range(settings.folds):
            name = f"half{half}" if half else ""
            learned = rows
            if settings.folds > 1:
                name = f"{name}_fold{fold + 1}" if half else f"fold{fold + 1}"
                learned = rows[_fold_of(particles, rows, settings) != fold]
            members.append(Member(name, learned, half))
    if settings.folds > 1:
        note += (
            f"; {settings.folds} folds: {', '.join(f'{m.name} of {len(m.rows)}' for m in members)} particles"
        )
    return members, note


def _halves(particles: ParticleSet, wanted: bool | None) -> tuple[list[tuple[int, IntArray]], str]:
    """(half set, its rows) of each part to learn from: both half sets or, as 0, everything together."""
    rows = [np.flatnonzero(particles.half_set == half) for half in (1, 2)]
    first, second = map(len, rows)
    without = len(particles) - first - second
    if wanted and (without or min(first, second) < FEWEST):
        raise ParticleFileError(
            f"{particles.source}: half sets of {first} and {second} particles, {without} without: a model for each "
            f"needs every particle in one, and {FEWEST} in each; take the particles of a gold-standard refinement, or "
            "leave out --half-sets"
        )
    found = f"half sets of {first} and {second} particles, {without} without"
    if wanted or (wanted is None and not without and min(first, second) >= ENOUGH):
        return [(1, rows[0]), (2, rows[1])], f"{found}: a model for each"
    advice = f" (a model for each from {ENOUGH} in each on, or with --half-sets)" if first and second else ""
    return [(0, np.arange(len(particles)))], f"{found}: one model{advice}"


def _fold_of(particles: ParticleSet, rows: IntArray, settings: TrainingSettings) -> IntArray:
    """Fold `(n,)` of each row, equal in size; copies of one particle in the same."""
    _, place = np.unique(particles.origin[rows], return_inverse=True)
    order = np.random.default_rng(settings.seed).permutation(int(place.max()) + 1)
    result: IntArray = order[place.reshape(-1)] % settings.folds
    return result
