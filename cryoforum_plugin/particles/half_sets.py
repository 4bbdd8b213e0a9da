"""Half sets of particles that have none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cryoforum_plugin.particles.particle_set import IntArray, ParticleSet


def dealt_half_sets(particles: ParticleSet) -> IntArray:
    """Half set 1 or 2 `(n,)` for each row: dealt out alternately, copies of one particle to the same half."""
    place = np.unique(particles.origin, return_inverse=True)[1].reshape(-1)
    return np.asarray(place % 2 + 1, dtype=np.int64)


def with_half_sets(particles: ParticleSet) -> ParticleSet:
    """Give particles without two half sets theirs; others stay as they are."""
    if set(np.unique(particles.half_set)) >= {1, 2}:
        return particles
    return replace(particles, half_set=dealt_half_sets(particles))
