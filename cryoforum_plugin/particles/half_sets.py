"""Half sets of particles that have none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cryoforum_plugin.particles.particle_set import ParticleSet


def with_half_sets(particles: ParticleSet) -> ParticleSet:
    """Give particles without two half sets theirs, copies of one particle together; others stay as they are."""
    if set(np.unique(particles.half_set)) >= {1, 2}:
        return particles
    return replace(particles, half_set=1 + np.unique(particles.origin, return_inverse=True)[1] % 2)
