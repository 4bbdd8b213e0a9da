"""Making the posterior mean what it says: one width, fitted on particles the network did not see."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats.mstats import hdquantiles
from torch import Tensor

from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.particles import FloatArray, Prediction
from cryoforum_plugin.posterior import (
    credible_radius,
    gaps,
    matrix_from_upper,
    mode,
    reduce_bingham,
    summarise,
    upper_from_matrix,
)

TARGET_DEG = 5.0  # the confidence is the probability of an error below this
LEVEL = 0.9
LARGEST_LOG_FACTOR = 14.0

LOG = logging.getLogger("cryoforum")


@dataclass(frozen=True)
class RawPrediction:
    """Network answers before calibration; rows that could not be read are NaN.

    bingham : `(n, 10)`. shift_A : `(n, 2)`. shift_sd_A : `(n,)`. features : `(n, f)`. unusable : `(n,)` bool.
    """

    bingham: Tensor
    shift_A: Tensor
    shift_sd_A: Tensor
    features: Tensor
    unusable: Tensor


@dataclass(frozen=True)
class Calibration:
    """Factors that turn the network's numbers for one number of views into calibrated ones.

    width : multiplies A, so that the LEVEL credible ball holds that part of the particles.
    shift : multiplies the s.d. of the shift.
    """

    width: float
    shift: float


def fit_width(bingham: Tensor, error_rad: FloatArray, level: float = LEVEL) -> float:
    """Factor of A `(n, 10)` with which the `level` credible ball holds `level` of the errors `(n,)`.

    Solves for the factor at which the `level` quantile (Harrell-Davis) of error / radius is 1.
    """

    def excess(log_factor: float) -> float:
        radius = credible_radius(bingham * math.exp(log_factor), level).numpy()
        return float(hdquantiles(error_rad / radius, prob=[level])[0]) - 1.0

    low, high = -LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR
    for _ in range(26):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    if abs(low + high) / 2 > LARGEST_LOG_FACTOR - 0.01:
        LOG.warning("the posterior could not be calibrated: errors and widths do not fit together")
    return math.exp((low + high) / 2)


def fit(raw: RawPrediction, error_rad: FloatArray, shift_error_A: FloatArray) -> Calibration:
    """Fit both factors on held-out rows: errors `(n,)` rad of the mode, shift errors `(n, 2)` Å."""
    ratio = np.square(shift_error_A) / np.square(raw.shift_sd_A.double().numpy())[:, None]
    return Calibration(fit_width(raw.bingham, error_rad), float(np.sqrt(ratio.mean())))


def calibrated(
    raw: RawPrediction, calibration: Calibration, outlier_score: FloatArray, symmetry: str = "C1"
) -> Prediction:
    """Assemble what is written of each particle; rows that could not be read are NaN throughout.

    symmetry : orientation and Bingham numbers are moved together into RELION's asymmetric unit of this group.
    """
    usable = ~raw.unusable
    safe = torch.where(usable[:, None], raw.bingham.double() * calibration.width, 0.0)
    matrix = matrix_from_upper(safe)
    if len(symmetry_group(symmetry)) > 1:
        matrix = reduce_bingham(matrix, symmetry)
        safe = upper_from_matrix(matrix)
    g = gaps(matrix)
    summary = summarise(safe, math.radians(TARGET_DEG), LEVEL)
    rotation = mode(matrix)

    def column(values: Tensor) -> FloatArray:
        blank = usable.view(-1, *[1] * (values.ndim - 1))
        return torch.where(blank, values.double(), torch.nan).numpy()

    return Prediction(
        confidence=column(summary[:, 0]),
        rotation=column(rotation),
        shift_A=column(raw.shift_A),
        expected_error_deg=column(torch.rad2deg(summary[:, 1])),
        # mean length of a vector with two normal components of this s.d.
        expected_shift_error_A=column(raw.shift_sd_A * calibration.shift * math.sqrt(math.pi / 2)),
        credible_radius_90_deg=column(torch.rad2deg(summary[:, 2])),
        lambda_max=column(-g[:, 0]),
        trace=column(-g.sum(1)),
        bingham=column(safe),
        outlier_score=np.where(usable.numpy(), outlier_score, np.nan),
    )
