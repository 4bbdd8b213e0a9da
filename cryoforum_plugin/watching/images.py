"""Which particles have their image on disk: stacks may come after the table that names them, or grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.mrc_header import read_header
from cryoforum_plugin.particles import ParticleSet


class Images:
    """How many whole images each stack holds, as far as it was looked at."""

    def __init__(self) -> None:
        self._counts: dict[Path, int] = {}

    def ready(self, particles: ParticleSet) -> NDArray[np.bool_]:
        """Mask `(n,)` of the particles whose image is there whole."""
        counts = np.zeros(len(particles.stacks), dtype=np.int64)
        asked = np.zeros(len(particles.stacks), dtype=np.int64)
        np.maximum.at(asked, particles.stack_index, particles.slice_index + 1)
        for stack in np.flatnonzero(asked).tolist():
            counts[stack] = self._count(particles.stacks[stack], int(asked[stack]))
        mask: NDArray[np.bool_] = particles.slice_index < counts[particles.stack_index]
        return mask

    def forget(self, particles: ParticleSet) -> None:
        """Look again at the stacks of particles."""
        for stack in np.unique(particles.stack_index).tolist():
            self._counts.pop(particles.stacks[stack], None)

    def _count(self, stack: Path, asked: int) -> int:
        if self._counts.get(stack, 0) < asked:
            try:
                self._counts[stack] = read_header(stack).count
            except ImageStackError:  # missing, or shorter than its header says
                return 0
        return self._counts[stack]


def first_reason(particles: ParticleSet) -> str:
    """Say why the image of the first of `particles`, which are not ready, is not there."""
    stack = particles.stacks[int(particles.stack_index[0])]
    try:
        header = read_header(stack)
    except ImageStackError as error:
        return str(error)
    return f"{stack}: image {int(particles.slice_index[0]) + 1} is asked for, {header.count} are there"
