"""Which particles were predicted already: by uid in cryoSPARC's tables, by image in RELION's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.particles import IntArray, ParticleSet

Keys = NDArray[np.generic]
_SLICE_BITS = 32


class Known:
    """A growing set of particles. Tables of one host only: `by_uid` for those that have a uid of their own."""

    def __init__(self, by_uid: bool) -> None:
        self.by_uid = by_uid
        self._keys: Keys = np.zeros(0, dtype=np.uint64 if by_uid else np.int64)
        self._numbers: dict[str, int] = {}  # of stacks, by real path
        self._stacks: dict[Path, int] = {}

    def new_rows(self, particles: ParticleSet) -> IntArray:
        """Rows that are not known yet, in order, of several with the same image the first."""
        keys = self._keys_of(particles)
        first = np.sort(np.unique(keys, return_index=True)[1])
        rows: IntArray = first[~np.isin(keys[first], self._keys)]
        return rows

    def add(self, particles: ParticleSet) -> None:
        """Take in particles."""
        self._keys = np.concatenate([self._keys, self._keys_of(particles)])

    def _keys_of(self, particles: ParticleSet) -> NDArray[Any]:
        if self.by_uid:
            return particles.uid
        stacks = np.array([self._number(stack) for stack in particles.stacks], dtype=np.int64)
        return (stacks[particles.stack_index] << _SLICE_BITS) | particles.slice_index

    def _number(self, stack: Path) -> int:
        """Number of a stack, the same through links to it."""
        known = self._stacks.get(stack)
        if known is None:
            real = os.path.realpath(stack)
            known = self._numbers.setdefault(real, len(self._numbers))
            if os.path.exists(real):  # what is not there yet may become a link
                self._stacks[stack] = known
        return known
