"""A prediction in a few numbers, for the terminal and --json."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryoforum_plugin.particles import Prediction

_UNUSABLE_DEG = 180.0  # expected error of what could not be predicted, once it is written


def figures_of(prediction: Prediction) -> dict[str, Any]:
    """Counts, medians and the fraction of confident particles; unusable ones count as confidence 0.

    prediction : with an expected error and a 90 % radius, as `predict_particles` returns it or a table holds it.
    """
    error_deg, radius_deg = prediction.expected_error_deg, prediction.credible_radius_90_deg
    assert error_deg is not None
    assert radius_deg is not None
    usable = np.isfinite(prediction.confidence) & (error_deg < _UNUSABLE_DEG)
    in_training = prediction.in_training
    return {
        "n": len(prediction),
        "unusable": int((~usable).sum()),
        "in_training": 0 if in_training is None else int(np.nansum(in_training)),
        "median_expected_error_deg": float(np.median(error_deg[usable])) if usable.any() else None,
        "median_credible_radius_90_deg": float(np.median(radius_deg[usable])) if usable.any() else None,
        "fraction_confidence_above_half": float((np.nan_to_num(prediction.confidence) > 0.5).mean()),
    }
