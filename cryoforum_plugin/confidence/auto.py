"""The default rule: as many particles as make the map clearest, by the map itself or by the confidences alone."""

from __future__ import annotations

import logging

import numpy as np

from cryoforum_plugin.confidence.auto_curve import AutoCurve
from cryoforum_plugin.confidence.by_map import SMALLEST_FRACTION, Mask, Reconstruct, by_map
from cryoforum_plugin.errors import ImageStackError, ParticleFileError, SettingsError
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet, Prediction

LOG = logging.getLogger("cryoforum")

FEWEST = 300  # particles; maps of fewer say too little


def by_confidence(confidence: FloatArray, half_set: IntArray) -> tuple[Mask, str]:
    """Choose the confidence threshold that should make the reconstruction clearest.

    If a particle is well oriented with probability c, signal adds up as sum(c) and noise power as the
    number n kept, so sum(c) / sqrt(n) is maximised: particles are added in order of confidence for as
    long as each has more than about half the mean confidence of those already in. Never less than
    SMALLEST_FRACTION of the set or of a half set is kept. Raises SettingsError if all c are 0.
    """
    ordered = np.sort(confidence)[::-1]
    if len(ordered) == 0 or ordered[0] <= 0:
        raise SettingsError("--auto: no particle has a confidence above 0; there is nothing to choose by")
    clarity = np.cumsum(ordered) / np.sqrt(np.arange(1, len(ordered) + 1))
    threshold = float(ordered[int(np.argmax(clarity))])
    mask = confidence >= threshold
    line = f"automatic: confidence at least {threshold:.3g}, which makes sum(c)/sqrt(n) largest"
    topped_up = mask.copy()
    for group in (half_set == value for value in np.unique(half_set)):
        rows = np.flatnonzero(group)
        best = rows[np.argsort(-confidence[rows], kind="stable")]
        topped_up[best[: int(np.ceil(SMALLEST_FRACTION * len(rows)))]] = True
    if (topped_up & ~mask).any():
        line += f", topped up to {100 * SMALLEST_FRACTION:g} % of each half set"
    return topped_up, line


def automatic(
    particles: ParticleSet,
    prediction: Prediction,
    symmetry: str = "C1",
    reconstruct: Reconstruct | None = None,
) -> tuple[Mask, str, AutoCurve | None]:
    """Choose by the map where `reconstruct` can make one, else by the confidences; the line says which and why."""
    if not len(prediction) or prediction.confidence.max() <= 0:
        raise SettingsError("--auto: no particle has a confidence above 0; there is nothing to choose by")
    reason = "images were not looked at"
    if reconstruct is not None and len(particles) < FEWEST:
        reason = f"fewer than {FEWEST} particles"
    elif reconstruct is not None:
        try:
            return by_map(particles, prediction, symmetry, reconstruct)
        except (ImageStackError, ParticleFileError, SettingsError) as error:
            reason = str(error)
            LOG.warning("--auto chooses by the confidences alone: %s", reason)
    mask, line = by_confidence(prediction.confidence, particles.half_set)
    return mask, f"{line} (chosen by the confidences alone: {reason})", None
