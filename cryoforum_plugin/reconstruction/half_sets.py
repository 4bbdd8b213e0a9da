"""Which particles build which half map."""

from __future__ import annotations

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.particles.half_sets import dealt_half_sets


def half_set_rows(particles: ParticleSet) -> tuple[tuple[IntArray, IntArray], str | None]:
    """Rows of the two half sets, and a note when they had to be chosen here.

    Without half sets in the table the particles are dealt out alternately, copies of one particle
    (duplicates, symmetry expansion) to the same half.

    Raises ParticleFileError when a half is empty or only part of the rows is assigned.
    """
    half = particles.half_set
    note = None
    if not half.any():
        half = dealt_half_sets(particles)
        note = f"{particles.source}: no half sets (rlnRandomSubset or alignments3D/split); split alternately"
    elif (half == 0).any():
        raise ParticleFileError(
            f"{particles.source}: {int((half == 0).sum())} of {len(half)} particles belong to no half set; "
            "assign all of them (rlnRandomSubset 1 or 2) or remove the column"
        )
    first, second = (np.flatnonzero(half == number) for number in (1, 2))
    for number, rows in ((1, first), (2, second)):
        if len(rows) == 0:
            raise ParticleFileError(
                f"{particles.source}: half set {number} is empty ({len(half)} particles); both are needed"
            )
    return (first, second), note


def in_reading_order(particles: ParticleSet, rows: IntArray) -> IntArray:
    """Sort `rows` by stack, then slice, so that batches read the disk in one direction."""
    return rows[np.lexsort((particles.slice_index[rows], particles.stack_index[rows]))]
