"""How good predicted orientations and their uncertainties are, against known orientations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from cryoforum_plugin.confidence.calibration import TARGET_DEG
from cryoforum_plugin.confidence.copies import angular_errors as angular_errors  # others look for it here
from cryoforum_plugin.confidence.copies import warn_of_copies
from cryoforum_plugin.confidence.matching import match_rows
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
    """Fraction of errors inside the credible ball at each level, from the ten Bingham numbers.

    Those are one mode of several where alternatives are known; then only the radius in the table counts.
    """
    figures: Figures = {}
    several = prediction.alternative_weight is not None and bool(prediction.alternative_weight.any())
    reasons: dict[str, str] = {}
    for level in COVERAGE_LEVELS:
        name = f"coverage_{100 * level:.0f}"
        if prediction.bingham is not None and not several:
            radius_rad = credible_radius(torch.as_tensor(prediction.bingham), level).numpy()
            figures[name] = float(np.mean(error_rad <= radius_rad))
        elif level == 0.9 and prediction.credible_radius_90_deg is not None:
            figures[name] = float(np.mean(np.degrees(error_rad) <= prediction.credible_radius_90_deg))
        else:
            figures[name] = None
            reasons[name] = (
                "the Bingham numbers are one mode of several"
                if several
                else "no posterior (Bingham numbers) with the predicted table"
            )
    return figures, reasons


def spearman(a: FloatArray, b: FloatArray) -> float | None:
    """Rank correlation of `(n,)` and `(n,)`, or None for fewer than three or constant values."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def auroc(score: FloatArray, positive: np.ndarray[Any, np.dtype[np.bool_]]) -> float | None:
    """Probability that a positive scores above a negative (ties count half), or None without one of them.

    By ranks (Mann-Whitney): U / (n+ n-) with U = sum of positive ranks - n+ (n+ + 1) / 2.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    rank_sum = float(rankdata(score)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
