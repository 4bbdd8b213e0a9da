"""How good predicted orientations and their uncertainties are, against known orientations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cryoforum_plugin.confidence.calibration import TARGET_DEG
from cryoforum_plugin.confidence.copies import angular_errors as angular_errors  # others look for it here
from cryoforum_plugin.confidence.copies import warn_of_copies
from cryoforum_plugin.confidence.matching import match_rows
from cryoforum_plugin.confidence.ranking import auroc, spearman
from cryoforum_plugin.confidence.reliability import reliability
from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.particles import FloatArray, ParticleSet, Prediction
from cryoforum_plugin.posterior import credible_radius

LARGE_ERROR_DEG = 10.0
COVERAGE_LEVELS = (0.5, 0.9, 0.95)

Figures = dict[str, Any]


def evaluate(
    predicted: ParticleSet, reference: ParticleSet, symmetry: str = "C1"
) -> tuple[Figures, dict[str, str]]:
    """Compare `predicted` with `reference`, whose rows are found by identity, not by position.

    Angular errors are modulo `symmetry`. Rows that could not be predicted (confidence 0, expected error
    180 deg) still hold their old poses: they are left out and counted as `unpredicted`. The figures are those of docs/files.md; one that is undefined
    is None, and the second dictionary says why.

    Raises ParticleFileError when rows cannot be matched or one side has no orientations, SettingsError
    for an unknown symmetry.
    """
    group = symmetry_group(symmetry)
    for particles in (predicted, reference):
        if particles.rotation is None:
            raise ParticleFileError(f"{particles.source}: no orientations to compare")
    if len(predicted) == 0:
        raise ParticleFileError(f"{predicted.source}: no particles")
    known = _predicted_rows(predicted)
    unpredicted, predicted = len(predicted) - len(known), predicted[known]
    if len(predicted) == 0:
        raise ParticleFileError(f"{predicted.source}: no particle of it could be predicted")
    rows = match_rows(predicted, reference)
    error_rad = angular_errors(predicted.require_rotation(), reference.require_rotation()[rows], group)
    warn_of_copies(predicted.require_rotation(), reference.require_rotation()[rows], error_rad, symmetry)
    figures, reasons = error_figures(error_rad), {}
    figures["shift_rmse_A"] = None
    if predicted.shift_A is None or reference.shift_A is None:
        reasons["shift_rmse_A"] = "one of the tables has no shifts"
    else:
        difference = predicted.shift_A - reference.shift_A[rows]
        figures["shift_rmse_A"] = float(np.sqrt((difference**2).sum(axis=1).mean()))
    more, why = uncertainty_figures(error_rad, predicted.prediction)
    return figures | more | {"unpredicted": unpredicted}, reasons | why


def reliability_of(
    predicted: ParticleSet, reference: ParticleSet, figures: Figures, symmetry: str
) -> Figures | None:
    """`reliability` of a predicted table, whose `evaluate` gave `figures`; None where it does not hold what is needed."""
    predicted = predicted[_predicted_rows(predicted)]
    found = predicted.prediction
    if found is None or found.expected_error_deg is None or found.credible_radius_90_deg is None:
        return None
    found = replace(found, rotation=predicted.rotation)
    known = reference.require_rotation()[match_rows(predicted, reference)]
    error_rad = angular_errors(predicted.require_rotation(), known, symmetry_group(symmetry))
    names = {level: figures[f"coverage_{100 * level:.0f}"] for level in COVERAGE_LEVELS}
    return reliability(found, error_rad, {k: v for k, v in names.items() if v is not None}, symmetry)


def _predicted_rows(particles: ParticleSet) -> NDArray[np.int64]:
    prediction = particles.prediction
    if prediction is None or prediction.expected_error_deg is None:
        return np.arange(len(particles))
    return np.flatnonzero((prediction.confidence > 0) | (prediction.expected_error_deg != 180))


def error_figures(error_rad: FloatArray) -> Figures:
    """Number, median, mean and 90th percentile of errors `(n,)`, and the fractions below 5 and 10 deg."""
    figures: Figures = {
        "n": len(error_rad),
        "median_rad": float(np.median(error_rad)),
        "mean_rad": float(np.mean(error_rad)),
        "p90_rad": float(np.quantile(error_rad, 0.9)),
    }
    for name in ("median", "mean", "p90"):
        figures[f"{name}_deg"] = float(np.degrees(figures[f"{name}_rad"]))
    for limit in (5, 10):
        figures[f"fraction_below_{limit}deg"] = float(np.mean(np.degrees(error_rad) < limit))
    return figures


def uncertainty_figures(
    error_rad: FloatArray, prediction: Prediction | None
) -> tuple[Figures, dict[str, str]]:
    """Ranking and calibration of the uncertainties against errors `(n,)`; None with a reason if undefined."""
    figures: Figures = {"spearman_expected_vs_actual": None, "auroc_error_above_10deg": None}
    figures |= {f"coverage_{100 * level:.0f}": None for level in COVERAGE_LEVELS}
    figures["brier"] = None
    if prediction is None:
        return figures, dict.fromkeys(figures, "the predicted table has no prediction columns")
    reasons: dict[str, str] = {}
    expected = prediction.expected_error_deg
    large = np.degrees(error_rad) > LARGE_ERROR_DEG
    if expected is None:
        reasons |= dict.fromkeys(list(figures)[:2], "no expected errors in the predicted table")
    else:
        figures["spearman_expected_vs_actual"] = spearman(expected, error_rad)
        if figures["spearman_expected_vs_actual"] is None:
            reasons["spearman_expected_vs_actual"] = "needs three particles and values that differ"
        figures["auroc_error_above_10deg"] = auroc(expected, large)
        if figures["auroc_error_above_10deg"] is None:
            side = "all" if large.all() else "no"
            reasons["auroc_error_above_10deg"] = f"{side} errors are above 10 deg"
    coverage, why = _coverage(error_rad, prediction)
    figures["brier"] = float(np.mean((prediction.confidence - (np.degrees(error_rad) < TARGET_DEG)) ** 2))
    return figures | coverage, reasons | why


def _coverage(error_rad: FloatArray, prediction: Prediction) -> tuple[Figures, dict[str, str]]:
    """Fraction of errors inside the credible ball at each level, by the radii of the table, else its Bingham numbers.

    The numbers are one mode of several where alternatives are known; then only radii count.
    """
    figures: Figures = {}
    several = prediction.alternative_weight is not None and bool(prediction.alternative_weight.any())
    reasons: dict[str, str] = {}
    for level in COVERAGE_LEVELS:
        name = f"coverage_{100 * level:.0f}"
        radius_deg: FloatArray | None = getattr(prediction, f"credible_radius_{100 * level:.0f}_deg")
        if radius_deg is not None:
            figures[name] = float(np.mean(np.degrees(error_rad) <= radius_deg))
        elif prediction.bingham is not None and not several:
            radius_rad = credible_radius(torch.as_tensor(prediction.bingham), level).numpy()
            figures[name] = float(np.mean(error_rad <= radius_rad))
        else:
            figures[name] = None
            reasons[name] = (
                "no radius of that level in the table, and its Bingham numbers are one mode of several"
                if several
                else "no radius of that level and no posterior (Bingham numbers) with the predicted table"
            )
    return figures, reasons
