"""Columns of a predicted table, checked before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import FloatArray, ParticleSet, Prediction

LABELS = {
    "confidence": "rlnParticleFigureOfMerit",
    "expected_error_deg": "rlnAccuracyRotations",
    "outlier_score": "cryoforumOutlierScore",
    "lambda_max": "cryoforumLambdaMax",
    "trace": "cryoforumTrace",
    "credible_radius_50_deg": "cryoforumCredibleRadius50",
    "credible_radius_90_deg": "cryoforumCredibleRadius90",
    "credible_radius_95_deg": "cryoforumCredibleRadius95",
    "right_basin": "cryoforumRightBasin",
    "bingham": "cryoforumBingham1 to 10",
    "expected_shift_error_A": "rlnAccuracyTranslationsAngst",
}


def column(particles: ParticleSet, prediction: Prediction, name: str) -> FloatArray:
    """One field of the prediction; raises ParticleFileError when the table lacks it, or it is not a number."""
    values: FloatArray | None = getattr(prediction, name)
    if values is None:
        raise ParticleFileError(
            f"{particles.source}: no column {LABELS[name]}; write the prediction again with `cryoforum predict`"
        )
    check_finite(particles.source, name, values)
    return values


def check_finite(source: Path, name: str, values: FloatArray | None) -> None:
    """Raise ParticleFileError with the first row in which a column of a table, if it is there, holds no number."""
    if values is None:
        return
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise ParticleFileError(
            f"{source}: {LABELS[name]} is not a number in {len(bad)} of {len(values)} rows, row "
            f"{bad[0] + 1} first; write the prediction again with `cryoforum predict`, or remove those rows"
        )
