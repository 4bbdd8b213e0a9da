"""Which model predicts which particle: one of its half set, and one that did not learn from it."""

from __future__ import annotations

import logging

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.images.identity import among, image_keys
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet
from cryoforum_plugin.particles.half_sets import with_half_sets

LOG = logging.getLogger("cryoforum")


def ready(model: Model, particles: ParticleSet) -> ParticleSet:
    """Give particles without half sets theirs where `model` has a model for each; others stay as they are.

    Raises ParticleFileError where some have one and others not.
    """
    if not any(member.half_set for member in model.members):
        return particles
    without = int((particles.half_set == 0).sum())
    if 0 < without < len(particles):
        raise ParticleFileError(
            f"{particles.source}: {without} of {len(particles)} particles belong to no half set, but the model has one "
            "for each; assign all of them, or remove the column (rlnRandomSubset or alignments3D/split)"
        )
    if without:
        LOG.warning("%s: no half sets; the particles get some, dealt out alternately", particles.source)
        return with_half_sets(particles)
    return particles


def assign(model: Model, particles: ParticleSet, reader: StackReader) -> tuple[IntArray, FloatArray]:
    """Number `(n,)` of the model among `model.alone` for each particle, and whether it learned from it, 0 or 1.

    Of the models of a particle's half set the first one that has not seen it, else the first.
    """
    keys = image_keys(particles, reader)
    chosen, seen = np.full(len(particles), -1), np.zeros(len(particles))
    for number, member in enumerate(model.alone):
        fits = (member.half_set == 0) | (particles.half_set == member.half_set)
        learned = among(keys, member.seen).numpy()
        better = fits & ((chosen < 0) | ((seen > 0) & ~learned))
        chosen[better], seen[better] = number, learned[better]
    stray = chosen < 0
    if stray.any():
        LOG.warning(
            "%s: %d of %d particles are not of the half set that the model learned from: half maps of its poses are "
            "not independent", particles.source, int(stray.sum()), len(particles),
        )  # fmt: skip
        chosen[stray], seen[stray] = 0, among(keys, model.alone[0].seen).numpy()[stray]
    if seen.any():
        LOG.warning(
            "%s: the model was trained on %d of these %d particles: their errors are larger than it says; train with "
            "--folds 2 to have each predicted by a model that did not see it",
            particles.source, int(seen.sum()), len(particles),
        )  # fmt: skip
    return chosen, seen
